"""A new run has the recipe for its text, unless options are given; `minutes` decides its steps by the time of one."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import text_recipe
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.device import devices, distributed
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.trainer import step_time

SMALL = {name: value for name, value in TINY.items() if name not in ("max_iters", "eval_interval", "dropout")}
SMALL |= {"dtype": "float32", "batch_size": 32}


def stored_config(run):
    return json.loads(Path(run, "config.json").read_text(encoding="utf-8"))["config"]


def config_of(dataset="bottles.txt", **options):
    """The config of a training that is ended before its first step."""
    with closing(ng.training(dataset, **{**SMALL, "overwrite": True, "out_dir": "run", **options})) as records:
        assert next(records).kind == "start"
    return stored_config("run")


def test_a_run_without_max_iters_has_the_recipe_for_its_text(text_file, capsys):
    with closing(Console(bar=False)) as console:
        config = config_of(console=console, batch_size=64)
    data = ng.prepare("bottles.txt")
    vocab_size, per_step = data.tokenizer.vocab_size, 64 * SMALL["block_size"]
    fitted = recipe.fit_options(
        "modern-cpu", train_tokens=len(data.train), vocab_size=vocab_size, tokens_per_step=per_step
    )
    assert {name: config[name] for name in fitted} == {**fitted, "ngram": SMALL["ngram"]}
    assert fitted["max_iters"] == -(-14 * len(data.train) // per_step)
    assert f"recipe for {len(data.train):,} train characters: {fitted['max_iters']} steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "is_fast", "n_embd", "steps"),
    [
        ("auto", False, 96, 430),
        ("auto", True, 96, 976),
        ("auto", True, 64, 430),  # too narrow for bfloat16
        ("bfloat16", True, 96, 976),
        ("bfloat16", False, 96, 430),  # asked for, though slower
        ("bfloat16", True, 64, 430),
        ("float32", True, 96, 430),
    ],
)
def test_a_cpu_that_trains_faster_in_bfloat16_gets_more_steps(text_file, monkeypatch, dtype, is_fast, n_embd, steps):
    monkeypatch.setattr(devices, "multiplies_bfloat16_faster", lambda: is_fast)
    text_file.write_text("the quick brown fox\n" * 80_000)
    options: dict[str, Any] = {"device": "cpu", "n_embd": n_embd, "n_head": 1, "block_size": 256, "batch_size": 16}
    assert config_of(dtype=dtype, **options)["max_iters"] == steps
    Path("options.json").write_text(json.dumps({**options, "dtype": dtype}), encoding="utf-8")
    with closing(ng.training("bottles.txt", config="options.json", preset="modern-cpu", out_dir="of_file")) as records:
        next(records)
    assert stored_config("of_file")["max_iters"] == steps


def test_ranks_have_the_steps_of_float32_because_their_processors_may_differ(text_file, monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bfloat16_faster", lambda: True)
    text_file.write_text("the quick brown fox\n" * 80_000)
    config, data = TrainConfig.from_dict({**ng.PRESETS["modern-cpu"], "device": "cpu"}), ng.prepare("bottles.txt")

    def steps(world_size: int) -> int:
        group = distributed.ProcessGroup(rank=0, world_size=world_size)
        fitted = text_recipe.fit_config(
            config, "modern-cpu", data, given={}, keep_network=False, group=group, console=None
        )
        return fitted.max_iters

    assert (steps(1), steps(2)) == (976, 430)


def test_the_recipe_is_stored_and_repeats(text_file):
    trained = ng.train("bottles.txt", **SMALL, out_dir="first", max_iters=12)
    stored = checkpoint_file.read_checkpoint(trained.out_dir / "last.safetensors").metadata.config
    again = ng.train(config="first/config.json")
    assert (trained.out_dir / "last.safetensors").read_bytes() == (again.out_dir / "last.safetensors").read_bytes()
    assert (
        stored.dropout
        == recipe.fit_options("modern-cpu", train_tokens=23_000, vocab_size=28, tokens_per_step=512, max_iters=12)[
            "dropout"
        ]
    )


def test_given_options_win_over_the_recipe(text_file, tmp_path):
    given = {"max_iters": 3, "dropout": 0.25, "weight_decay": 0.7, "patience": 0, "eval_interval": 2}
    config = config_of(**given)
    assert {name: config[name] for name in given} == given
    (tmp_path / "options.json").write_text(json.dumps(given))
    config = config_of(preset="modern-cpu", config=tmp_path / "options.json")
    assert {name: config[name] for name in given} == given


@pytest.mark.parametrize("preset", ["cpu", "shakespeare_char", "tutorial"])
def test_presets_of_nanogpt_do_not_follow_the_text(text_file, preset):
    config, values = config_of(preset=preset), ng.PRESETS[preset]
    unchanged = {name: value for name, value in values.items() if name not in SMALL}
    assert {name: config[name] for name in unchanged} == unchanged
    defaults = {name: default for name, default in dataclasses.asdict(ng.TrainConfig()).items() if name not in values}
    for name in ("patience", "weight_decay", "ngram_dropout", "eval_interval"):
        if name in defaults:
            assert config[name] == defaults[name]


def test_initial_weights_keep_their_network_and_get_the_training_of_the_recipe(text_file):
    parent = ng.train("bottles.txt", **SMALL, preset="cpu", max_iters=2, out_dir="parent")
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "batch_size": 64}
    with closing(ng.training("bottles.txt", init_from=parent.out_dir, out_dir="child", **options)) as records:
        next(records)
    config = stored_config("child")
    assert (config["n_embd"], config["position"]) == (SMALL["n_embd"], "learned")
    assert config["max_iters"] == -(-14 * len(ng.prepare("bottles.txt").train) // (64 * SMALL["block_size"]))


def test_minutes_become_the_steps_that_fit_and_are_stored(text_file, monkeypatch):
    monkeypatch.setattr(step_time, "measure_step_seconds", lambda *_, max_seconds: 0.5)
    config = config_of(minutes=2)
    data = ng.prepare("bottles.txt")
    # after every eval_interval steps, an evaluation costs a third of the training of as many tokens
    seconds = config["max_iters"] * 0.5 * (1 + len(data.val) / 3 / (config["eval_interval"] * 512))
    assert seconds == pytest.approx(120, rel=0.03)
    assert config["lr_decay_iters"] in (0, config["max_iters"])
    assert (
        config["dropout"]
        == recipe.fit_options(
            "modern-cpu",
            train_tokens=len(data.train),
            vocab_size=28,
            tokens_per_step=512,
            max_iters=config["max_iters"],
        )["dropout"]
    )
    repeated = config_of(config="run/config.json", out_dir="again")
    assert repeated == config
    monkeypatch.setattr(step_time, "measure_step_seconds", lambda *_, max_seconds: 0.01)
    many = config_of(minutes=2)
    assert many["patience"] * many["eval_interval"] >= many["max_iters"] / 12, "a part of the run that counts"
    monkeypatch.setattr(step_time, "measure_step_seconds", lambda *_, max_seconds: 0.5)
    few = config_of(minutes=0.001)
    assert (few["max_iters"], few["eval_interval"]) == (1, 1)
    of_preset = config_of(minutes=1, preset="cpu")
    assert 100 < of_preset["max_iters"] <= 120
    assert of_preset["eval_interval"] == -(-of_preset["max_iters"] // 8)
    assert of_preset["dropout"] == 0


def test_the_time_of_a_step_is_measured_and_changes_nothing(text_file, monkeypatch):
    data = ng.prepare("bottles.txt")
    config = ng.TrainConfig(**SMALL)
    before = ng.train(data, **SMALL, max_iters=3, out_dir="before")
    seconds = step_time.measure_step_seconds(config, data.tokenizer, data.train, max_seconds=60)
    assert 0 < seconds < 60
    after = ng.train(data, **SMALL, max_iters=3, out_dir="after")
    assert (before.out_dir / "last.safetensors").read_bytes() == (after.out_dir / "last.safetensors").read_bytes()


def test_timing_ends_after_its_share_of_a_short_time(text_file, monkeypatch):
    """By a clock on which a step takes a quarter of a second, and nothing else takes time."""
    data, config, steps = ng.prepare("bottles.txt"), ng.TrainConfig(**SMALL), []
    monkeypatch.setattr(step_time, "train_step", lambda *_: steps.append(1))
    monkeypatch.setattr(step_time, "time", SimpleNamespace(perf_counter=lambda: 0.25 * len(steps)))
    assert step_time.measure_step_seconds(config, data.tokenizer, data.train, max_seconds=0.6) == 0.25
    assert len(steps) == 3
    steps.clear()
    assert step_time.measure_step_seconds(config, data.tokenizer, data.train, max_seconds=0.0) == 0.25
    assert len(steps) == 2, "the first one is a warm-up"


def test_the_time_of_the_timing_is_not_given_to_steps(text_file, monkeypatch):
    def measure(*_, max_seconds):
        assert max_seconds == pytest.approx(12)
        clock.append(60)
        return 0.5

    clock = []
    monkeypatch.setattr(text_recipe, "time", SimpleNamespace(monotonic=lambda: sum(clock)))
    monkeypatch.setattr(step_time, "measure_step_seconds", measure)
    assert 90 < config_of(minutes=2, preset="cpu")["max_iters"] <= 120


def test_minutes_are_refused_beside_max_iters_and_with_several_ranks(text_file, monkeypatch):
    with pytest.raises(ng.UserError, match="`minutes` decides how many steps are made, and so does `max_iters`; give"):
        config_of(minutes=1, max_iters=5)
    ranks = distributed.ProcessGroup(rank=0, world_size=2)
    data, config = ng.prepare("bottles.txt"), ng.TrainConfig(**SMALL, minutes=1)
    with pytest.raises(ng.UserError, match="`minutes` times the steps of a single process, and there are 2 ranks"):
        text_recipe.fit_config(
            config, "modern-cpu", data, given={"minutes": 1}, keep_network=False, group=ranks, console=None
        )


def test_a_resumed_run_keeps_its_steps_whatever_minutes_say(trained, capsys):
    with closing(Console(bar=False)) as console:
        ng.train(out_dir=trained.out_dir, init_from="resume", minutes=5, console=console)
    err = capsys.readouterr().err
    assert "warning: a resumed run keeps its number of steps; `minutes` has no effect" in err
    assert trained.metrics[-1]["step"] == 20


def test_minutes_replace_the_steps_in_a_config_file(text_file, monkeypatch):
    monkeypatch.setattr(step_time, "measure_step_seconds", lambda *_, max_seconds: 0.5)
    run = ng.train("bottles.txt", **SMALL, max_iters=3, out_dir="first")
    with closing(ng.training(config=run.out_dir / "config.json", out_dir="second", minutes=1)) as records:
        next(records)
    first, second = stored_config("first"), stored_config("second")
    assert (first["max_iters"], first["lr_decay_iters"]) == (3, 3)
    assert 20 < second["max_iters"] <= 120
    assert second["lr_decay_iters"] in (0, second["max_iters"])
    assert second["n_embd"] == first["n_embd"]


def seconds_of_evaluation(config, val_tokens, seconds_per_step):
    """A third of the time of training on as many tokens."""
    is_long = 0 < 2 * config.eval_tokens < val_tokens
    evaluated = config.eval_tokens if is_long else val_tokens
    if config.eval_iters:
        evaluated = config.eval_iters * config.batch_size * config.block_size
    return evaluated / config.tokens_per_step * seconds_per_step / 3


def seconds_of_training(config, val_tokens, seconds_per_step, steps, interval):
    """One event after the other: steps, evaluations, the one of the result."""
    evaluation = seconds_of_evaluation(config, val_tokens, seconds_per_step)
    seconds = sum(seconds_per_step + (step % interval == 0) * evaluation for step in range(1, steps + 1))
    if config.eval_iters or 0 < 2 * config.eval_tokens < val_tokens:
        at_the_end = min(val_tokens, max(config.eval_tokens, steps * config.tokens_per_step))
        seconds += at_the_end / config.tokens_per_step * seconds_per_step / 3
    return seconds


@pytest.mark.parametrize("minutes", [0.25, 0.5, 1, 2, 10, 60])
@pytest.mark.parametrize("options", [{}, {"eval_iters": 200}, {"eval_tokens": 0}], ids=str)
@pytest.mark.parametrize("val_tokens", [5_000, 328_000, 3_000_000])
@pytest.mark.parametrize("seconds_per_step", [0.05, 0.2, 1.0])
def test_the_chosen_steps_take_the_minutes_with_their_evaluations(minutes, options, val_tokens, seconds_per_step):
    config = TrainConfig(batch_size=32, block_size=128, eval_interval=105, **options)
    steps, interval = text_recipe.steps_in_time(config, val_tokens, 60 * minutes, seconds_per_step, keep_interval=False)
    evaluation = seconds_of_evaluation(config, val_tokens, seconds_per_step)
    seconds = seconds_of_training(config, val_tokens, seconds_per_step, steps, interval)
    assert seconds <= 60 * minutes * 1.1 + 2 * evaluation, "a short time may be too little for two evaluations"
    if evaluation < 6 * minutes:
        assert seconds >= 60 * minutes * 0.75
    assert 1 <= interval <= max(105, steps)


def test_a_given_interval_stays(text_file):
    config = TrainConfig(eval_interval=500)
    steps, interval = text_recipe.steps_in_time(config, 10_000, 60, 1.0, keep_interval=True)
    assert (interval, steps) == (500, 60)
