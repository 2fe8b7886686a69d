"""Fuzzing: inputs that are damaged or meaningless, by the million, each from a seed.

Start with `target`: what a fuzz target is. The targets are in the modules `*_targets`, listed in `registry`, and their
inputs are made by `mutations`. `campaign` divides inputs among processes, and `worker` is what such a process does.
The command is tests/fuzz.py; tests/system/test_hostile_input.py tries the first inputs of every target.
"""
