"""Training on Modal, without the decorators: what `modal_app.py` calls.

The package `client` is what runs on the machine where `modal run` is started. Here is what the Functions in containers
call: the files on the Volume (`storage`), the identity of a call over its attempts (`calls`), the jobs that pull files,
work and push the results (`prepare_job`, `jobs`), sweeps, several GPUs in one container (`launcher`), and the time that
GPUs are used. Training itself is in `api` and `trainer`. Start reading with `jobs`, then `storage`.
"""
