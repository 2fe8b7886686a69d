"""Secrets of this machine, from its environment or from a file .env, that are sent to the containers."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from nanogpt_lite.cloud.messages import exit_on_error
from nanogpt_lite.errors import UserError

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(?:'([^']*)'|\"([^\"]*)\"|(.*?))\s*(?:\s#.*)?")


def local_secrets(names: Collection[str], dotenv: Path = Path(".env")) -> dict[str, str | None]:
    """The values of environment variables, or else those in the file; None for what is not set, or empty, in both.

    `UserError` if the file cannot be read.
    """
    values = _read_dotenv(dotenv)
    return {name: os.environ.get(name) or values.get(name) or None for name in names}


@exit_on_error()
def secrets_to_send(*names: str) -> dict[str, str | None]:
    """The same as `local_secrets`, where Modal's client imports an app: it would show an error as a traceback."""
    return local_secrets(names)


def _read_dotenv(path: Path) -> dict[str, str]:
    """The lines NAME=VALUE of a file, also with quotes, `export` and comments; empty without the file.

    Not the whole format of the package python-dotenv, which would be a second package to install beside modal: values
    are on one line, and neither escapes nor variables in them are replaced.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); write lines NAME=VALUE in UTF-8, or move it away") from error
    matches = [match for line in text.splitlines() if (match := _LINE.fullmatch(line))]
    return {match[1]: next((value for value in match.groups()[1:] if value is not None), "") for match in matches}
