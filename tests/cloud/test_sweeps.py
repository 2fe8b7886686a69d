"""The grid of a sweep, spelled out, and its table."""

import pytest

from nanogpt_lite.cloud import sweeps
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.errors import UserError


def trials(steps=100, **texts):
    return sweeps.make_trials(texts, preset="tutorial", steps=steps, name="s")


def test_every_combination_is_a_trial_of_its_own():
    tried = trials(learning_rate="3e-4, 1e-3", n_layer="4,6", bias="True")
    assert [trial.options for trial in tried] == [
        {"learning_rate": 3e-4, "n_layer": 4, "bias": True},
        {"learning_rate": 3e-4, "n_layer": 6, "bias": True},
        {"learning_rate": 1e-3, "n_layer": 4, "bias": True},
        {"learning_rate": 1e-3, "n_layer": 6, "bias": True},
    ]
    assert [trial.begin["out_dir"] for trial in tried] == ["s-1", "s-2", "s-3", "s-4"]


def test_a_trial_is_the_beginning_of_the_whole_training():
    trial, _ = trials(seed="3,4")
    whole = TrainConfig(seed=3, max_iters=1000)
    begin = {name: value for name, value in trial.begin.items() if name != "preset"}
    assert TrainConfig(**begin) == whole.replace(
        {"max_iters": 100, "lr_decay_iters": 1000, "eval_interval": 100, "out_dir": "s-1"}
    )
    assert trial.go_on == {"out_dir": "s-1", "max_iters": 1000, "eval_interval": 250}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"learning_rate": "1e-3,fast"}, "learning_rate='fast' is an invalid value"),
        ({"n_layers": "4"}, "did you mean n_layer"),
        ({"n_layer": "4,4"}, "a value twice"),
        ({"n_layer": "4"}, "nothing to choose from"),
        ({"n_head": "5,6"}, "not a multiple"),
        ({"max_iters": "50"}, "longer than max_iters"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(texts, message):
    with pytest.raises(UserError, match=message):
        trials(**texts)


def test_the_table_shows_what_differs_and_the_best_first():
    tried = trials(learning_rate="3e-4,1e-3,0.1", n_layer="4")
    results = [1.6, 1.5, "UserError: a | b\nc"]
    assert sweeps.format_table(tried, results).splitlines() == [
        "| run | learning_rate | val loss |",
        "| --- | --- | --- |",
        "| s-2 | 0.001 | 1.5000 |",
        "| s-1 | 0.0003 | 1.6000 |",
        "| s-3 | 0.1 | UserError: a / b c |",
    ]
    assert sweeps.best_trial(tried, results) is tried[1]
    with pytest.raises(UserError, match="no trial"):
        sweeps.best_trial(tried, ["a", "b", "c"])


@pytest.mark.parametrize(("steps", "message"), [(0, "trains nothing; give 1"), (5001, "longer than .* give a shorter")])
def test_a_trial_is_a_part_of_the_training(steps, message):
    with pytest.raises(UserError, match=message):
        trials(steps, learning_rate="1e-3,1e-2")
