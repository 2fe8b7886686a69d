"""Fuzz targets: the checkpoint file, its header, its metadata, its tensors; the other files of a run."""

import json
import random
import struct
from typing import Any

import torch
from torch import Tensor

import nanogpt_lite as ng
from fuzzing.fixtures import MODERN_OPTIONS, RUN, resume, train
from fuzzing.mutations import any_json, any_text, changed_json, damaged, damaged_json_file
from fuzzing.target import Snapshot, Target
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.config.config_file import read_config_file
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.runs import run_summary
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.tracking import metrics_file

LAST = "last.safetensors"
ODD_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn)


def use_checkpoint() -> None:
    """Call all that reads a checkpoint, also what comes after a refusal; the first refusal is raised."""
    refusals: list[ng.NanoGPTLiteError] = []
    path = RUN / LAST
    # the work that a valid config may ask for has no limit
    quick = {"max_iters": 4, "batch_size": 4, "gradient_accumulation_steps": 1, "eval_iters": 1, "compile": False}
    for use in (
        lambda: run_summary.format_text(run_summary.summary(path)),
        lambda: "".join(ng.stream(path, max_new_tokens=2, device="cpu", threads=1)),
        lambda: ng.evaluate(path, device="cpu", threads=1),
        lambda: resume(quick),
    ):
        try:
            use()
        except ng.NanoGPTLiteError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def odd_tensor(rng: random.Random, tensor: Tensor) -> Tensor:
    """A tensor of another type, shape or with other values."""
    changes = [
        lambda: tensor.to(rng.choice(ODD_DTYPES)),
        lambda: tensor.flatten(),
        lambda: tensor.flatten()[:0],
        lambda: tensor.unsqueeze(0),
        lambda: tensor.repeat([2] + [1] * (tensor.dim() - 1)) if tensor.dim() else tensor,
        lambda: torch.full_like(tensor, rng.choice([0.0, float("nan"), float("inf"), -1e38, 1e30])),
        lambda: torch.zeros(rng.choice([(), (0,), (1,), (3, 0, 2), (2,) * 9])),
    ]
    return rng.choice(changes)().clone()


class CheckpointBytes(Target[bytes]):
    """The checkpoint file with damaged bytes: each damage is noticed."""

    name, share = "checkpoint-bytes", 140

    def __init__(self) -> None:
        train(MODERN_OPTIONS)
        self.path = RUN / LAST
        self.content = self.path.read_bytes()

    def generate(self, rng: random.Random) -> bytes:
        return damaged(rng, self.content)

    def run(self, example: bytes) -> None:
        self.path.write_bytes(example)
        checkpoint_file.read_checkpoint(self.path)
        assert example == self.content, "the damage was not noticed"


class CheckpointHeader(Target[bytes]):
    """The checkpoint file with another safetensors header, of the right length. The checksums are the old ones."""

    name, share = "checkpoint-header", 90

    def __init__(self) -> None:
        train(MODERN_OPTIONS)
        self.path = RUN / LAST
        content = self.path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        self.header, self.data = content[8 : 8 + length], content[8 + length :]

    def generate(self, rng: random.Random) -> bytes:
        return damaged_json_file(rng, self.header)

    def run(self, example: bytes) -> None:
        self.path.write_bytes(struct.pack("<Q", len(example)) + example + self.data)
        tensors = load_checkpoint(self.path).checkpoint.tensors
        assert sum(tensor.nbytes for tensor in tensors.values()) == len(self.data), "the damage was not noticed"


class CheckpointMetadata(Target[dict[str, Any]]):
    """A checkpoint with meaningless metadata, and with correct checksums."""

    name, share = "checkpoint-metadata", 25

    def __init__(self) -> None:
        train(MODERN_OPTIONS)
        self.saved = checkpoint_file.read_checkpoint(RUN / LAST)
        self.tensors = {name: tensor.clone() for name, tensor in self.saved.tensors.items()}
        self.files = Snapshot(RUN.parent)

    def generate(self, rng: random.Random) -> dict[str, Any]:
        metadata = self.saved.metadata.to_json()
        if rng.random() < 0.3:  # an option: most of them pass the checks of the other parts
            name = rng.choice(list(metadata["config"]))
            metadata["config"] = {**metadata["config"], name: any_json(rng)}
            return metadata
        changed: dict[str, Any] = changed_json(rng, metadata)
        return changed

    def run(self, example: dict[str, Any]) -> None:
        self.files.restore()
        checkpoint_file.write_tensors_and_json(RUN / LAST, self.tensors, example)
        use_checkpoint()


class CheckpointTensors(Target[dict[str, Tensor]]):
    """A checkpoint with tensors that are missing, renamed, swapped, or of another type or shape."""

    name, share = "checkpoint-tensors", 10

    def __init__(self) -> None:
        train(MODERN_OPTIONS)
        self.saved = checkpoint_file.read_checkpoint(RUN / LAST)
        self.tensors = {name: tensor.clone() for name, tensor in sorted(self.saved.tensors.items())}
        self.files = Snapshot(RUN.parent)

    def generate(self, rng: random.Random) -> dict[str, Tensor]:
        tensors, names = dict(self.tensors), list(self.tensors)
        for _ in range(rng.choice([1, 1, 2])):
            name, source = rng.choice(names), rng.choice(names)
            match rng.randrange(5):
                case 0:
                    tensors.pop(name, None)
                case 1:
                    tensors[rng.choice(["model.", "optimizer.", ""]) + any_text(rng, 2)] = self.tensors[name].clone()
                case 2:
                    tensors[name] = self.tensors[source].clone()
                case _:
                    tensors[name] = odd_tensor(rng, self.tensors[name])
        return tensors

    def run(self, example: dict[str, Tensor]) -> None:
        self.files.restore()
        checkpoint_file.write_checkpoint(RUN / LAST, example, self.saved.metadata)
        use_checkpoint()


class RunFiles(Target[dict[str, bytes]]):
    """The folder of a run with one damaged file, of any kind: the run is summarized, resumed or refused."""

    name, share = "run-files", 5

    def __init__(self) -> None:
        train(MODERN_OPTIONS)
        self.files = Snapshot(RUN)

    def generate(self, rng: random.Random) -> dict[str, bytes]:
        name = rng.choice(self.files.names())
        change = damaged_json_file if name.endswith(".json") else damaged
        return {name: change(rng, self.files.content(name))}

    def run(self, example: dict[str, bytes]) -> None:
        self.files.restore(example)
        assert isinstance(ng.Run(RUN).metrics, list)
        use_checkpoint()


class MetricsFile(Target[bytes]):
    """metrics.jsonl with any lines: it can always be read, and cut at a step."""

    name, share = "metrics-file", 80

    def __init__(self) -> None:
        self.path = train(MODERN_OPTIONS) / "metrics.jsonl"
        self.lines = self.path.read_bytes().splitlines()

    def generate(self, rng: random.Random) -> bytes:
        lines = list(self.lines)
        for _ in range(rng.randint(1, 3)):
            number = rng.randrange(len(lines))
            lines[number] = damaged_json_file(rng, self.lines[rng.randrange(len(self.lines))])
            if rng.random() < 0.2:
                lines[number] = json.dumps(any_json(rng)).encode()
        return rng.choice([b"\n", b"\n", b"\r\n", b""]).join(lines)

    def run(self, example: bytes) -> None:
        self.path.write_bytes(example)
        assert all(isinstance(record["step"], int) for record in metrics_file.read_metrics(self.path))
        assert isinstance(ng.Run(RUN).best_val_loss, int | float | None)
        metrics_file.MetricsFile(self.path, keep_until=2).close()
        assert all(record["step"] <= 2 for record in metrics_file.read_metrics(self.path))


class ConfigFile(Target[bytes]):
    """The config.json of a run: its options are read, and make the same config again."""

    name, share = "config-file", 60

    def __init__(self) -> None:
        self.path = train(MODERN_OPTIONS) / "config.json"
        self.content = self.path.read_bytes()

    def generate(self, rng: random.Random) -> bytes:
        return damaged_json_file(rng, self.content)

    def run(self, example: bytes) -> None:
        self.path.write_bytes(example)
        config = TrainConfig.from_dict(read_config_file(self.path))
        assert TrainConfig.from_dict(json.loads(json.dumps(config.stored()))).stored() == config.stored()
        assert ng.Run(RUN).data_folder.parts is not None
