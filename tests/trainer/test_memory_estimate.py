"""The estimate of a step's memory, compared with the tensors of real networks and optimizers.

Its activations and its peak are compared with counted ones in `test_fake_cuda`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nanogpt_lite.checkpoint.validation import meta_model
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.presets import GPT2_NETWORKS, GPT2_VOCAB_SIZE, PRESETS, config_with_preset
from nanogpt_lite.optim import build
from nanogpt_lite.tokenizers import hub
from nanogpt_lite.trainer.memory_estimate import MemoryEstimate, estimate_memory, fitting_micro_batch

DOCUMENTATION = Path(__file__).parents[2] / "docs/devices.md"
GB = 10**9
XL = config_with_preset("finetune", {**GPT2_NETWORKS["gpt2-xl"], "dtype": "bfloat16"})
OPTIONS = (
    {"bias": True},
    {"norm": "rms"},
    {"position": "rotary"},
    {"tied": False},
    {"ngram": 3, "ngram_rows": 1000},
    {"optimizer": "muon"},
)


@pytest.mark.parametrize("options", [*({"preset": name} for name in PRESETS), *OPTIONS], ids=str)
def test_weights_gradients_and_state_of_the_optimizer_are_those_of_the_network(options):
    options = dict(options)
    config = config_with_preset(options.pop("preset", "cpu"), options)
    model = meta_model(config, 65)
    estimate = estimate_memory(config, 65)
    weights = 4 * model.num_parameters()
    assert estimate.weights == weights
    states = [
        shape
        for shapes in build.optimizer_state_shapes(build.make_optimizer(model, config)).values()
        for shape in shapes.values()
        if shape  # the number of steps is a scalar
    ]
    assert estimate.lasting == 2 * weights + 4 * sum(shape.numel() for shape in states)


@pytest.mark.parametrize(
    ("name", "parameters"),  # as transformers counts them
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_networks_of_gpt2(name, parameters):
    assert list(GPT2_NETWORKS) == list(hub.GPT2_REPOS)
    assert estimate_memory(TrainConfig.from_dict(GPT2_NETWORKS[name]), GPT2_VOCAB_SIZE).weights == 4 * parameters


@pytest.mark.parametrize("config", [XL, *(config_with_preset(name, {}) for name in PRESETS)])
def test_peak_is_above_what_lasts_and_below_the_sum_of_the_parts(config):
    estimate = estimate_memory(config, GPT2_VOCAB_SIZE)
    parts = dataclasses.asdict(estimate)
    total = sum(parts[name] for name in ("weights", "gradients", "optimizer", "activations", "logits"))
    assert estimate.lasting < estimate.peak < total


def test_less_memory_with_fewer_rows_and_with_activations_that_are_computed_again():
    peaks = [
        [
            estimate_memory(
                XL.replace({"batch_size": 32, "checkpoint_activations": again}), 50257, micro_batch=rows
            ).peak
            for rows in (1, 2, 4, 8, 16)
        ]
        for again in (False, True)
    ]
    for kept, recomputed in zip(*peaks, strict=True):
        assert recomputed < kept
    assert all(row == sorted(row) for row in peaks)
    per_row = [(row[-1] - row[-2]) / 8 for row in peaks]
    assert per_row[0] > 6 * per_row[1]


def test_several_gpus_share_the_rows_and_have_buckets_of_gradients():
    config = XL.replace({"batch_size": 8, "gradient_accumulation_steps": 1})
    alone, together = estimate_memory(config, 50257), estimate_memory(config, 50257, world_size=4)
    assert (alone.micro_batch, together.micro_batch) == (8, 2)
    assert together.lasting - alone.lasting == alone.weights
    assert together.gradients > alone.gradients


@pytest.mark.parametrize("memory", [30 * GB, 40 * GB, 80 * GB])
def test_fitting_micro_batch_is_the_largest_of_those_that_the_trainer_tries(memory):
    config = XL.replace({"batch_size": 44, "gradient_accumulation_steps": 2})

    def fits(rows: int) -> bool:
        return estimate_memory(config, 50257, micro_batch=rows).fits(memory)

    tried = [44, 22, 11, 6, 3, 2, 1]
    assert fitting_micro_batch(config, 50257, memory) == next((rows for rows in tried if fits(rows)), 0)


def test_nine_tenths_of_the_memory_can_be_used():
    estimate = MemoryEstimate(1, 1, 1, 1, 1, lasting=3, peak=900, micro_batch=1)
    assert estimate.fits(1000)
    assert not estimate.fits(999)


def largest_micro_batch(config: TrainConfig, gigabytes: int) -> int:
    """The largest number of rows that fits; by search, for numbers that the trainer may not try."""
    rows = 0
    while estimate_memory(config, GPT2_VOCAB_SIZE, micro_batch=rows + 1).fits(gigabytes * GB):
        rows += 1
    return rows


@pytest.mark.parametrize("name", GPT2_NETWORKS)
@pytest.mark.parametrize("recomputes", [False, True])
def test_table_in_the_documentation(name, recomputes):
    options: dict[str, Any] = {"dtype": "bfloat16", "batch_size": 1024, "gradient_accumulation_steps": 2}
    options["checkpoint_activations"] = recomputes
    config = config_with_preset("finetune", {**GPT2_NETWORKS[name], **options})
    one, eight = (estimate_memory(config, GPT2_VOCAB_SIZE, micro_batch=rows) for rows in (1, 8))
    sizes = " | ".join(f"{size / GB:.1f} GB" for size in (one.lasting, one.peak, eight.peak))
    rows = " | ".join(str(largest_micro_batch(config, memory) or "none") for memory in (24, 40, 80))
    line = f"| `{name}` | {recomputes} | {sizes} | {rows} |"
    assert line in DOCUMENTATION.read_text(encoding="utf-8").splitlines()


def test_gpt2_xl_can_be_finetuned_on_80_gb():
    """With the preset as it is, one sequence at a time, even without computing activations again."""
    assert fitting_micro_batch(XL, GPT2_VOCAB_SIZE, 80 * GB) == 1
    recomputed = XL.replace({"batch_size": 64, "checkpoint_activations": True})
    assert fitting_micro_batch(recomputed, GPT2_VOCAB_SIZE, 80 * GB) == 64
    assert estimate_memory(XL, GPT2_VOCAB_SIZE).lasting > 24 * GB
