"""How options are spelled in messages.

A library message names an option as Python spells it, in backticks: `out_dir`, `init_from='resume'`. The command line
and the Modal app respell it for their users before they show the message. Backticks in a message are for options only.
"""

import re
import shlex

from nanogpt_lite.config.options import RunConfig

_OPTION = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")


def for_command_line(message: str) -> str:
    """The message with `out_dir='runs/a'` spelled --out_dir runs/a, and the switch `overwrite=True` --overwrite."""
    return _OPTION.sub(lambda match: _flag(match[1], match[2], is_switch=match[1] not in RunConfig.names()), message)


def for_modal(message: str) -> str:
    """The message with `out_dir='runs/a'` spelled --out-dir runs/a; `compile=False` is --no-compile."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        return _flag(f"no-{name}" if value == "False" else name, value, is_switch=value in ("True", "False"))

    return _OPTION.sub(flag, message)


def _flag(name: str, value: str | None, *, is_switch: bool) -> str:
    if value is None or (is_switch and value in ("True", "False")):
        return f"--{name}"
    return f"--{name} {shlex.quote(value.strip(chr(39)))}"
