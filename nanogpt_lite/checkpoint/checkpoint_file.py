"""The checkpoint file: tensors and JSON metadata in one safetensors file, written atomically.

The format is safetensors, which cannot contain code. The metadata is canonical JSON under one key, so that the same
state gives the same file, bit for bit. It holds a checksum of itself and of each tensor: a file with a single flipped
bit is refused. What the tensor names mean is defined in `trainer.state`.
"""

import errno
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nanogpt_lite import files
from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.checkpoint.metadata import CheckpointMetadata, InvalidMetadataError
from nanogpt_lite.device.memory import is_out_of_memory
from nanogpt_lite.errors import UserError, shorten

METADATA_KEY = "nanogpt_lite"
FORMAT_VERSION = 3  # of the JSON under the key


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name, and the path of the file that they were read from."""

    path: Path
    tensors: dict[str, Tensor]

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, under their names without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoint(TensorFile):
    """The contents of a checkpoint file: `model.*` and `optimizer.*` tensors, and validated metadata."""

    metadata: CheckpointMetadata


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: CheckpointMetadata) -> None:
    """Write a checkpoint atomically. `OSError` if it cannot be written; an existing file then stays unchanged."""
    write_tensors_and_json(path, tensors, metadata.to_json())


def read_checkpoint(path: Path, prefix: str = "") -> Checkpoint:
    """Read a checkpoint, with only those tensors whose names start with `prefix`, and validate its metadata.

    `UserError` as of `read_tensors_and_json`, or if the metadata is incomplete or invalid.
    """
    tensors, content = read_tensors_and_json(path, prefix)
    try:
        metadata = CheckpointMetadata.from_json(content)
    except InvalidMetadataError as error:
        raise UserError(f"{path} does not hold a complete training state ({error}); use another checkpoint") from error
    return Checkpoint(path, tensors, metadata)


def write_tensors_and_json(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object in the checkpoint format, atomically. `OSError` if that is not possible."""
    on_cpu = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    content = {
        **content,
        "format": FORMAT_VERSION,
        "tensors_crc32": {name: _crc32(tensor) for name, tensor in on_cpu.items()},
    }
    text = files.canonical_json({"about": content, "crc32": zlib.crc32(_canonical_bytes(content))})
    with files.atomic_write(path) as temporary:
        write_safetensors(temporary, on_cpu, {METADATA_KEY: text})


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file. `OSError` if it cannot be written."""
    try:
        safetensors.torch.save_file(tensors, path, metadata=metadata)
    except safetensors.SafetensorError as error:  # the library's only report of an error of the system, as text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def read_tensors_and_json(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors whose names start with `prefix`, and the JSON object; verify their checksums.

    `UserError` if there is no file, or if it is damaged or not a checkpoint. `OSError` if it may not be read.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train first, or give another `out_dir`")
    path.open("rb").close()  # a file without read permission is an OSError, and not damaged
    try:
        metadata, tensors = _read_safetensors(path, prefix)
        if METADATA_KEY not in metadata:
            raise UserError(f"{path} was not written by this program; give a checkpoint of one of its runs")
        content = _parse_json(metadata[METADATA_KEY])
        if content.pop("format", None) != FORMAT_VERSION:
            raise UserError(
                f"{path} is a checkpoint of another format than {FORMAT_VERSION}, which this version of the program "
                "reads; use it with the version that wrote it, or train again"
            )
        _verify_checksums(tensors, content.pop("tensors_crc32", None), prefix)
    except _DamagedError as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({shorten(str(error))}); {_remedy(path)}") from error
    return tensors, content


class _DamagedError(Exception):
    """The content of a file is not what this program writes. The message says why."""


def _read_safetensors(path: Path, prefix: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata, and the tensors whose names start with `prefix`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a mapping)
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    # an unknown number format is an AttributeError or a KeyError, a shape that PyTorch does not have a RuntimeError
    except (safetensors.SafetensorError, OSError, RuntimeError, AttributeError, KeyError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise _DamagedError(str(error)) from error


def _verify_checksums(tensors: Mapping[str, Tensor], checksums: object, prefix: str) -> None:
    if not isinstance(checksums, dict):
        raise _DamagedError("it has no checksums")
    expected = {name: checksum for name, checksum in checksums.items() if name.startswith(prefix)}
    if different := expected.keys() ^ tensors.keys():
        raise _DamagedError(f"{sorted(different)[0]} is missing, or has no checksum")
    for name, tensor in tensors.items():
        if _crc32(tensor) != expected[name]:
            raise _DamagedError(f"wrong checksum of {name}")


def _remedy(path: Path) -> str:
    """What the user can do about a checkpoint that cannot be read."""
    other_names = [file.stem for file in sorted(path.parent.glob(f"*{SUFFIX}")) if file != path and file.is_file()]
    if path.suffix != SUFFIX:
        return "give the folder of a run, or one of its checkpoints"
    if not other_names:
        return "its folder has no other checkpoint: train again (`overwrite=True`, or another `out_dir`)"
    copy = f", or to resume from it, copy {path.with_stem(other_names[0])} over {path}" if path.stem == "last" else ""
    return f"its folder also has {', '.join(other_names)}: use `checkpoint={other_names[0]!r}`{copy}"


def _parse_json(text: str) -> dict[str, Any]:
    """The JSON object under the key, after a check of its checksum. It is empty if the format is another one."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"its metadata is not JSON: {error}") from error
    content = whole.get("about") if isinstance(whole, dict) else None
    if not isinstance(content, dict):
        return {}
    try:
        is_intact = zlib.crc32(_canonical_bytes(content)) == whole.get("crc32") and files.canonical_json(whole) == text
    except ValueError:  # NaN or an infinity, which this program does not write
        is_intact = False
    if not is_intact:
        raise _DamagedError("wrong checksum of its metadata")
    return content


def _canonical_bytes(content: object) -> bytes:
    return files.canonical_json(content).encode()


def _crc32(tensor: Tensor) -> int:
    """A checksum of a tensor on the CPU: of its data, its dtype and its shape."""
    header = f"{tensor.dtype} {list(tensor.shape)}".encode()
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, zlib.crc32(header))
