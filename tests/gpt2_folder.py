"""A small GPT-2 in the format of Hugging Face, as transformers writes it, and options to train from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import nanogpt_lite as ng
from nanogpt_lite.tokenizers import bpe
from nanogpt_lite.tokenizers.bpe import END_OF_TEXT

SHORT: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "max_iters": 4,
    "eval_interval": 2,
    "batch_size": 4,
    "warmup_iters": 1,
}
SHAPE: dict[str, Any] = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
NANOGPTS = {**SHORT, **SHAPE, "preset": "cpu", "dropout": 0.0}


@pytest.fixture
def gpt2(text_file):
    """A small GPT-2 with random weights, as transformers and its tokenizers write it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    merges = bpe.train_bpe("bpe-300", [text_file.read_text()], 300).to_json()["merges"]
    symbols = [*dict.fromkeys([*bpe.unicode_to_bytes(), *(merge.replace(" ", "") for merge in merges)]), END_OF_TEXT]
    form = transformers.GPT2Config(vocab_size=len(symbols), n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(form).eval()
    for parameter in model.parameters():  # biases and gains too
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained("theirs")
    Path("theirs/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    Path("theirs/vocab.json").write_text(
        json.dumps({symbol: number for number, symbol in enumerate(symbols)}), encoding="utf-8"
    )
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]))[0] if isinstance(model, ng.GPT) else model(torch.tensor([ids])).logits


def start_from(init_from, **options):
    """A run from these weights, whose learning rate is too small to change them."""
    still = {"learning_rate": 1e-12, "decay_lr": False, "weight_decay": 0.0}
    return ng.train("bottles.txt", init_from=init_from, **{**SHORT, **still, **options})
