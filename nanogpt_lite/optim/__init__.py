"""The optimizers AdamW and Muon, their parameter groups, and the learning-rate schedule.

Start with `build`, which makes the optimizer that a config asks for; `schedule` is a pure function of the step. When
to step, gradient clipping and loss scaling are in `trainer`.
"""
