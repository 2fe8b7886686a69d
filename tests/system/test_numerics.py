"""How near each number format comes to the same training in 64 bits, for every recipe: see docs/guarantees.md.

The same weights, batches and steps; dropout is off, since its masks depend on the format.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import nanogpt_lite as ng
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.optim.muon import Muon
from nanogpt_lite.tracking.records import EvalRecord
from nanogpt_lite.trainer import loop
from nanogpt_lite.trainer.state import init_state

STEPS = 50
PLAIN: dict[str, Any] = {"dropout": 0.0, "ngram_dropout": 0.0, "max_iters": STEPS, "eval_interval": STEPS}
SMALL: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 64,
    "block_size": 32,
    "batch_size": 8,
    "threads": 1,
    "warmup_iters": 5,
}
NANOGPTS = {"float32": 1e-5, "bfloat16": 1e-3, "float16": 5e-4}  # nats per token
MODERN = {"float32": 3e-4, "bfloat16": 1e-2, "float16": 5e-3}
TOLERANCE = {
    "cpu": NANOGPTS,
    "shakespeare_char": NANOGPTS,
    "tutorial": NANOGPTS,
    "modern-cpu": MODERN,
    "modern": MODERN,
}
QUICK = ("cpu", "modern-cpu")
RECIPES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TOLERANCE]
DTYPES = ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)]  # slow on a CPU
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def val_loss(data, options, dtype, device, out_dir):
    bits64 = dtype == "float64"
    options = {**options, "device": device, "dtype": "float32" if bits64 else dtype}
    begun = init_state(TrainConfig.from_dict(options), data.tokenizer)
    if bits64:
        begun.model.double()
        if isinstance(begun.optimizer, Muon):
            begun.optimizer.newton_schulz_dtype = torch.float64
    records = loop.train_loop(begun, data.train, data.val, out_dir=out_dir)
    (last,) = (record for record in records if isinstance(record, EvalRecord))
    return last.val_loss


@pytest.fixture(scope="module")
def exact():
    """The losses in float64, each computed once."""
    return {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_is_within_the_documented_tolerance_of_float64(text_file, tmp_path, exact, recipe, dtype, device):
    data, options = ng.prepare("bottles.txt"), {**ng.PRESETS[recipe], **PLAIN, **SMALL}
    if recipe not in exact:
        exact[recipe] = val_loss(data, options, "float64", "cpu", tmp_path)
    loss = val_loss(data, options, dtype, device, tmp_path)
    assert loss == pytest.approx(exact[recipe], abs=TOLERANCE[recipe][dtype])
    assert exact[recipe] < 3.2  # it has learned something: the initial loss is the logarithm of the vocabulary size


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cpu", "modern-cpu"])
def test_loss_at_full_size_is_within_the_tolerance_too(text_file, tmp_path, recipe):
    preset, data = ng.PRESETS[recipe], ng.prepare("python_docs")
    options = {**preset, **PLAIN, "lr_decay_iters": preset["max_iters"], "eval_iters": 20}
    exact = val_loss(data, options, "float64", "cpu", tmp_path)
    for dtype in ("float32", "bfloat16"):  # float16 is slow on a CPU
        assert val_loss(data, options, dtype, "cpu", tmp_path) == pytest.approx(exact, abs=TOLERANCE[recipe][dtype])


def test_the_documentation_promises_what_is_tested():
    page = (Path(__file__).parents[2] / "docs/guarantees.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.*`) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    promised = {
        name: [float(number) for number in row] for names, *row in table for name in re.findall("`(.*?)`", names)
    }
    assert promised == {name: list(formats.values()) for name, formats in TOLERANCE.items()}
    assert TOLERANCE.keys() == ng.PRESETS.keys() - {"finetune"}  # whose network is GPT-2's
