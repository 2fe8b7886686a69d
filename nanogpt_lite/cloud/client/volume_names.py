"""Names on the Volume: of folders and files, and what a run or a dataset may be called."""

import re

from nanogpt_lite.errors import UserError

UPLOADS_DIR = "texts"  # the folder on the Volume for uploaded texts
TRACE_DIR = "trace"  # in a run's folder: what the option `trace` writes
GPU_TIME_FILE = "gpu_time.json"  # in a run's folder: by call, the GPU, and the seconds that it was used


def require_safe_name(name: str, kind: str) -> str:
    """The name of a run or a dataset (`kind`), if it is a plain folder name. `UserError` if it could be a path."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(
            f"invalid {kind} name {name!r}: must be up to 100 letters, digits, '-', '_' and '.', the first a letter "
            "or a digit"
        )
    return name


def run_exists_error(name: str) -> UserError:
    """The error where a new run would have the name of an existing one."""
    return UserError(
        f"the run {name!r} exists; resume it (`init_from='resume'`), give another `out_dir`, or replace it "
        "(`overwrite=True`)"
    )


def run_reserved_error(name: str) -> UserError:
    """The error where a new run would have a name that another call has reserved."""
    return UserError(
        f"another call has started to train the run {name!r}, which has no checkpoint yet; give another `out_dir`, or "
        "replace it (`overwrite=True`)"
    )


def run_name(out_dir: str) -> str:
    """The name of a run that is given by its name, or by its folder: runs/NAME.

    >>> run_name("long"), run_name("runs/long")
    ('long', 'long')
    """
    return out_dir.replace("\\", "/").removeprefix("runs/")  # runs\\NAME from a client on Windows
