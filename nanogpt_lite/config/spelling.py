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
    """Convert the options in a message to those of the command line.

    >>> for_command_line("give `out_dir='my runs'`, or `overwrite=True`")
    "give --out_dir 'my runs', or --overwrite"
    """
    return _OPTION.sub(lambda match: _flag(match[1], match[1], match[2]), message)


def for_modal(message: str) -> str:
    """Convert the options in a message to flags of `modal run`.

    >>> for_modal("give `out_dir='runs/a'`, or `compile=False`")
    'give --out-dir runs/a, or --compile False'
    """
    return _OPTION.sub(lambda match: _flag(match[1].replace("_", "-"), match[1], match[2]), message)


def _flag(shown_name: str, name: str, value: str | None) -> str:
    """An option as a flag. A name that is no option of the library, such as `overwrite`, is a switch."""
    is_switch = name not in RunConfig.names()
    if value is None or (is_switch and value in ("True", "False")):
        return f"--{shown_name}"
    return f"--{shown_name} {quote(value.strip(chr(39)))}"


def quote(argument: str) -> str:
    """An argument as one types it on the command line of this system: in quotes if the shell would change it."""
    return subprocess.list2cmdline([argument]) if sys.platform == "win32" else shlex.quote(argument)
