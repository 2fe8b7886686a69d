"""Training on Modal, without the `modal` package: what `modal_app.py` calls.

The package `client` is what runs on the machine where `modal run` is started. Here is what the Functions in containers
call: the files on the Volume (`storage`), the jobs that pull them, work and push the results (`jobs`), sweeps, several
GPUs in one container (`launcher`), and GPU prices. Training itself is in `api` and `trainer`; what Modal itself needs,
such as images, Functions and retries, is in `modal_app.py`. Start reading with `jobs`, then `storage`.
"""
