"""A Volume of plain folders and a dictionary, and machines that share both, for tests without Modal."""

import contextlib
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from nanogpt_lite.cloud.calls import Call
from nanogpt_lite.cloud.storage import VolumeStorage

TEXT = "To be, or not to be, that is the question:\n" * 40


class FolderVolume:
    """A machine's own copy of the Volume (`mount`) and the committed files (`shared`).

    As on Modal, neither commit nor reload is possible while a file of the copy is open.
    """

    def __init__(self, mount: Path, shared: Path) -> None:
        self.mount, self.shared = mount, shared
        self.commits = 0
        shared.mkdir(exist_ok=True)
        self.reload()

    def commit(self) -> None:
        self.require_closed()
        self.commits += 1
        shutil.copytree(self.mount, self.shared, dirs_exist_ok=True)
        for path in [path for path in self.shared.rglob("*") if path.is_file()]:
            if not (self.mount / path.relative_to(self.shared)).exists():
                path.unlink()

    def reload(self) -> None:
        self.require_closed()
        shutil.rmtree(self.mount, ignore_errors=True)
        shutil.copytree(self.shared, self.mount)

    def require_closed(self) -> None:
        assert not [path for path in _open_files() if path.startswith(str(self.mount))]


class SharedDict:
    """Stands for `modal.Dict`: all machines see the same values, and each method is atomic."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: str, default: Any = None) -> Any:
        with self._lock:
            return self.values.get(key, default)

    def put(self, key: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        with self._lock:
            if skip_if_exists and key in self.values:
                return False
            self.values[key] = value
            return True

    def pop(self, key: str, default: Any = None) -> Any:
        with self._lock:
            return self.values.pop(key, default)


class Machines:
    """Machines that share one Volume and one dictionary, each with a current folder of its own.

    There is a text outside of all of them.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared = folder / "shared"  # the committed files of the Volume
        self.dictionary = SharedDict()
        self.text = str(folder / "text.txt")
        Path(self.text).write_text(TEXT, encoding="utf-8")
        self._folder, self._monkeypatch = folder, monkeypatch
        self._count = 0

    def start(self) -> VolumeStorage:
        """Continue the test on a new machine; its storage, with the committed files as they are now."""
        folder = self._folder / f"machine{self._count}"
        self._count += 1
        folder.mkdir()
        self._monkeypatch.chdir(folder)
        return VolumeStorage(FolderVolume(folder / "mount", self.shared), folder / "mount")

    def call(self, call_id: str) -> Call:
        """The call of this id, as one more attempt of it sees it."""
        return Call(call_id, self.dictionary)


def _open_files() -> list[str]:
    """The files that this process has open or mapped, on systems with /proc."""
    if not Path("/proc/self/maps").exists():
        return []
    paths = Path("/proc/self/maps").read_text(encoding="utf-8").split()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            paths.append(str(link.readlink()))
    return paths
