"""How near each number format comes to the same training in 64 bits: what README promises, for every recipe.

The same weights, batches and steps; dropout is off, since its masks depend on the format.
"""

import re
from pathlib import Path

import pytest
import torch

import nanogpt_lite as ng
from nanogpt_lite import state, trainer
from nanogpt_lite.config import TrainConfig
from nanogpt_lite.metrics import EvalRecord

STEPS = 50
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 32, "batch_size": 8, "threads": 1, "dropout": 0.0}
SMALL |= {"ngram_dropout": 0.0, "max_iters": STEPS, "eval_interval": STEPS, "warmup_iters": 5}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("shakespeare_char", "modern")]
RECIPES = ["cpu", "modern-cpu", *SLOW]
TOLERANCE = {"float32": 3e-4, "bfloat16": 1e-2, "float16": 5e-3}  # nats per token
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def val_loss(data, recipe, dtype, device, out_dir):
    bits64 = dtype == "float64"
    options = {**ng.PRESETS[recipe], **SMALL, "device": device, "dtype": "float32" if bits64 else dtype}
    begun = state.start(TrainConfig.from_dict(options), data.tokenizer)
    if bits64:
        begun.model.double()
        begun.optimizer.products = torch.float64  # of Muon
    records = trainer.train(begun, data.train, data.val, out_dir=out_dir)
    (last,) = (record for record in records if isinstance(record, EvalRecord))
    return last.val_loss


@pytest.fixture(scope="module")
def exact():
    """The losses in 64 bits, each computed once."""
    return {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_is_that_of_64_bits_within_what_is_promised(text_file, tmp_path, exact, recipe, dtype, device):
    data = ng.prepare("bottles.txt")
    if recipe not in exact:
        exact[recipe] = val_loss(data, recipe, "float64", "cpu", tmp_path)
    got = val_loss(data, recipe, dtype, device, tmp_path)
    assert got == pytest.approx(exact[recipe], abs=TOLERANCE[dtype])
    assert exact[recipe] < 3.2  # it has learned something: at the beginning it is the logarithm of the vocabulary


def test_readme_promises_what_is_tested():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    promised = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|$", readme, re.MULTILINE))
    assert {name: float(value) for name, value in promised.items()} == TOLERANCE
