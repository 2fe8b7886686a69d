"""One atomic file of plain tensors and JSON. It knows no network: what the names mean, `state` says.

The format is safetensors, which holds no code. The JSON is canonical and stands under one metadata key,
so that the same state gives the same file, bit for bit. It holds a checksum of itself and of each tensor: a file in
which a single bit has flipped is refused.
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
from nanogpt_lite.errors import UserError

METADATA_KEY = "nanogpt_lite"
FORMAT_VERSION = 3  # of what stands under the key
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file: named tensors, and a JSON object about them."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically. `OSError` if it cannot be written; an earlier file then stays as it was."""
    on_cpu = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    about = {
        **about,
        "format": FORMAT_VERSION,
        "tensors_crc32": {name: _crc32(tensor) for name, tensor in on_cpu.items()},
    }
    text = files.canonical_json({"about": about, "crc32": zlib.crc32(_canonical_bytes(about))})
    with files.atomic_write(path) as temporary:
        write_tensors(temporary, on_cpu, {METADATA_KEY: text})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of safetensors. `OSError` if it cannot be written."""
    try:
        safetensors.torch.save_file(tensors, path, metadata=metadata)
    except safetensors.SafetensorError as error:  # how it tells that a disk is full
        number = re.search(r"os error (\d+)", str(error))
        why = int(number[1]) if number else errno.EIO
        raise OSError(why, os.strerror(why), str(path)) from error


def read_checkpoint(path: Path, prefix: str = "") -> Checkpoint:
    """Read a checkpoint, or of its tensors only those whose names begin with `prefix`.

    `UserError` if there is none, or if the file is damaged or somebody else's. `OSError` if it may not be read.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train first, or give another --out_dir")
    path.open("rb").close()  # what may not be read is not damaged
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise UserError(f"{path} was not written by this program; give a checkpoint of `nanogpt-lite train`")
            about = _parse_metadata(metadata[METADATA_KEY], path)
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            tensors = {name: file.get_tensor(name) for name in names}
        sums = about.pop("tensors_crc32")
        for name in {*names, *(name for name in sums if name.startswith(prefix))}:
            if _crc32(tensors[name]) != sums[name]:
                raise ValueError(f"the checksum of {name} is another one")
    except UserError:
        raise
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        RuntimeError,
    ) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({error}); {_remedy(path)}") from error
    return Checkpoint(path, tensors, about)


def _remedy(path: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    others = [other.stem for other in sorted(path.parent.glob(f"*{SUFFIX}")) if other != path and other.is_file()]
    if path.suffix != SUFFIX:
        return "give the folder of a run, or one of its checkpoints"
    if not others:
        return "there is no other one beside it: train again (--overwrite, or another --out_dir)"
    copy = f", or to train on from it, copy {path.with_stem(others[0])} over {path}" if path.stem == "last" else ""
    return f"beside it there is {', '.join(others)}: use that (--checkpoint {others[0]}){copy}"


def _parse_metadata(text: str, path: Path) -> dict[str, Any]:
    """The JSON object under the key, once its checksum is seen to be right."""
    whole = json.loads(text)
    about = whole.get("about", {}) if isinstance(whole, dict) else {}
    if about and (zlib.crc32(_canonical_bytes(about)) != whole["crc32"] or files.canonical_json(whole) != text):
        raise ValueError("the checksum of its description is another one")
    if not isinstance(about, dict) or about.pop("format", None) != FORMAT_VERSION:
        raise UserError(
            f"{path} is of another format than {FORMAT_VERSION}, which this version of the program reads; "
            "use it with the version that wrote it, or train again"
        )
    return about


def _canonical_bytes(about: Any) -> bytes:
    return files.canonical_json(about).encode()


def _crc32(tensor: Tensor) -> int:
    """A checksum of a tensor on the CPU: of its numbers, their format, and its shape."""
    kind = f"{tensor.dtype} {list(tensor.shape)}".encode()
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, zlib.crc32(kind))
