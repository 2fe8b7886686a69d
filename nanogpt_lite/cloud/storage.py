"""Where datasets and runs are stored: in the current folder, or on a Volume that several containers share.

The library works in `data/` and `runs/` of the current folder, as on a laptop. `pull` copies a folder from the Volume
before it is used, `push` copies it to the Volume and commits. A Modal Volume can neither commit nor reload while a
file on it is open, so files are copied to and from it, never mapped or changed in place. When to pull and push is
decided in `jobs` and `job_data`. Nothing here needs PyTorch: the container that prepares a text does not have it.
"""

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from nanogpt_lite import files
from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.cloud.calls import lost_run_error
from nanogpt_lite.cloud.client.volume_names import TRACE_DIR, UPLOADS_DIR, require_safe_name
from nanogpt_lite.data import fingerprints, sources
from nanogpt_lite.data.folder_names import DATA_DIR
from nanogpt_lite.runs.run_folder import RUNS_DIR

VOLUME_DIRS = {DATA_DIR: "datasets", RUNS_DIR: "runs"}
MOUNT_VARIABLE = "NANOGPT_MOUNT"  # an environment variable: where the Volume is mounted, if it is not at `MOUNT`
MOUNT = Path("/data")
OWNERS_FILE = "owners"  # in a run's folder on the Volume: ids of the calls that trained it, one a line, the owner last
NOT_COPIED = (OWNERS_FILE, fingerprints.NAME)  # of the Volume alone; of one machine alone, which checks its own copy


class Volume(Protocol):
    """The two methods of `modal.Volume` that are used here."""

    def commit(self) -> None:
        """Make the changes of this container visible to others, which see them after their next reload."""

    def reload(self) -> None:
        """Load what other containers committed."""


def mount_dir() -> Path:
    """Where the Volume of texts and runs is mounted."""
    return Path(os.environ.get(MOUNT_VARIABLE, MOUNT))


class Storage(Protocol):
    """Where a job gets datasets and runs from, and stores what it made."""

    is_remote: bool  # whether folders are copies of stored ones

    def text_source(self, dataset: str) -> str:
        """The path of an uploaded text, which is called NAME, NAME.txt or texts/NAME.txt; another dataset as it is."""

    def pull(self, folder: Path, names: Collection[str] = ()) -> None:
        """Make `folder`, data/NAME or runs/NAME, equal to the stored one, if there is one.

        With `names`, copy these files of it only, and leave the others.
        """

    def push(self, folder: Path, owner: str = "") -> None:
        """Store the files of `folder`. `UserError` if `owner` is given and no longer owns the stored run."""

    def is_owner(self, folder: Path, owner: str) -> bool:
        """Whether `owner` owns the stored run. `UserError` if it did, and another call has taken the run over."""

    def claim(self, folder: Path, owner: str, *, delete_files: bool) -> None:
        """Make `owner` the owner of the stored run; `delete_files` deletes the files stored so far."""

    def read_text(self, path: str) -> str:
        """The text stored by `write_text`; empty if there is none."""

    def write_text(self, path: str, text: str) -> None:
        """Store a text, if the storage is remote."""

    def run_names(self) -> list[str]:
        """The names of the runs that have a checkpoint, the newest last."""

    def has_run(self, name: str) -> bool:
        """Whether there is a folder of a run of this name, with or without a checkpoint."""


class LocalStorage:
    """Datasets and runs stay in the current folder: there is nothing to copy and no other owner."""

    is_remote = False

    def text_source(self, dataset: str) -> str:
        return dataset

    def pull(self, folder: Path, names: Collection[str] = ()) -> None:
        pass

    def push(self, folder: Path, owner: str = "") -> None:
        pass

    def is_owner(self, folder: Path, owner: str) -> bool:
        return False

    def claim(self, folder: Path, owner: str, *, delete_files: bool) -> None:
        pass

    def read_text(self, path: str) -> str:
        return ""

    def write_text(self, path: str, text: str) -> None:
        pass

    def run_names(self) -> list[str]:
        return _run_names_by_age(RUNS_DIR)

    def has_run(self, name: str) -> bool:
        return (RUNS_DIR / name).is_dir()


class VolumeStorage:
    """Datasets and runs on a Volume, in datasets/NAME and runs/NAME.

    It is mounted at `root`; without it, where the environment variable says, or else at `MOUNT`.
    """

    is_remote = True

    def __init__(self, volume: Volume, root: Path | None = None) -> None:
        self.root, self.volume = root or mount_dir(), volume

    def text_source(self, dataset: str) -> str:
        if dataset in sources.DATASET_NAMES or "://" in dataset or Path(dataset).is_absolute():
            return dataset
        self.volume.reload()
        uploaded = self.root / UPLOADS_DIR / f"{sources.dataset_name(dataset)}.txt"
        return str(uploaded) if uploaded.is_file() else dataset

    def pull(self, folder: Path, names: Collection[str] = ()) -> None:
        if folder.parent not in VOLUME_DIRS:  # such as the data folder of a run that was trained on another machine
            return
        self.volume.reload()
        stored = self._volume_dir(folder)
        if stored.is_dir():
            _copy_files(stored, folder, names)
            for path in folder.glob("*"):  # a warm container may hold files of an earlier run of this name
                if path.is_file() and path.name != fingerprints.NAME and not (stored / path.name).is_file():
                    path.unlink()

    def push(self, folder: Path, owner: str = "") -> None:
        self.volume.reload()
        stored = self._volume_dir(folder)
        if owner:
            _require_owner(stored, owner)
        has_changed = _copy_files(folder, stored)
        if (folder / TRACE_DIR).is_dir():
            has_changed |= _copy_files(folder / TRACE_DIR, stored / TRACE_DIR)
        if has_changed:
            self.volume.commit()

    def is_owner(self, folder: Path, owner: str) -> bool:
        self.volume.reload()
        stored = self._volume_dir(folder)
        if owner not in _read_owners(stored):
            return False
        _require_owner(stored, owner)
        return True

    def claim(self, folder: Path, owner: str, *, delete_files: bool) -> None:
        already_owner = self.is_owner(folder, owner)
        stored = self._volume_dir(folder)
        stored.mkdir(parents=True, exist_ok=True)
        for path in stored.iterdir():
            is_leftover = path.name.startswith(".")  # a temporary file of a copy that was killed
            if path.is_file() and path.name != OWNERS_FILE and (delete_files or is_leftover):
                path.unlink()
        if delete_files:
            shutil.rmtree(stored / TRACE_DIR, ignore_errors=True)
        if not already_owner:  # written last: a call that is killed before this line deletes the files once more
            with files.atomic_write(stored / OWNERS_FILE) as temporary:
                owners = [*_read_owners(stored), owner]
                temporary.write_text("".join(f"{name}\n" for name in owners), encoding="utf-8")
        self.volume.commit()

    def read_text(self, path: str) -> str:
        self.volume.reload()
        stored = self.root / path
        return stored.read_text(encoding="utf-8") if stored.is_file() else ""

    def write_text(self, path: str, text: str) -> None:
        self.volume.reload()
        with files.atomic_write(self.root / path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self.volume.commit()

    def run_names(self) -> list[str]:
        self.volume.reload()
        return _run_names_by_age(self.root / "runs")

    def has_run(self, name: str) -> bool:
        self.volume.reload()
        return (self.root / "runs" / name).is_dir()

    def _volume_dir(self, folder: Path) -> Path:
        kind = VOLUME_DIRS[folder.parent]
        return self.root / kind / require_safe_name(folder.name, kind.removesuffix("s"))


def _copy_files(source: Path, target: Path, names: Collection[str] = ()) -> bool:
    """Copy the changed files of `source` to `target` and rename them all at the end; whether any had changed.

    Only those of the `names`, if any are given.

    Training may replace files in `source` meanwhile. The file that is copied first is renamed last. `last` and the
    manifest are copied first, so `last` is never newer than the other files, and a manifest never older than its data.
    """
    paths = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    paths = [path for path in paths if not names or path.name in names]
    paths.sort(key=lambda path: (path.name not in (f"last{SUFFIX}", "manifest.json"), path.name))
    changed = [
        path
        for path in paths
        if path.name not in NOT_COPIED and _size_and_mtime(path) != _size_and_mtime(target / path.name)
    ]
    with contextlib.ExitStack() as stack:  # it closes its contexts, which renames, in the reverse order
        for path in changed:
            temporary = stack.enter_context(files.atomic_write(target / path.name))
            status = path.stat()  # before the copy: a file that is replaced during it is then copied again next time
            shutil.copyfile(path, temporary)
            with contextlib.suppress(OSError):  # without the times, the file is copied again next time
                os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    return bool(changed)


def _size_and_mtime(path: Path) -> tuple[int, int] | None:
    """What tells two versions of a file apart; None without a file."""
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except FileNotFoundError:
        return None


def _require_owner(stored: Path, owner: str) -> None:
    if _read_owners(stored)[-1:] != [owner]:
        raise lost_run_error(stored.name)


def _read_owners(stored: Path) -> list[str]:
    path = stored / OWNERS_FILE
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _run_names_by_age(runs: Path) -> list[str]:
    """The names of the runs in a folder that have a checkpoint, the oldest first."""
    checkpoints = sorted(runs.glob(f"*/last{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    return [path.parent.name for path in checkpoints]
