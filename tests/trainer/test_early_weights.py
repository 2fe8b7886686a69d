"""Early weights: after which steps they are kept, and that they are those of the run and change nothing in it."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import forked_ranks
import pytest
import rank_training
import torch
from tiny import TINY, to_arguments
from tiny_training import TOKENIZER, TRAIN, VAL, small_config, train

import nanogpt_lite as ng
from nanogpt_lite.api import main_job
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.checkpoint.restore import load_weights
from nanogpt_lite.cli.main import main
from nanogpt_lite.config.keyword_types import SampleOptions
from nanogpt_lite.device import devices
from nanogpt_lite.errors import ExternalError
from nanogpt_lite.runs.run_folder import checkpoints_in, early_weights_in
from nanogpt_lite.tracking.records import CheckpointRecord
from nanogpt_lite.trainer import early_weights, evaluation, loop
from nanogpt_lite.trainer.checkpoint_writer import CheckpointWriter
from nanogpt_lite.trainer.state import init_state

CONFIG = small_config(max_iters=45, eval_interval=20, keep_early=1.0, dropout=0.1)
NAMES = [f"early_{step:06d}" for step in (5, 10, 20, 40)]


@pytest.fixture(autouse=True)
def one_thread():
    """More threads only wait for each other, with networks of this size."""
    with devices.compute_settings(1, tf32=False):
        yield


def megabytes(config) -> float:
    """The size of the weights of a network, each a float16."""
    return sum(parameter.numel() * 2 for parameter in init_state(config, TOKENIZER).model.parameters()) / 1e6


def names_in(folder) -> list[str]:
    return [path.stem for path in early_weights_in(folder)]


def assert_equal_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def in_float16(tensors) -> dict[str, torch.Tensor]:
    """The values in float32 that float16 has for them."""
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def due_steps(folder, config) -> list[int]:
    """The steps after which weights are kept."""
    state, due = init_state(config, TOKENIZER), []
    for step in range(config.max_iters + 1):
        state.step = step
        if early_weights.is_due(state) and early_weights.has_room(state, folder):
            (folder / f"early_{step:06d}.safetensors").touch()
            due.append(step)
    return due


def test_they_are_kept_after_5_10_20_and_40_steps_each_with_a_record_once_it_is_on_disk(tmp_path):
    state, early = init_state(CONFIG, TOKENIZER), []
    for record in loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path):
        if isinstance(record, CheckpointRecord) and record.name.startswith("early_"):
            early.append(record)
            assert names_in(tmp_path) == [record.name for record in early]
            assert read_checkpoint(tmp_path / f"{record.name}.safetensors").metadata.step == record.step == state.step
    assert [record.name for record in early] == NAMES
    assert [record.step for record in early] == [5, 10, 20, 40]
    assert [record.path for record in early] == [str(tmp_path / f"{name}.safetensors") for name in NAMES]
    assert sorted(path.stem for path in checkpoints_in(tmp_path)) == ["best", "last"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("networks", "expected"),
    [(0, []), (0.99, []), (1, [5]), (1.99, [5]), (2, [5, 15]), (3.5, [5, 10, 22]), (4, [5, 10, 20, 40])],
)
def test_as_many_are_kept_as_the_limit_in_megabytes_allows_and_they_reach_to_the_end(tmp_path, networks, expected):
    """In equal ratios from step 5 to the end at 45: 5, 15, 45; 5, 10.4, 21.6, 45."""
    config = CONFIG.replace({"keep_early": networks * megabytes(CONFIG) * (1 + 1e-9)})
    train(tmp_path, config)
    assert names_in(tmp_path) == [f"early_{step:06d}" for step in expected]


@pytest.mark.parametrize("max_iters", [1, 4, 5, 6, 9, 310, 5000])
@pytest.mark.parametrize("networks", [1, 2, 3, 4, 5, 9])
def test_steps_are_doubled_or_more_up_to_rounding_and_the_next_one_would_be_at_the_end(tmp_path, max_iters, networks):
    config = CONFIG.replace({"max_iters": max_iters, "keep_early": networks * megabytes(CONFIG) * (1 + 1e-9)})
    due = due_steps(tmp_path, config)
    assert len(due) <= networks
    assert due[:1] == ([5] if max_iters >= 5 else [])
    ratios = [following / step for step, following in itertools.pairwise(due)]
    assert all(ratio > 1.9 for ratio in ratios)
    if len(due) > 1:
        assert due[-1] * max(ratios) * 1.1 > max_iters


def test_run_that_is_made_longer_keeps_no_more_than_the_limit(tmp_path):
    config = CONFIG.replace({"keep_early": 2 * megabytes(CONFIG) * (1 + 1e-9)})
    assert due_steps(tmp_path, config) == [5, 15]
    assert due_steps(tmp_path, config.replace({"max_iters": 5000})) == [5]
    (tmp_path / "early_000015.safetensors").unlink()
    assert due_steps(tmp_path, config.replace({"max_iters": 5000})) == [5, 158]


def test_file_beyond_the_limit_is_neither_written_nor_in_a_record(tmp_path):
    earlier = [tmp_path / f"early_{step:06d}.safetensors" for step in (3, 4)]
    for path in earlier:
        path.touch()
    _, records = train(tmp_path, CONFIG.replace({"keep_early": 2 * megabytes(CONFIG) * (1 + 1e-9)}))
    assert early_weights_in(tmp_path) == earlier
    assert not [record for record in records if _is_early(record)]


def test_without_the_option_none_are_kept(tmp_path):
    assert small_config().keep_early == 0
    train(tmp_path, small_config(max_iters=10))
    assert names_in(tmp_path) == []


def test_they_are_the_weights_of_the_run_at_their_step_in_float16_and_nothing_else(tmp_path):
    train(tmp_path, CONFIG.replace({"keep_every": 5}))
    for step in (5, 10, 20, 40):
        early = read_checkpoint(tmp_path / f"early_{step:06d}.safetensors")
        numbered = read_checkpoint(tmp_path / f"step_{step:06d}.safetensors")
        assert numbered.with_prefix("optimizer.")
        expected = {f"model.{name}": tensor.half() for name, tensor in numbered.with_prefix("model.").items()}
        assert_equal_tensors(early.tensors, expected)
        assert early.metadata == numbered.metadata
        assert (tmp_path / f"early_{step:06d}.safetensors").stat().st_size < (
            0.35 * (tmp_path / f"step_{step:06d}.safetensors").stat().st_size
        )


def test_parameter_that_float16_cannot_hold_stays_as_it_is():
    state = init_state(CONFIG, TOKENIZER)
    large = state.model.get_parameter("transformer.h.0.mlp.c_fc.weight")
    with torch.no_grad():
        large[0, 0] = 1e6
    tensors, _ = early_weights.weights(state)
    kept = tensors.pop("model.transformer.h.0.mlp.c_fc.weight")
    assert torch.equal(kept, large.detach())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


EXPERT = {"ngram_expert": 3, "ngram_expert_weight": 0.4}


@pytest.mark.parametrize(
    ("options", "networks", "expected"),
    [
        ({}, 5, [5, 10, 20, 40]),
        (EXPERT, 5, [5, 10, 20, 40, 45]),
        (EXPERT, 3, [5, 15, 45]),  # the last one has its place among as many as there may be
        (EXPERT, 1, [5]),
        (EXPERT, 0, []),
        ({**EXPERT, "max_iters": 20}, 9, [5, 10, 20]),
        ({**EXPERT, "max_iters": 3}, 9, []),
        ({**EXPERT, "target_loss": 100.0}, 9, [5, 10, 20]),  # it ends after the evaluation of step 20
    ],
)
def test_network_alone_is_kept_at_the_end_if_the_last_checkpoint_has_an_expert(tmp_path, options, networks, expected):
    config = CONFIG.replace({**options, "keep_early": networks * megabytes(CONFIG) * (1 + 1e-9)})
    _, records = train(tmp_path, config)
    assert names_in(tmp_path) == [f"early_{step:06d}" for step in expected]
    assert [record.step for record in records if _is_early(record)] == expected, "each has one record"


def test_stopped_training_keeps_no_network_at_its_end_and_the_one_after_it_does(tmp_path):
    config = CONFIG.replace({**EXPERT, "max_iters": 30})
    state = init_state(config, TOKENIZER)
    list(loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path, stop=lambda: state.step >= 12))
    assert names_in(tmp_path) == ["early_000005", "early_000010"]
    list(loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path))
    assert names_in(tmp_path) == ["early_000005", "early_000010", "early_000020", "early_000030"]
    assert not [record for record in loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path) if _is_early(record)]


def test_val_loss_of_early_weights_is_that_of_the_network_up_to_rounding(tmp_path):
    train(tmp_path, CONFIG.replace({"keep_every": 40}))
    losses = []
    for name in ("early_000040", "step_000040"):
        state = init_state(CONFIG, TOKENIZER)
        load_weights(state.model, read_checkpoint(tmp_path / f"{name}.safetensors"))
        evaluated = evaluation.val_losses(state, VAL)
        assert evaluated is not None
        losses.append(evaluated.loss)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_training_that_keeps_them_is_bit_for_bit_the_same(tmp_path):
    config = CONFIG.replace({"eval_interval": 15})
    _, records = train(tmp_path / "keeps", config)
    _, expected = train(tmp_path / "plain", config.replace({"keep_early": 0}))
    for name in ("last", "best"):
        content = [(tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in ("keeps", "plain")]
        assert content[0] == content[1]
    assert comparable(records) == comparable(expected)


def comparable(records) -> list[dict[str, Any]]:
    """All records but those of early weights, without folders and times, which differ from run to run."""
    differ = {"out_dir", "path", "seconds", "tokens_per_second", "mfu"}
    contents = [record.to_json() for record in records if not _is_early(record)]
    return [{name: value for name, value in content.items() if name not in differ} for content in contents]


def _is_early(record) -> bool:
    return isinstance(record, CheckpointRecord) and record.name.startswith("early_")


def test_no_file_is_written_if_the_loss_is_not_finite(tmp_path):
    state = init_state(CONFIG, TOKENIZER)
    state.step = 5
    state.since_eval.total.fill_(math.nan)
    assert early_weights.is_due(state)
    with pytest.raises(ExternalError, match="not finite by step 5"):
        list(CheckpointWriter(state, tmp_path).save_early_weights())
    assert list(tmp_path.iterdir()) == []


def test_steps_between_and_the_start_are_not_kept(tmp_path):
    due = due_steps(tmp_path, CONFIG.replace({"keep_early": 1e6, "max_iters": 100_000}))
    assert due == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 20_480, 40_960, 81_920]


def test_a_file_is_loaded_and_sampled_and_its_network_starts_another_run(text_file):
    run = ng.train("bottles.txt", **{**TINY, "keep_early": 1, "keep_every": 5})
    assert names_in(run.out_dir) == NAMES[:3]
    for step in (5, 10):
        model, tokenizer = ng.load(run, checkpoint=f"early_{step:06d}", device="cpu")
        expected, _ = ng.load(run, checkpoint=f"step_{step:06d}", device="cpu")
        assert_equal_tensors(model.state_dict(), in_float16(expected.state_dict()))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert tokenizer.decode(tokenizer.encode("9 green")) == "9 green"
    options: SampleOptions = {"start": "9 green", "max_new_tokens": 40, "device": "cpu", "threads": 1}
    texts = [ng.sample(run, checkpoint=f"early_{step:06d}", **options) for step in (5, 20)]
    assert texts[0] != texts[1]
    early = run.out_dir / "early_000005.safetensors"
    changes_nothing: dict[str, Any] = {
        **TINY,
        "max_iters": 1,
        "optimizer": "adamw",
        "learning_rate": 1e-30,
        "min_lr": 1e-30,
    }
    second = ng.train("bottles.txt", **changes_nothing, init_from=str(early))
    weights = read_checkpoint(second.out_dir / "last.safetensors").with_prefix("model.")
    before = in_float16(read_checkpoint(early).with_prefix("model."))
    torch.testing.assert_close(weights, before, rtol=0, atol=1e-20)


def test_the_counts_of_an_n_gram_expert_are_left_out_and_the_network_alone_is_loaded(text_file):
    run = ng.train("bottles.txt", **{**TINY, "ngram_expert": 3, "keep_early": 1, "keep_every": 5})
    last = read_checkpoint(run.out_dir / "last.safetensors")
    assert last.with_prefix("model.expert.")
    early = read_checkpoint(run.out_dir / "early_000005.safetensors")
    assert not [name for name in early.tensors if "expert" in name or not name.startswith("model.")]
    assert (early.metadata.config.ngram_expert, early.metadata.config.ngram_expert_weight) == (0, 0.0)
    numbered = read_checkpoint(run.out_dir / "step_000005.safetensors").with_prefix("model.")
    network = {name: tensor for name, tensor in numbered.items() if not name.startswith("expert.")}
    assert_equal_tensors(early.with_prefix("model."), {name: tensor.half() for name, tensor in network.items()})
    model, _ = ng.load(run, checkpoint="early_000005", device="cpu")
    assert model.expert is None
    assert_equal_tensors(model.state_dict(), in_float16(network))
    assert len(ng.sample(run, checkpoint="early_000005", max_new_tokens=9, device="cpu", threads=1)[0]) == 10


def test_those_of_a_run_without_a_checkpoint_are_neither_lost_nor_mixed_with_others(text_file):
    """As of a run that was killed before its first checkpoint."""
    run = ng.train("bottles.txt", **{**TINY, "keep_early": 1}, out_dir="runs/a")
    for path in checkpoints_in(run.out_dir):
        path.unlink()
    with pytest.raises(
        ng.UserError, match="holds weights of a run that has no checkpoint to resume from; give another"
    ):
        ng.train("bottles.txt", **{**TINY, "max_iters": 4}, out_dir="runs/a")
    assert names_in(run.out_dir) == NAMES[:3]
    ng.train("bottles.txt", **{**TINY, "max_iters": 4}, out_dir="runs/a", overwrite=True)
    assert names_in(run.out_dir) == []


@pytest.mark.slow
@pytest.mark.posix("forks ranks")
def test_ranks_keep_them_once(text_file):
    ng.prepare("bottles.txt")
    options = {"out_dir": "runs/ranks", "keep_early": 1}
    assert forked_ranks.run(2, rank_training.train, options) == [0, 0]
    kept = [record["name"] for record in rank_training.records("runs/ranks", "checkpoint")]
    assert names_in(Path("runs/ranks")) == [name for name in kept if name.startswith("early_")] != []


def test_overwriting_a_run_deletes_them(text_file):
    run = ng.train("bottles.txt", **{**TINY, "keep_early": 1}, out_dir="runs/a")
    assert names_in(run.out_dir) == NAMES[:3]
    ng.train("bottles.txt", **{**TINY, "max_iters": 4}, out_dir="runs/a", overwrite=True)
    assert names_in(run.out_dir) == []


def test_resuming_goes_on_from_the_last_checkpoint_and_keeps_later_ones(text_file):
    whole = ng.train("bottles.txt", **{**TINY, "max_iters": 40, "lr_decay_iters": 40, "keep_early": 1})
    assert names_in(whole.out_dir) == NAMES
    run = ng.train("bottles.txt", **{**TINY, "lr_decay_iters": 40, "keep_early": 1})
    assert names_in(run.out_dir) == NAMES[:3]
    ng.train(out_dir=run.out_dir, init_from="resume", max_iters=40, keep_early=1)
    assert names_in(run.out_dir) == NAMES
    for name in [*NAMES, "last"]:
        content = [read_checkpoint(each.out_dir / f"{name}.safetensors").tensors for each in (run, whole)]
        assert_equal_tensors(content[0], content[1])


def test_a_folder_with_early_weights_alone_cannot_be_resumed(text_file):
    run = ng.train("bottles.txt", **{**TINY, "keep_early": 1}, out_dir="runs/a")
    for path in checkpoints_in(run.out_dir):
        path.unlink()
    with pytest.raises(ng.UserError, match="there is no checkpoint last in"):
        ng.train(out_dir=run.out_dir, init_from="resume", max_iters=40)


def test_the_command_run_keeps_them_and_a_config_file_decides_for_itself(text_file, monkeypatch):
    monkeypatch.setattr(main_job, "find_spec", lambda name: None)  # no plots, which take long
    tiny = to_arguments({**TINY, "max_new_tokens": 5})
    assert main(["run", "--dataset", "bottles.txt", "--out_dir", "runs/a", *tiny]) == 0
    run = ng.Run(Path("runs/a"))
    assert names_in(run.out_dir) == NAMES[:3]
    named = [record["name"] for record in run.metrics if record["kind"] == "checkpoint"]
    assert [name for name in named if name.startswith("early_")] == NAMES[:3]
    assert main(["run", "--out_dir", "runs/a", "--init_from", "resume", "--max_iters", "40"]) == 0
    assert names_in(run.out_dir) == NAMES
    Path("options.json").write_text(json.dumps(TINY), encoding="utf-8")
    arguments = ["--dataset", "bottles.txt", "--out_dir", "runs/b", "--max_new_tokens", "5"]
    assert main(["run", *arguments, "--config", "options.json"]) == 0
    assert names_in(Path("runs/b")) == []
