"""The command line: reads the arguments, calls the public functions, prints results, sets the exit status.

What a command does is in `api`, `runs` and `interop`; what an option means is in `config`. Start reading in
`commands` (the table of commands), then `main`.
"""
