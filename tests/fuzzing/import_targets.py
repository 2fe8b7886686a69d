"""Fuzz targets: checkpoints of nanoGPT and of Hugging Face transformers."""

import pickle
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nanogpt_lite as ng
from fuzzing.checkpoint_targets import odd_tensor
from fuzzing.fixtures import PLAIN_OPTIONS, RUN, train
from fuzzing.mutations import changed_json, damaged, damaged_json_file
from fuzzing.target import Snapshot, Target
from nanogpt_lite.api import setup
from nanogpt_lite.interop import conversion, nanogpt_import, nanogpt_tokenizer

CKPT = Path("theirs/ckpt.pt")
META = Path("theirs/data/bottles/meta.pkl")


class NanoGPTCheckpoint(Target[bytes | dict[str, Any]]):
    """A ckpt.pt of nanoGPT with damaged bytes, with other values, or with odd tensors."""

    name, share = "nanogpt-checkpoint", 15

    def __init__(self) -> None:
        train(PLAIN_OPTIONS)
        self.path = conversion.to_nanogpt(RUN, CKPT.parent)
        self.content = self.path.read_bytes()
        # just written by this program; weights_only executes no code in it
        self.values: dict[str, Any] = torch.load(self.path, weights_only=True)

    def generate(self, rng: random.Random) -> bytes | dict[str, Any]:
        if rng.random() < 0.4:
            return damaged(rng, self.content)
        if rng.random() < 0.7:
            changed: dict[str, Any] = changed_json(rng, self.values)
            return changed
        values = {**self.values, "model": dict(self.values["model"])}
        name = rng.choice(list(values["model"]))
        values["model"][name] = _tensor_in_a_pickle(rng, values["model"][name])
        return values

    def run(self, example: bytes | dict[str, Any]) -> None:
        if isinstance(example, bytes):
            self.path.write_bytes(example)
        else:
            torch.save(example, self.path)
        nanogpt_import.import_nanogpt_checkpoint(self.path, META)


def _tensor_in_a_pickle(rng: random.Random, tensor: Tensor) -> Tensor:
    """An odd tensor, also of the kinds that a pickle can hold and safetensors cannot."""
    match rng.randrange(6):
        case 0:
            return torch.zeros(1).expand(rng.choice([2, 10**6, 10**12]))  # one value that claims to be many
        case 1:
            return tensor.to_sparse()
        case 2:
            return tensor.to(torch.complex64)
        case 3:
            return torch.empty(rng.choice([(2, 2), (10**6, 10**6)]), device="meta")
    return odd_tensor(rng, tensor)


class NanoGPTMeta(Target[bytes]):
    """A meta.pkl of nanoGPT with damaged bytes, or with other values."""

    name, share = "nanogpt-meta", 60

    def __init__(self) -> None:
        train(PLAIN_OPTIONS)
        conversion.to_nanogpt(RUN, CKPT.parent)
        self.content = META.read_bytes()
        self.values = pickle.loads(self.content)  # just written by this program
        self.vocab_size = len(self.values["itos"])

    def generate(self, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return damaged(rng, self.content)
        return pickle.dumps(changed_json(rng, self.values), protocol=rng.randint(0, pickle.HIGHEST_PROTOCOL))

    def run(self, example: bytes) -> None:
        META.write_bytes(example)
        found = nanogpt_tokenizer.find_tokenizer(CKPT, META, dataset="bottles", vocab_size=self.vocab_size)
        assert found.decode(found.encode("green")) == "green"


class HuggingFaceFolder(Target[dict[str, bytes]]):
    """A folder of transformers with one damaged file."""

    name, share = "hugging-face-folder", 30

    def __init__(self) -> None:
        train({**PLAIN_OPTIONS, "tokenizer": "bpe-260"})
        folder = conversion.to_huggingface(ng.Run(RUN), "theirs")
        for name in ("README.md", "loss.png", "tokenizer_config.json"):  # not read
            (folder / name).unlink(missing_ok=True)
        self.files = Snapshot(folder)

    def generate(self, rng: random.Random) -> dict[str, bytes]:
        name = rng.choice(self.files.names())
        change = damaged_json_file if name.endswith(".json") else damaged
        return {name: change(rng, self.files.content(name))}

    def run(self, example: dict[str, bytes]) -> None:
        self.files.restore(example)
        setup.read_initial_weights("theirs", 4)
