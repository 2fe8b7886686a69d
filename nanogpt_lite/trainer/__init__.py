"""Training: the state between two steps, one optimizer step, evaluation, and the loop over steps.

The loop is a generator of records. Where the records are shown and written is in `tracking`; how a run is started or
resumed is in `api.setup`. Start with `loop.py`, then `step.py`. `memory_estimate` tells without PyTorch what a step
takes of a GPU.
"""
