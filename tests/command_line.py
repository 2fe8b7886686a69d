"""The command line for tests: in this process, or as the words of a process."""

import sys

from tiny import TINY, to_arguments

from nanogpt_lite.cli import main as command_line

SHORT = " ".join(
    to_arguments({name: TINY[name] for name in TINY if name not in ("dropout", "max_iters", "eval_interval")})
)
TRAIN = f"train --dataset bottles.txt {SHORT}"


def main(line, *more):
    """Run a command in this process; its exit status."""
    try:
        return command_line.main([*line.split(), *more])
    except SystemExit as stop:
        return stop.code


def command(line, *more):
    return [sys.executable, "-m", "nanogpt_lite", *line.split(), *more]
