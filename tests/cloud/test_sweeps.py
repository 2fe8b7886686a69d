"""The trials of a sweep's grid, and the table of their results."""

import pytest

from nanogpt_lite.cloud import sweeps
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.errors import UserError


def make_trials(steps=100, **grid):
    return sweeps.make_trials(grid, preset="tutorial", steps=steps, name="s")


def test_each_combination_is_a_trial_with_its_own_run():
    trials = make_trials(learning_rate="3e-4, 1e-3", n_layer="4,6", bias="True")
    assert [trial.options for trial in trials] == [
        {"learning_rate": 3e-4, "n_layer": 4, "bias": True},
        {"learning_rate": 3e-4, "n_layer": 6, "bias": True},
        {"learning_rate": 1e-3, "n_layer": 4, "bias": True},
        {"learning_rate": 1e-3, "n_layer": 6, "bias": True},
    ]
    assert [trial.first_options["out_dir"] for trial in trials] == ["s-1", "s-2", "s-3", "s-4"]


def test_trial_has_the_first_steps_of_the_whole_schedule():
    trial, _ = make_trials(seed="3,4")
    whole = TrainConfig(seed=3, max_iters=1000)
    first_options = {name: value for name, value in trial.first_options.items() if name != "preset"}
    assert TrainConfig(**first_options) == whole.replace(
        {"max_iters": 100, "lr_decay_iters": 1000, "eval_interval": 100, "out_dir": "s-1"}
    )
    assert trial.resume_options == {"out_dir": "s-1", "max_iters": 1000, "eval_interval": 250}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"learning_rate": "1e-3,fast"}, "learning_rate='fast' is an invalid value"),
        ({"n_layers": "4"}, "did you mean n_layer"),
        ({"n_layer": "4,4"}, "--n-layer 4,4 has a value twice"),
        ({"n_layer": "4"}, "two combinations or more"),
        ({"n_head": "5,6"}, "not a multiple"),
        ({"max_iters": "50"}, "--sweep-iters 100 is more than --max-iters 50"),
    ],
)
def test_invalid_grid_is_refused(grid, message):
    with pytest.raises(UserError, match=message):
        make_trials(**grid)


def test_table_shows_the_options_that_differ_and_the_best_trial_first():
    trials = make_trials(learning_rate="3e-4,1e-3,0.1", n_layer="4")
    results: list[sweeps.Result] = [1.6, 1.5, "UserError: a | b\nc"]
    assert sweeps.format_table(trials, results).splitlines() == [
        "| run | learning_rate | val loss |",
        "| --- | --- | --- |",
        "| s-2 | 0.001 | 1.5000 |",
        "| s-1 | 0.0003 | 1.6000 |",
        "| s-3 | 0.1 | UserError: a / b c |",
    ]
    assert sweeps.best_trial(trials, results) is trials[1]
    with pytest.raises(UserError, match="no trial"):
        sweeps.best_trial(trials, ["a", "b", "c"])


@pytest.mark.parametrize(("steps", "message"), [(0, "trains nothing; give 1"), (5001, "more than .* give fewer")])
def test_trial_without_steps_or_longer_than_the_training_is_refused(steps, message):
    with pytest.raises(UserError, match=message):
        make_trials(steps, learning_rate="1e-3,1e-2")
