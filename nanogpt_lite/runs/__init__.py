"""The folder of a training run: where it is, which files belong to it, and what they say about the run.

Start with `run_folder` (the class `Run`, finding runs and checkpoints). `run_files` creates, locks and clears folders,
`checkpoint_loading` loads a checkpoint and checks it, `run_summary` describes one. Training itself is in `trainer`.
"""
