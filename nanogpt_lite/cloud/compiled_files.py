"""What PyTorch's compiler made in one container, for the next one: kept on a Volume of its own.

It is code, and runs in the container that reads it. So it is not on the Volume of texts and runs, to which files come
from elsewhere: only containers that train mount this one, and only they write to it.
"""

import contextlib
import os
import shutil
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from nanogpt_lite import files
from nanogpt_lite.cloud.storage import Volume
from nanogpt_lite.errors import first_line

VOLUME_DIR = "compiled"  # where the Volume is mounted, beside that of texts and runs
FOLDER = Path("compiled")  # in the current folder of a container
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # where PyTorch keeps what it compiled, also in the ranks of a training
MAX_BYTES = 1_000_000_000  # beyond it only what this container compiled is kept
NOT_KEPT = ("locks", "tmp")  # folders of one process alone


@contextlib.contextmanager
def keep(volume: Volume, archive: Path) -> Iterator[None]:
    """Let PyTorch find in the block what was compiled before, and store at its end what it compiled.

    `archive` is the file on the Volume. If it is damaged or cannot be written, that is a warning: a network is then
    compiled once more. Two containers that end at the same time may each store theirs; the last one stays.
    """
    os.environ[CACHE_VARIABLE] = str(FOLDER.resolve())
    try:
        volume.reload()
        if archive.is_file():
            with tarfile.open(archive) as stored:
                stored.extractall(FOLDER, filter="data")
    except Exception as error:  # of any kind, as of Modal's client: nothing depends on these files
        shutil.rmtree(FOLDER, ignore_errors=True)  # a part of it, the last file of which may be incomplete
        warnings.warn(f"{archive.name} cannot be read ({first_line(error)}); compiling anew", stacklevel=2)
    before = _sizes()
    try:
        yield
    finally:
        if _sizes() != before:
            try:
                _store(archive, before)
                volume.commit()
            except Exception as error:  # as above, and the training has its result
                warnings.warn(f"{archive.name} cannot be stored ({first_line(error)})", stacklevel=2)


def archive_path(data_mount: Path) -> Path:
    """The file on the Volume for this version of PyTorch and this GPU, from where texts and runs are mounted."""
    import torch  # not in the container that prepares a text

    device = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    return data_mount.parent / VOLUME_DIR / f"torch-{torch.__version__}-{device}.tar"


def _store(archive: Path, before: dict[Path, int]) -> None:
    """Write all files to the archive, or if that is too much those that were not there `before`."""
    sizes = _sizes()
    if sum(sizes.values()) > MAX_BYTES:
        sizes = {path: size for path, size in sizes.items() if path not in before}
    with files.atomic_write(archive) as temporary, tarfile.open(temporary, "w") as tar:
        for path in sorted(sizes):
            tar.add(path, path.relative_to(FOLDER))


def _sizes() -> dict[Path, int]:
    """The files that are worth keeping, with their sizes."""
    sizes = {}
    for path in FOLDER.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a temporary file of the compiler
            if path.is_file() and path.relative_to(FOLDER).parts[0] not in NOT_KEPT:
                sizes[path] = path.stat().st_size
    return sizes
