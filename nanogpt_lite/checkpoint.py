"""One atomic file of plain tensors and JSON. It knows no network: what the names mean, `state` says.

The format is safetensors, which holds no code. The JSON is canonical and stands under one metadata key,
so that the same state gives the same file, bit for bit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from nanogpt_lite import files
from nanogpt_lite.errors import UserError

KEY = "nanogpt_lite"
FORMAT = 1  # of what stands under the key
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file: named tensors, and a JSON object about them."""

    path: Path
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically. `OSError` if it cannot be written; an earlier file then stays as it was."""
    on_cpu = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with files.atomic(path) as temporary:
        try:
            safetensors.torch.save_file(
                on_cpu, temporary, metadata={KEY: files.canonical_json({**about, "format": FORMAT})}
            )
        except safetensors.SafetensorError as error:  # how it tells that a disk is full
            raise OSError(f"{path} cannot be written: {error}") from error


def load(path: Path, prefix: str = "") -> Checkpoint:
    """Read a checkpoint, or of its tensors only those whose names begin with `prefix`.

    `UserError` if there is none, or if the file is damaged or somebody else's.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train first, or give another --out_dir")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            tensors = {name: file.get_tensor(name) for name in names}
    except KeyError:
        raise UserError(f"{path} was not written by this program; give a checkpoint of `nanogpt-lite train`") from None
    except (safetensors.SafetensorError, ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged or no checkpoint ({error}); use another one of this run (--checkpoint best, "
            "--checkpoint last); to train on from that one, copy it over last.safetensors"
        ) from error
    if isinstance(about, dict) and about.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has format {about['format']}, this program reads {FORMAT}; install a newer one")
    if not isinstance(about, dict) or "format" not in about:
        raise UserError(f"{path} was not written by this program; give a checkpoint of `nanogpt-lite train`")
    del about["format"]
    return Checkpoint(path, tensors, about)
