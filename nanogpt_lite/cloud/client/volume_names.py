"""Names on the Volume: the folder of uploaded texts, and what a run or a dataset may be called."""

import re

from nanogpt_lite.errors import UserError

UPLOADS_DIR = "texts"  # the folder on the Volume for uploaded texts


def require_safe_name(name: str, kind: str) -> str:
    """The name of a run or a dataset (`kind`), if it is a plain folder name. `UserError` if it could be a path."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(
            f"invalid {kind} name {name!r}: must be up to 100 letters, digits, '-', '_' and '.', the first a letter "
            "or a digit"
        )
    return name
