"""Checkpoints: one atomic safetensors file with tensors and JSON metadata, and its validation.

Start with `checkpoint_file` (reading and writing). `metadata` validates the JSON part, `validation` the weights;
`restore` makes a config, a tokenizer and a model's weights of them. The state of a training run is in `trainer.state`,
the files of a run in `runs`.
"""

SUFFIX = ".safetensors"  # of the name of a checkpoint
EARLY_WEIGHTS = f"early_*{SUFFIX}"  # the names of files with the weights on the way, see `trainer.early_weights`
