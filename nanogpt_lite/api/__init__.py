"""The public functions that connect the packages: train, training, run, sample, stream, load, evaluate.

It holds no mathematics of its own. The other public names come from their packages, such as `prepare` from `data`.
Start with `pipeline.py` (train, training), then `request.py` and `setup.py` (how a run starts or resumes),
`main_job.py` (run), `inference.py` (sample, stream, load) and `run_evaluation.py` (evaluate).
"""
