"""The trials of a sweep's grid, how each is trained once, and the table of their results."""

import json
from dataclasses import dataclass, field

import pytest

from nanogpt_lite.cloud import sweeps
from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.errors import UserError


def make_trials(sweep_iters: int | None = 100, preset="tutorial", text_size=lambda dataset, tokenizer: None, **grid):
    return sweeps.make_trials(grid, preset=preset, sweep_iters=sweep_iters, text_size=text_size, name="s")


def test_minutes_are_refused():
    with pytest.raises(UserError, match="a sweep takes no `minutes`: each trial has the steps of --sweep-iters; leave"):
        make_trials(learning_rate="1e-4,1e-3", minutes="5")


class Texts:
    """Stands for the storage: the texts by their paths."""

    def __init__(self):
        self.texts = {}

    def read_text(self, path):
        return self.texts.get(path, "")

    def write_text(self, path, text):
        self.texts[path] = text


class Trainings:
    """Stands for the Function `train`: notes what is started, and has a result for each id."""

    def __init__(self, storage, results, *, fail_at=None):
        self.storage, self.results, self.fail_at = storage, results, fail_at
        self.trained_by = {}  # the id of the call that trains a run
        self.more = {}  # of each result
        self.started = []  # the options of each training
        self.stored = []  # the ids that were stored before each start

    def start(self, **options):
        self.stored.append(set(json.loads(self.storage.read_text("sweeps/s.json") or "{}").values()))
        name = str(options["out_dir"]) + ("-rest" if options.get("init_from") == "resume" else "")
        if name == self.fail_at:
            raise KeyboardInterrupt  # as when the container is preempted
        self.started.append(options)
        return self.call(f"id of {name}")

    def call(self, training):
        return Training(training, self.results[training.removeprefix("id of ")], self.more)

    def run(self, trials):
        def trained_by(run):
            return self.trained_by.get(run, "")

        return sweeps.run_sweep("s", trials, self.storage, start=self.start, get=self.call, trained_by=trained_by)


@dataclass
class Training:
    """Stands for a call of the Function `train`."""

    object_id: str
    result: sweeps.Result | BaseException
    more: dict[str, object] = field(default_factory=dict)  # of the result

    def get(self):
        match self.result:
            case float():
                losses = {"best_val_loss": self.result, "best_val_loss_per_byte": 2 - self.result}
                return {**losses, "step": 100, "reason": "max_iters", **self.more}
            case str():
                kind, _, message = self.result.partition(": ")
                return {"error": message, "kind": kind}
        raise self.result


RESULTS: dict[str, sweeps.Result] = {"s-1": 1.6, "s-2": 1.4, "s-3": "UserError: too large", "s-2-rest": 1.2}


@pytest.fixture
def trials():
    return make_trials(learning_rate="1e-4,1e-3,1e-2")


def test_sweep_trains_each_trial_and_the_best_to_its_end(trials, capsys):
    storage = Texts()
    trainings = Trainings(storage, RESULTS)
    table = trainings.run(trials)
    assert trainings.started == [*(trial.first_options for trial in trials), trials[1].resume_options]
    assert table == sweeps.format_table(trials, [1.6, 1.4, "UserError: too large"])
    assert storage.texts["sweeps/s.md"] == table
    assert table in capsys.readouterr().out


@pytest.mark.parametrize("grid", [{"tokenizer": "char,byte,bpe-512"}, {"init_from": "scratch,a,b"}])
def test_sweep_over_tokenizers_compares_losses_per_byte(grid):
    trials = make_trials(**grid)
    trainings = Trainings(Texts(), {**RESULTS, "s-1-rest": 1.2})
    header, _, first, *_ = trainings.run(trials).splitlines()
    assert header.endswith("| val loss per byte |")
    assert first.startswith("| s-1 |")
    assert first.endswith("| 0.4000 |")
    assert trainings.started[-1] == trials[0].resume_options


def test_id_of_each_training_is_stored_before_the_next_one_is_started(trials):
    trainings = Trainings(Texts(), RESULTS)
    trainings.run(trials)
    ids = ["id of s-1", "id of s-2", "id of s-3"]
    assert trainings.stored == [set(ids[:n]) for n in range(4)]
    assert set(json.loads(trainings.storage.read_text("sweeps/s.json")).values()) == {*ids, "id of s-2-rest"}


@pytest.mark.parametrize("waits_for", ["s-1", "s-3", "s-2-rest"])
def test_second_attempt_starts_no_training_again(trials, waits_for):
    storage = Texts()
    first = Trainings(storage, {**RESULTS, waits_for: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        first.run(trials)
    second = Trainings(storage, RESULTS)
    second.run(trials)
    assert [*first.started, *second.started] == [*(trial.first_options for trial in trials), trials[1].resume_options]


def test_second_attempt_starts_what_the_first_did_not(trials):
    storage = Texts()
    first = Trainings(storage, RESULTS, fail_at="s-2")
    with pytest.raises(KeyboardInterrupt):
        first.run(trials)
    second = Trainings(storage, RESULTS)
    second.run(trials)
    assert first.started == [trials[0].first_options]
    assert second.started == [trials[1].first_options, trials[2].first_options, trials[1].resume_options]


def test_trial_that_an_attempt_started_without_storing_its_id_counts(trials, capsys):
    """The second attempt starts the trial again, and that training is refused: the first one trains the run."""
    refused = "UserError: the run 's-2' exists"
    trainings = Trainings(Texts(), {**RESULTS, "s-2": refused, "lost": 1.3})
    trainings.trained_by = {"s-1": "id of s-1", "s-2": "id of lost", "s-3": "id of s-3"}
    assert "| s-2 | 0.001 | 1.3000 |" in trainings.run(trials)
    assert trainings.started[-1] == trials[1].resume_options


def test_best_trial_that_is_not_trained_to_its_end_is_an_error_after_the_table(trials, capsys):
    storage = Texts()
    with pytest.raises(
        UserError,
        match="could not be trained to its end: ExternalError: no GPU; to try again: --out-dir s-2 ",
    ):
        Trainings(storage, {**RESULTS, "s-2-rest": "ExternalError: no GPU"}).run(trials)
    assert "| s-2 | 0.001 | 1.4000 |" in capsys.readouterr().out
    assert "| s-2 | 0.001 | 1.4000 |" in storage.texts["sweeps/s.md"]


def test_sweep_without_a_result_trains_nothing_to_its_end(trials):
    trainings = Trainings(Texts(), dict.fromkeys(("s-1", "s-2", "s-3"), "UserError: no"))
    with pytest.raises(UserError, match="no trial of the sweep has a val loss"):
        trainings.run(trials)
    assert len(trainings.started) == 3


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
    resume_options = {"out_dir": "s-1", "init_from": "resume", "max_iters": 1000, "eval_interval": 250}
    assert trial.resume_options == resume_options


def own_text(dataset, tokenizer):
    """2,000,000 train tokens of my.txt, but as bytes 6,000,000; nothing is known of another text."""
    sizes = {("my.txt", "auto"): (2_000_000, 80), ("my.txt", "byte"): (6_000_000, 256)}
    return sizes.get((dataset, tokenizer))


@pytest.mark.parametrize(
    ("grid", "preset", "max_iters"),
    [
        ({"dataset": "shakespeare_char"}, "tutorial", 1000),
        ({"dataset": "my.txt"}, "modern", 4029),  # 33 epochs of 2,000,000 / 16,384 steps
        ({"dataset": "my.txt", "tokenizer": "byte"}, "modern", 5000),
        ({"dataset": "my.txt", "device": "cpu"}, "modern-cpu", 428),
        ({"dataset": "my.txt", "max_iters": "700"}, "modern", 700),
        ({"dataset": "other.txt"}, "modern", 2000),
        ({"init_from": "gpt2"}, "finetune", 20),
    ],
)
def test_sweep_trains_as_a_training_of_the_same_text(grid, preset, max_iters):
    trial, _ = make_trials(None, "", own_text, seed="3,4", **grid)
    steps = min(200, max_iters)
    first = trial.first_options
    assert (first["preset"], first["max_iters"], first["lr_decay_iters"]) == (preset, steps, max_iters)
    assert trial.resume_options["max_iters"] == max_iters


def short_text(dataset, tokenizer):
    return 100_000, 80


def test_regularisation_of_a_trial_is_that_of_its_whole_training():
    given = {"dropout": "0.3", "eval_interval": "7"}
    trial, _ = make_trials(50, "", short_text, dataset="my.txt", seed="3,4", **given)
    whole = recipe.fit_options("modern", train_tokens=100_000, vocab_size=80, tokens_per_step=16_384)
    first = trial.first_options
    assert (whole["max_iters"], whole["dropout"]) == (202, 0.2)
    assert trial.resume_options["max_iters"] == 202
    assert (first["dropout"], first["patience"]) == (0.3, whole["patience"]), "what is given wins"
    assert (first["eval_interval"], trial.resume_options["eval_interval"]) == (7, 7)
    shorter, _ = make_trials(50, "", own_text, dataset="my.txt", seed="3,4", max_iters="100")
    longer, _ = make_trials(50, "", own_text, dataset="my.txt", seed="3,4", max_iters="1000")
    assert (shorter.first_options["dropout"], longer.first_options["dropout"]) == (0.0, 0.15)


@pytest.mark.parametrize(
    ("max_iters", "result", "is_resumed"),
    [
        ("100", {}, False),
        ("100", {"step": 60, "reason": "max_seconds"}, True),
        ("1000", {"reason": "patience"}, False),
        ("1000", {"reason": "target_loss"}, False),
        ("1000", {"reason": "max_seconds"}, True),
    ],
)
def test_best_trial_is_resumed_if_it_has_steps_left_and_no_reason_to_end(max_iters, result, is_resumed):
    trials = make_trials(None, learning_rate="1e-4,1e-3", max_iters=max_iters)
    trainings = Trainings(Texts(), RESULTS)
    trainings.more = result
    trainings.run(trials)
    rest = [trials[1].resume_options] if is_resumed else []
    assert trainings.started == [*(trial.first_options for trial in trials), *rest]


def test_trial_without_an_evaluation_has_no_loss():
    trials = make_trials(learning_rate="1e-4,1e-3")
    trainings = Trainings(Texts(), RESULTS)
    trainings.more = {"best_val_loss": None}
    with pytest.raises(UserError, match="no trial of the sweep has a val loss"):
        trainings.run(trials)


def test_more_steps_than_a_short_text_needs_are_all_of_them():
    trial, _ = make_trials(500, "", short_text, dataset="my.txt", seed="3,4")
    assert trial.first_options["max_iters"] == 202


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"learning_rate": "1e-3,fast"}, "`learning_rate='fast'` is an invalid value"),
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


def test_sweep_from_other_weights_needs_a_number_of_steps():
    with pytest.raises(UserError, match="a sweep from the weights of 'mine' needs a number of steps; give --max-iters"):
        make_trials(None, "", own_text, dataset="my.txt", init_from="mine", seed="3,4")
    trial, _ = make_trials(None, "", own_text, dataset="my.txt", init_from="mine", seed="3,4", max_iters="300")
    assert "dropout" not in trial.first_options


@pytest.mark.parametrize(("steps", "message"), [(0, "trains nothing; give 1"), (5001, "more than .* give fewer")])
def test_trial_without_steps_or_longer_than_the_training_is_refused(steps, message):
    with pytest.raises(UserError, match=message):
        make_trials(steps, learning_rate="1e-3,1e-2")
