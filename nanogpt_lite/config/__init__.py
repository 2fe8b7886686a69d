"""Every option of the program, defined once: name, type, default, unit, rule and help.

The command line, the keyword arguments of the Python functions, the Modal flags and the config in a checkpoint are
derived from these fields. What an option does is in the package that reads it. Standard library only, so that `--help`
answers at once. Start reading in `options`, then `schema`.
"""
