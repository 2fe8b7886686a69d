"""The spelling of options in messages: for Python, the command line, and Modal.

A library message names an option as a Python keyword, in backticks: `out_dir`, `init_from='resume'`. The command line
and the Modal app convert these to their own spelling before they show the message. Backticks in a message are for
options only.
"""

import re
import shlex
import subprocess
import sys

from nanogpt_lite.config.options import RunConfig

_OPTION = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")


def for_command_line(message: str) -> str:
    """Convert the options in a message to those of the command line. An option that it does not know is a switch.

    >>> for_command_line("give `out_dir='my runs'`, or `overwrite=True`")
    "give --out_dir 'my runs', or --overwrite"
    """

    def flag(match: re.Match[str]) -> str:
        return _flag(match[1], match[2], is_switch=match[1] not in RunConfig.names())

    return _OPTION.sub(flag, message)


def for_modal(message: str) -> str:
    """Convert the options in a message to flags of `modal run`.

    >>> for_modal("give `out_dir='runs/a'`, or `compile=False`")
    'give --out-dir runs/a, or --no-compile'
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        return _flag(f"no-{name}" if value == "False" else name, value, is_switch=value in ("True", "False"))

    return _OPTION.sub(flag, message)


def _flag(name: str, value: str | None, *, is_switch: bool) -> str:
    if value is None or (is_switch and value in ("True", "False")):
        return f"--{name}"
    return f"--{name} {quote(value.strip(chr(39)))}"


def quote(argument: str) -> str:
    """An argument as one types it on the command line of this system: in quotes if the shell would change it."""
    return subprocess.list2cmdline([argument]) if sys.platform == "win32" else shlex.quote(argument)
