"""Where data and runs live: here, or on a volume that several machines share, such as Modal's.

The work is done in the current folder, in `data/` and `runs/`, as on a laptop; folders are brought from the volume
and put back. A volume is what can `commit` and `reload`, and neither works while a file on it is open: files are
copied, never mapped or written in place. What is brought when, is the business of `volumes`.
"""

import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from nanogpt_lite import files
from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX
from nanogpt_lite.data.preparation import DATA_DIR
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs.run_folder import RUNS_DIR

VOLUME_DIRS = {DATA_DIR: "datasets", RUNS_DIR: "runs"}
OWNERS_FILE = "owners"  # in a run's folder on the volume: the calls that trained it, one a line, the last one the owner
UPLOADS_DIR = "texts"  # the folder on the volume for texts that were sent up


class Volume(Protocol):
    """What several machines share: each sees what others committed once it reloads."""

    def commit(self) -> None:
        """Show the others what was written here."""

    def reload(self) -> None:
        """See what others committed."""


def require_safe_name(name: str, what: str) -> str:
    """The name of a run or a dataset, which is that of a folder. `UserError` if it could lead elsewhere."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(
            f"{what} {name!r} is no plain name: give up to 100 letters, digits, '-', '_' and '.', "
            "the first a letter or a digit"
        )
    return name


class LocalStorage:
    """Data and runs stay where the work is done: nothing to bring, nothing to put back."""

    elsewhere = False  # whether home is not the current folder

    def text(self, dataset: str) -> str:
        """The dataset, or the path of the text if it was sent up under that name."""
        return dataset

    def bring(self, folder: Path) -> None:
        """Make `folder`, data/NAME or runs/NAME, what it is at home, if it is there."""

    def put(self, folder: Path, owner: str = "") -> None:
        """Put the files in `folder` home. `UserError` if the run belongs to another owner by now."""

    def owns(self, folder: Path, owner: str) -> bool:
        """Whether the run at home is this owner's. `UserError` if it was, and another one took it over since."""
        return False

    def claim(self, folder: Path, owner: str, *, anew: bool) -> None:
        """Make the run at home this owner's; `anew`: and delete what is there of it."""

    def read(self, path: str) -> str:
        """A text that was kept by `write`, empty if there is none."""
        return ""

    def write(self, path: str, text: str) -> None:
        """Keep a text for people at home, if that is elsewhere."""

    def runs(self) -> list[str]:
        """The names of the runs that have a checkpoint, the newest last."""
        return _runs_by_age(RUNS_DIR)


class VolumeStorage(LocalStorage):
    """Data and runs on a volume that is mounted at `root`: datasets/NAME and runs/NAME."""

    elsewhere = True

    def __init__(self, root: Path, volume: Volume) -> None:
        self.root, self.volume = root, volume

    def text(self, dataset: str) -> str:
        sent = self.root / UPLOADS_DIR / Path(dataset).name
        return str(sent) if dataset == f"{UPLOADS_DIR}/{sent.name}" else dataset

    def bring(self, folder: Path) -> None:
        if folder.parent not in VOLUME_DIRS:  # as of a run that came from another machine: it has no home
            return
        self.volume.reload()
        home = self._home(folder)
        if home.is_dir():
            _copy_files(home, folder)
            for path in folder.glob("*"):  # of a run that was there before
                if path.is_file() and not (home / path.name).is_file():
                    path.unlink()

    def put(self, folder: Path, owner: str = "") -> None:
        self.volume.reload()
        home = self._home(folder)
        if owner:
            _require_owner(home, owner)
        if _copy_files(folder, home):
            self.volume.commit()

    def owns(self, folder: Path, owner: str) -> bool:
        self.volume.reload()
        home = self._home(folder)
        if owner not in _owners(home):
            return False
        _require_owner(home, owner)
        return True

    def claim(self, folder: Path, owner: str, *, anew: bool) -> None:
        owned = self.owns(folder, owner)
        home = self._home(folder)
        home.mkdir(parents=True, exist_ok=True)
        for path in home.iterdir():
            if path.name != OWNERS_FILE and (anew or path.name.startswith(".")):  # hidden: left by a killed copy
                path.unlink()
        if not owned:  # last, so that a call that was stopped before this line begins anew again
            with files.atomic_write(home / OWNERS_FILE) as new:
                new.write_text("".join(f"{name}\n" for name in [*_owners(home), owner]), encoding="utf-8")
        self.volume.commit()

    def read(self, path: str) -> str:
        self.volume.reload()
        kept = self.root / path
        return kept.read_text(encoding="utf-8") if kept.is_file() else ""

    def write(self, path: str, text: str) -> None:
        self.volume.reload()
        with files.atomic_write(self.root / path) as new:
            new.write_text(text, encoding="utf-8")
        self.volume.commit()

    def runs(self) -> list[str]:
        self.volume.reload()
        return _runs_by_age(self.root / "runs")

    def _home(self, folder: Path) -> Path:
        kind = VOLUME_DIRS[folder.parent]
        return self.root / kind / require_safe_name(folder.name, kind.removesuffix("s"))


def _copy_files(source: Path, target: Path) -> bool:
    """Give `target` the files of `source`, all at the end; whether there was anything to do.

    The run in `source` may go on meanwhile. What is copied first, and renamed last, stands for the others: `last` is
    then never newer than they are, and a manifest never older than its data.
    """
    found = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    found.sort(key=lambda path: (path.name not in (f"last{SUFFIX}", "manifest.json"), path.name))
    changed = [path for path in found if path.name != OWNERS_FILE and _version(path) != _version(target / path.name)]
    with ExitStack() as stack:  # it leaves its contexts in the reverse order
        for path in changed:
            new = stack.enter_context(files.atomic_write(target / path.name))
            before = path.stat()  # of what is copied, or of something older that will be copied again
            shutil.copyfile(path, new)
            os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    return bool(changed)


def _version(path: Path) -> tuple[int, int] | None:
    """What tells two versions of a file apart."""
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except FileNotFoundError:
        return None


def _require_owner(home: Path, owner: str) -> None:
    if _owners(home)[-1:] != [owner]:
        raise UserError(
            f"another call took over the run {home.name} since, so this one stops; to train at the same time, give "
            "each its own --out-dir"
        )


def _owners(home: Path) -> list[str]:
    path = home / OWNERS_FILE
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _runs_by_age(runs: Path) -> list[str]:
    """The names of the runs in a folder that have a checkpoint, the oldest first."""
    found = sorted(runs.glob(f"*/last{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    return [path.parent.name for path in found]
