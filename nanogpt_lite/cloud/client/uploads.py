"""Uploads a text from this machine to the Volume, where `prepare_data` reads it."""

import glob
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Protocol

from nanogpt_lite.cloud.client.volume_names import UPLOADS_DIR, require_safe_name
from nanogpt_lite.data import sources


class UploadBatch(Protocol):
    """What `modal.Volume.batch_upload()` gives."""

    def put_file(self, local_file: BinaryIO, remote_path: str) -> None:
        """Add a file to the upload."""


class UploadVolume(Protocol):
    """The one method of `modal.Volume` that is used here."""

    def batch_upload(self, force: bool = False) -> AbstractContextManager[UploadBatch]:
        """Upload files together at the end of the `with` block; `force` replaces existing ones."""


def upload_text(volume: UploadVolume, dataset: str) -> str:
    """Upload a local text (a file, a folder or a glob) as one file; its dataset name on the Volume, texts/NAME.txt.

    A dataset that is no local path, such as shakespeare_char or a URL, is returned as it is. `UserError` for a text
    that is not UTF-8, or whose name is no plain folder name.
    """
    if dataset in sources.DATASET_NAMES or not _is_local_path(dataset):
        return dataset
    remote_path = f"{UPLOADS_DIR}/{require_safe_name(sources.dataset_name(dataset), 'dataset')}.txt"
    with TemporaryFile() as file:
        for chunk in sources.find_source(dataset).read_chunks():
            file.write(chunk.encode())
        file.seek(0)
        with volume.batch_upload(force=True) as batch:
            batch.put_file(file, remote_path)
    return remote_path


def _is_local_path(dataset: str) -> bool:
    """Whether a file, a folder or a glob pattern of this machine has at least one match."""
    return any(glob.iglob(str(Path(dataset).expanduser()), recursive=True))  # noqa: PTH207
