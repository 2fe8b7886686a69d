"""A Volume over a plain folder, with the methods that a machine outside of Modal uses."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Entry:
    """What `modal.Volume.listdir` says about a file or a folder."""

    path: str  # relative to the Volume
    mtime: int


class UploadBatch:
    """What `modal.Volume.batch_upload` gives: the files arrive together, at the end of the `with` block."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def put_file(self, local_file: BinaryIO, remote_path: str) -> None:
        self.contents[remote_path] = local_file.read()


GOLDEN = Path(__file__).parent / "golden" / "v0.1"
GOLDEN_RUNS = ("bpe", "bytes", "modern", "plain")  # the oldest first, as `volume_of_version_0_1` has them


class FakeVolume:
    """Stands for `modal.Volume`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def listdir(self, path: str, *, recursive: bool = False) -> list[Entry]:
        folder = self._local(path)
        paths = folder.rglob("*") if recursive else folder.iterdir()
        return [Entry(path.relative_to(self.folder).as_posix(), int(path.stat().st_mtime)) for path in sorted(paths)]

    def read_file(self, path: str) -> Iterator[bytes]:
        """The content in chunks; as Modal's method, it raises `FileNotFoundError` when the first is asked for."""
        content = self._local(path).read_bytes()
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    def remove_file(self, path: str, recursive: bool = False) -> None:
        local = self._local(path)
        if local.is_dir() and recursive:
            shutil.rmtree(local)
        else:
            local.unlink()

    @contextmanager
    def batch_upload(self, force: bool = False) -> Iterator[UploadBatch]:
        batch = UploadBatch()
        yield batch
        for path, content in batch.contents.items():
            local = self._local(path)
            if local.exists() and not force:
                raise FileExistsError(path)
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)

    def contents(self) -> dict[str, bytes]:
        """The content of each file, by its path on the Volume."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}

    def _local(self, path: str) -> Path:
        return self.folder / path.strip("/")


def volume_of_version_0_1(folder: Path) -> FakeVolume:
    """A Volume with the runs and prepared data that version 0.1 wrote: see `system.test_earlier_versions`."""
    shutil.copytree(GOLDEN / "runs", folder / "runs")
    shutil.copytree(GOLDEN / "data", folder / "datasets")
    for number, run in enumerate(GOLDEN_RUNS):
        os.utime(folder / "runs" / run / "last.safetensors", (1_800_000_000 + number,) * 2)
        (folder / "runs" / run / "owners").write_text("in-1\n", encoding="utf-8")
    return FakeVolume(folder)
