"""Plans of calls: what is checked before anything is uploaded or rented, and what is then asked of the Function.

An option is refused here where the container would refuse it, so each refusal is compared with the library's.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_volume import GOLDEN, GOLDEN_RUNS, FakeVolume, volume_of_version_0_1
from shared_volume import SharedDict

import nanogpt_lite as ng
from nanogpt_lite.cloud.calls import Call
from nanogpt_lite.cloud.client import plans
from nanogpt_lite.cloud.client.dataset_texts import Text, upload_texts
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import DataConfig, LoadConfig, SampleConfig, TrainConfig

ON_L4 = {"gpu": "L4", "cpu": 4, "memory": 8192}
TEXT = "The ship sails over the sea, and the wind is cold.\n" * 40


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A Volume that version 0.1 wrote. The current folder has a text of this machine, mine.txt."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.txt").write_text(TEXT, encoding="utf-8")
    return volume_of_version_0_1(tmp_path / "volume")


def plan(volume, command, default_gpu="L4", **flags):
    """The plan of a command, which must leave the Volume unchanged."""
    before = volume.contents()
    try:
        stored, make = StoredFiles(volume), getattr(plans, f"plan_{command}")
        return make(stored, flags) if command == "preparation" else make(stored, flags, gpu=default_gpu)
    finally:
        assert volume.contents() == before


def test_new_run_has_no_name_before_the_call_and_the_limits_of_the_default(volume):
    training = plan(volume, "training", dataset="mine.txt", max_iters=5, block_size=32)
    assert training.options == {"dataset": "mine", "max_iters": 5, "block_size": 32, "time_limit": 7200}
    assert training.function_options == {**ON_L4, "timeout": 7200 + 300}
    (text,) = training.texts
    assert (text.dataset, text.local_path) == ("mine", "mine.txt")
    assert training.texts_to_prepare() == [text]
    assert training.notes == ()


def test_default_dataset_and_a_prepared_one(volume):
    assert [text.dataset for text in plan(volume, "training").texts] == [TrainConfig.dataset]
    training = plan(volume, "training", dataset="sea")
    assert training.options == {"dataset": "sea", "time_limit": 7200}
    assert training.texts_to_prepare() == []
    assert [t.dataset for t in plan(volume, "training", dataset="sea", tokenizer="byte").texts_to_prepare()] == ["sea"]


def test_flags_of_the_rental_are_no_options_of_the_function(volume):
    training = plan(volume, "training", dataset="sea", gpu="h100:2", timeout="30m", max_dollars=1.0)
    rate = 2 * (0.001097 + 4 * 0.0000131 + 8 * 0.00000222)  # dollars a second
    assert training.options == {"dataset": "sea", "time_limit": int(1 / rate)}
    expected = {"gpu": "H100:2", "cpu": 8, "memory": 16384, "timeout": int(1 / rate) + 300}
    assert training.function_options == expected


def test_order_of_preference_is_that_of_the_decorator(volume):
    training = plan(volume, "training", default_gpu="A100-80GB:4, H100", dataset="sea")
    assert training.function_options == {"timeout": 7500}
    assert training.rental.world_size == 4
    sampling = plan(volume, "sampling", default_gpu="A100-80GB:4, H100")
    assert sampling.function_options == {"timeout": 900}
    assert sampling.rental.world_size == 1


@pytest.mark.parametrize("command", ["training", "sampling", "evaluation", "pipeline"])
def test_list_of_gpus_as_a_flag_is_refused(volume, command):
    with pytest.raises(ng.UserError, match="takes one GPU; to give an order of preference, set NANOGPT_GPU=L4,T4"):
        plan(volume, command, gpu="L4,T4")


def test_batch_that_the_gpus_cannot_share_is_refused(volume):
    options = {"dataset": "sea", "batch_size": 8}
    assert plan(volume, "training", gpu="L4:4", **options).rental.world_size == 4
    with pytest.raises(ng.UserError, match="a step of 8 rows .* cannot be shared equally by 3 ranks"):
        plan(volume, "training", gpu="L4:3", **options)
    with pytest.raises(ng.UserError, match="cannot be shared equally by 8 ranks"):
        plan(volume, "training", gpu="L4:8", init_from="resume", max_iters=40)


@pytest.mark.parametrize(
    "flags",
    [
        {"n_head": 5},
        {"block_size": 2600, "dataset": "sea"},
        {"min_lr": 9.0},
        {"max_iters": 0},
        {"dataset": "typo"},
        {"init_from": "typo"},
        {"preset": "typo"},
        {"n_layers": 3},
        {"optimizer": "sgd"},
    ],
)
def test_new_run_that_the_library_refuses_is_refused(volume, flags):
    with pytest.raises(ng.UserError):
        plan(volume, "training", **flags)
    small: dict[str, Any] = {"n_layer": 1, "n_head": 1, "n_embd": 8, "device": "cpu", "batch_size": 1}
    shutil.copytree(GOLDEN / "data", "data")
    arguments: dict[str, Any] = {"dataset": "sea", "preset": "tutorial", **small, "max_iters": 1, **flags}
    with pytest.raises(ng.UserError):
        ng.train(**arguments)


@pytest.mark.parametrize("flags", [{"n_head": 2}, {"n_head": 3}, {"n_embd": 12}, {"init_from": "bytes", "bias": True}])
def test_network_of_initial_weights_is_that_of_the_other_run(volume, flags):
    shutil.copytree(GOLDEN, ".", dirs_exist_ok=True)
    init_from = flags.get("init_from", "plain")
    arguments: dict[str, Any] = {"preset": "tutorial", **flags, "init_from": f"runs/{init_from}", "max_iters": 1}
    given = {"dataset": "sea", "init_from": "plain", **flags}
    try:
        ng.train("sea.txt", **arguments, batch_size=1, eval_iters=1, device="cpu", out_dir="runs/child")
    except ng.UserError as error:
        assert "network" in str(error)  # noqa: PT017
        with pytest.raises(ng.UserError, match="holds another network"):
            plan(volume, "training", **given)
    else:
        training = plan(volume, "training", **given)
        assert training.options["init_from"] == init_from
        assert training.texts_to_prepare() == [], "its tokenizer is only in its checkpoint"


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ({"dataset": "sea"}, "modern"),
        ({"dataset": "sea", "device": "cuda", "init_from": "plain"}, "modern"),
        ({"dataset": "python_docs", "device": "cpu"}, "modern-cpu"),
        ({"dataset": "sea", "preset": "tutorial"}, "tutorial"),
        ({}, "tutorial"),
        ({"dataset": "shakespeare_char", "device": "cpu", "learning_rate": 3e-4}, "tutorial"),
        ({"init_from": "gpt2"}, "finetune"),
        ({"dataset": "sea", "init_from": "gpt2-medium"}, "finetune"),
    ],
)
def test_preset_of_a_new_run_follows_from_its_text_and_device(flags, preset):
    given = {name: value for name, value in flags.items() if name != "preset"}
    assert plans._config_of_new_run(flags) == presets.config_with_preset(preset, given)


def test_text_is_compared_with_the_context_of_the_preset(volume):
    Path("short.txt").write_text("The sea " * 20, encoding="utf-8")
    assert plan(volume, "training", dataset="short.txt", device="cpu", preset="cpu").block_size == 64
    Path("longer.txt").write_text("The sea " * 40, encoding="utf-8")
    assert plan(volume, "training", dataset="longer.txt", device="cpu").block_size == 256
    for flags in ({}, {"device": "cpu"}, {"device": "cpu", "preset": "tutorial"}):
        with pytest.raises(ng.UserError, match="the text is too short for block_size=256"):
            plan(volume, "training", dataset="short.txt", **flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_iters": 5}, "`minutes` decides how many steps are made, and so does `max_iters`; give one"),
        ({"gpu": "L4:2"}, "`minutes` times the steps of a single process, and there are 2 ranks; give `max_iters`"),
        ({"default_gpu": "L4,T4:4"}, "there are 4 ranks"),
        ({"timeout": "10m"}, r"`minutes=10` is too much for the 10 min .* give fewer `minutes`, or a longer --timeout"),
        ({"max_dollars": 0.1}, "`minutes=10` is too much for the .* s that the call may take"),
    ],
)
@pytest.mark.parametrize("command", ["training", "pipeline"])
def test_minutes_that_cannot_be_used_are_refused(volume, command, flags, message):
    with pytest.raises(ng.UserError, match=message):
        plan(volume, command, dataset="sea", minutes=10.0, **flags)


def test_minutes_are_an_option_of_a_new_run_and_have_no_effect_on_a_resumed_one(volume):
    assert plan(volume, "training", dataset="sea", minutes=10.0, timeout="11m").options["minutes"] == 10
    flags = {"init_from": "resume", "out_dir": "plain", "max_iters": 40, "minutes": 500.0, "gpu": "L4:2"}
    resumed = plan(volume, "training", **flags)
    assert resumed.options.keys() == {"init_from", "out_dir", "max_iters", "time_limit"}
    assert resumed.notes == ("warning: a resumed run keeps its number of steps; --minutes has no effect",)


def test_gpt2_is_finetuned_with_its_own_tokenizer(volume):
    training = plan(volume, "training", dataset="mine.txt", init_from="gpt2")
    assert training.options == {"dataset": "mine", "init_from": "gpt2", "time_limit": 7200}
    assert training.texts_to_prepare() == []
    assert [text.local_path for text in training.texts] == ["mine.txt"]


def test_name_of_an_existing_run_is_refused_or_replaced_with_a_warning(volume):
    with pytest.raises(ng.UserError, match="the run 'plain' exists"):
        plan(volume, "training", dataset="sea", out_dir="runs/plain")
    training = plan(volume, "training", dataset="sea", out_dir="runs/plain", overwrite=True)
    assert training.options == {"dataset": "sea", "out_dir": "plain", "overwrite": True, "time_limit": 7200}
    assert "replacing the run plain (dataset sea, 20 steps)" in training.notes[0]
    assert plan(volume, "training", dataset="sea", out_dir="new").options["out_dir"] == "new"
    for out_dir in ("../x", "a/b", "-x"):
        with pytest.raises(ng.UserError, match="invalid run name"):
            plan(volume, "training", dataset="sea", out_dir=out_dir)


@pytest.mark.parametrize("run", GOLDEN_RUNS)
def test_run_of_version_0_1_can_be_resumed(volume, run):
    training = plan(volume, "training", init_from="resume", out_dir=run, max_iters=40)
    assert training.options == {"init_from": "resume", "out_dir": run, "max_iters": 40, "time_limit": 7200}
    assert (training.texts, training.notes) == ((), ())
    assert training.texts_to_prepare() == []


def test_newest_run_is_resumed_without_a_name_and_that_is_said(volume):
    training = plan(volume, "training", init_from="resume", max_iters=40, preset="modern")
    assert training.options["out_dir"] == "plain"
    assert "preset" not in training.options
    assert training.notes[0] == "resuming the newest run: plain"
    assert "a resumed run keeps its own options; --preset has no effect" in training.notes[1]


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ({"max_iters": 21}, False),
        ({"max_iters": 21, "n_embd": 8, "learning_rate": 0.5, "min_lr": 0.1}, False),
        ({"max_iters": 21, "dropout": 0.3, "eval_interval": 3}, False),
        ({"max_iters": 21, "dataset": "sea"}, False),
        ({"max_iters": 21, "n_embd": 16}, True),
        ({"max_iters": 21, "block_size": 8}, True),
        ({"max_iters": 21, "min_lr": 0.5}, True),
        ({"max_iters": 21, "batch_size": 0}, True),
        ({"max_iters": 21, "dataset": "typo"}, True),
        ({"max_iters": 21, "nlayer": 2}, True),
        ({"max_iters": 10}, True),
    ],
)
def test_resume_is_refused_where_the_library_refuses_it(volume, flags, refused):
    shutil.copytree(GOLDEN, ".", dirs_exist_ok=True)
    given = {"init_from": "resume", "out_dir": "plain", **flags}
    arguments: dict[str, Any] = {**given, "out_dir": "runs/plain"}
    if refused:
        with pytest.raises(ng.UserError):
            plan(volume, "training", **given)
        with pytest.raises(ng.UserError):
            ng.train(**arguments)
    else:
        assert plan(volume, "training", **given).options["out_dir"] == "plain"
        assert ng.train(**arguments).metrics[-1]["step"] == 21


def test_resume_of_no_run_or_with_overwrite_is_refused(volume, tmp_path):
    with pytest.raises(ng.UserError, match="no checkpoint of a run 'typo'; runs with one: bpe, bytes, modern, plain"):
        plan(volume, "training", init_from="resume", out_dir="typo")
    with pytest.raises(ng.UserError, match="give one of them"):
        plan(volume, "training", init_from="resume", overwrite=True, max_iters=40)
    with pytest.raises(ng.UserError, match="no run with a checkpoint on the Volume"):
        plan(FakeVolume(tmp_path / "empty"), "training", init_from="resume")


def test_sampling_names_the_run_and_reads_the_prompt(volume):
    Path("prompt.txt").write_text("The sea", encoding="utf-8")
    sampling = plan(volume, "sampling", start="FILE:prompt.txt", num_samples=2, timeout="2m")
    assert sampling.options == {"start": "The sea", "num_samples": 2, "out_dir": "plain"}
    assert sampling.function_options == {**ON_L4, "timeout": 120}
    assert plan(volume, "sampling").options == {"out_dir": "plain"}


@pytest.mark.parametrize("run", GOLDEN_RUNS)
@pytest.mark.parametrize("start", ["The sea", "ZZ", "Ω"])
def test_prompt_is_refused_where_the_run_would_refuse_it(volume, run, start):
    try:
        ng.sample(GOLDEN / "runs" / run, start=start, max_new_tokens=1, device="cpu", checkpoint="last")
    except ng.UserError:
        with pytest.raises(ng.UserError, match="the prompt has"):
            plan(volume, "sampling", out_dir=run, start=start)
    else:
        assert plan(volume, "sampling", out_dir=run, start=start).options["start"] == start


@pytest.mark.parametrize("command", ["sampling", "evaluation"])
def test_call_that_uses_one_gpu_refuses_several_and_a_missing_checkpoint(volume, command):
    with pytest.raises(ng.UserError, match="only a training uses several; give one"):
        plan(volume, command, gpu="L4:2")
    with pytest.raises(ng.UserError, match="give one of best, last, weights"):
        plan(volume, command, checkpoint="step_000002")
    with pytest.raises(ng.UserError, match="unknown option 'int9'; did you mean int8"):
        plan(volume, command, int9=True)


def test_benchmark_has_its_own_limit_and_one_gpu():
    benchmark = plans.plan_benchmark({"short": True, "to": "here"}, gpu="L4:4")
    assert benchmark.options == {"short": True, "time_limit": 2400}
    assert benchmark.function_options == {**ON_L4, "timeout": 2400 + 300}
    assert "1 x L4" in str(benchmark.rental)
    assert "over all attempts" in str(benchmark.rental)
    limited = plans.plan_benchmark({"device": "cpu", "timeout": "10m", "gpu": "T4"}, gpu="L4")
    assert limited.options == {"device": "cpu", "time_limit": 600}
    with pytest.raises(ng.UserError, match="only a training uses several"):
        plans.plan_benchmark({"gpu": "T4:2"}, gpu="L4")
    with pytest.raises(ng.UserError, match="unknown device 'tpu'; did you mean cpu"):
        plans.plan_benchmark({"device": "tpu"}, gpu="L4")


def test_evaluation_of_the_run_or_of_another_text(volume):
    assert plan(volume, "evaluation", out_dir="bytes").options == {"out_dir": "bytes"}
    evaluation = plan(volume, "evaluation", out_dir="bytes", dataset="mine.txt", verify=True)
    assert evaluation.options == {"dataset": "mine", "verify": True, "out_dir": "bytes"}
    assert [text.local_path for text in evaluation.texts] == ["mine.txt"]
    assert evaluation.texts_to_prepare() == [], "the Function prepares it with the tokenizer of the run"


def test_preparation_rents_a_cpu(volume):
    preparation = plan(volume, "preparation", dataset="mine.txt", tokenizer="byte", overwrite=True)
    assert preparation.options == {"dataset": "mine", "tokenizer": "byte", "overwrite": True}
    assert preparation.function_options == {"timeout": 900}
    assert preparation.texts_to_prepare() == [], "the Function itself prepares it"
    preparation = plan(volume, "preparation", dataset="sea", gpu="H100")
    assert preparation.notes == ("--gpu has no effect here: a text is prepared on a CPU",)
    with pytest.raises(ng.UserError, match="`tokenizer='words'` is an invalid value"):
        plan(volume, "preparation", dataset="mine.txt", tokenizer="words")


def test_run_that_is_to_be_served_exists_and_its_cost_is_said(volume):
    stored = StoredFiles(volume)
    cost = (
        "one container at most, ${} an hour while it runs; 5 min after the last request it stops, and then nothing is"
    )
    newest = stored.runs[-1]
    assert plans.describe_web(stored, "", gpu="").startswith(
        f"serving the newest run, now {newest}, on a CPU: {cost.format('0.13')}"
    )
    on_gpu = plans.describe_web(stored, "plain", gpu="T4")
    assert on_gpu.startswith(f"serving plain on a T4: {cost.format('0.72')}")
    for run, gpu, message in (
        ("typo", "", "there is no checkpoint of a run 'typo'; runs with one"),
        ("", "T4:2", "T4:2 is more than one GPU, and a run is served by one; give one"),
        ("", "T5", "T5"),
    ):
        with pytest.raises(ng.UserError, match=message):
            plans.describe_web(stored, run, gpu=gpu)


def test_sweep_is_checked_as_each_of_its_trainings(volume):
    grid = {"learning_rate": "1e-3,1e-2", "n_layer": "2,4", "dataset": "mine.txt"}
    sweep = plan(volume, "sweep", **grid, sweep_iters=50)
    assert sweep.options == {
        **grid,
        "dataset": "mine",
        "sweep_iters": 50,
        "out_dir": "sweep",
        "time_limit": 7200,
        "gpu": "L4",
    }
    assert sweep.rental.calls == 5, "one for each trial, and one for the rest of the best"
    assert sweep.function_options == {"timeout": 5 * 7200 + 300}, "of the Function that waits for the trainings"
    assert [text.local_path for text in sweep.texts] == ["mine.txt"]
    assert [text.dataset for text in sweep.texts_to_prepare()] == ["mine"]
    assert plan(volume, "sweep", timeout="12h", **grid).function_options == {"timeout": 86400}
    for wrong, message in (
        ({"n_layer": "2,4", "block_size": "8,3000"}, "the text is too short for block_size=3000"),
        ({"n_head": "2,5"}, "not a multiple"),
        ({"n_layer": "2"}, "two combinations"),
        ({"n_layer": "2,4", "minutes": "1"}, "a sweep takes no `minutes`"),
        ({"dataset": "mine.txt,typo"}, "there is no text 'typo'"),
    ):
        with pytest.raises(ng.UserError, match=message):
            plan(volume, "sweep", **{"dataset": "mine.txt", **wrong})


def test_pipeline_has_a_plan_for_the_training_and_for_the_sampling_of_its_run(volume):
    training, sampling = plan(volume, "pipeline", dataset="mine.txt", max_iters=3, num_samples=2, start="The sea")
    assert training.options == {"dataset": "mine", "max_iters": 3, "time_limit": 7200}
    assert sampling.options == {"num_samples": 2, "max_new_tokens": 300, "start": "The sea"}
    assert sampling.with_run("mine-1").options == {**sampling.options, "out_dir": "mine-1"}
    most = training.rental.most_dollars + sampling.rental.most_dollars
    assert training.notes[-1] == f"training and sampling together cost at most ${most:.2f}"
    assert training.function_options == {**ON_L4, "timeout": 7500}
    assert sampling.function_options == {**ON_L4, "timeout": 900}
    assert plan(volume, "pipeline", dataset="mine.txt")[1].options == {"num_samples": 3, "max_new_tokens": 300}
    with pytest.raises(ng.UserError, match="the prompt has 'Z'"):
        plan(volume, "pipeline", dataset="mine.txt", start="Zoo")


@pytest.mark.parametrize("gpu", ["T4", "L4", "H100", "H100:8", "L4,H100:8"])
@pytest.mark.parametrize("max_dollars", [0.01, 0.05, 0.4, 0.7, 3.0, 500.0])
def test_pipeline_costs_at_most_max_dollars_and_an_error_names_enough(volume, gpu, max_dollars):
    flags = {"dataset": "mine.txt", "batch_size": 8, "max_dollars": max_dollars}
    try:
        both = plan(volume, "pipeline", gpu, **flags)
    except ng.UserError as error:
        ((given, amount),) = re.findall(r"--max-dollars ([\d.]+) is too little .* give ([\d.]+) or more", str(error))
        assert float(given) == max_dollars < float(amount)
        max_dollars = float(amount)
        both = plan(volume, "pipeline", gpu, **{**flags, "max_dollars": max_dollars})
    assert sum(part.rental.most_dollars for part in both) <= max_dollars
    assert min(part.rental.seconds for part in both) >= 60


def test_texts_of_which_nothing_was_known_are_checked_when_they_are_prepared(volume):
    url = "https://example.com/poem.txt"
    flags = {"dataset": url, "block_size": 64}
    training = plans.plan_training(StoredFiles(volume), flags, gpu="L4", prompt="The sea")
    assert training.texts_to_prepare() == [Text(url, tokenizer="auto")]
    for text, message in ((TEXT, ""), ("The sea " * 8, "too short for block_size=64"), ("abc" * 200, "prompt has 'T'")):
        Path("poem.txt").write_text(text, encoding="utf-8")
        ng.prepare("poem.txt", out_dir=volume.folder / "datasets/poem", overwrite=True)
        if message:
            with pytest.raises(ng.UserError, match=message):
                training.check_prepared_texts(StoredFiles(volume))
        else:
            training.check_prepared_texts(StoredFiles(volume))


def test_plan_shows_its_notes_and_then_what_is_rented(volume, capsys):
    training = plan(volume, "training", init_from="resume", max_iters=40)
    training.show()
    note, rental = capsys.readouterr().out.splitlines()
    assert note == "resuming the newest run: plain"
    assert rental == str(training.rental)
    assert rental.startswith("renting 1 x L4, $")


def test_options_of_a_plan_are_options_of_its_function(volume):
    """Everything else that was a flag stays on this machine."""
    rented: dict[str, Any] = {"gpu": "L4", "timeout": "5m", "max_dollars": 3.0}
    training = plan(volume, "training", dataset="sea", verify=True, **rented)
    assert training.options.keys() <= {*TrainConfig.names(), "preset", "overwrite", "verify", "time_limit"}
    sampling = plan(volume, "sampling", top_k=3, **rented)
    assert sampling.options.keys() <= {*SampleConfig.names(), "out_dir"}
    evaluation = plan(volume, "evaluation", dataset="sea", int8=True, **rented)
    assert evaluation.options.keys() <= {*LoadConfig.names(), "out_dir", "dataset", "verify"}
    preparation = plan(volume, "preparation", dataset="sea", **rented)
    assert preparation.options.keys() <= {*DataConfig.names(), "overwrite"}


def test_text_with_the_name_of_a_built_in_one_is_refused(volume):
    Path("python_docs.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ng.UserError, match=r"python_docs.txt would be stored as 'python_docs', the name of a built-in"):
        plan(volume, "training", dataset="python_docs.txt")


@pytest.mark.parametrize("dataset", ["nowhere/sea.txt", "sea/*.txt", "sea.md", "./sea"])
def test_path_without_a_file_does_not_mean_the_text_on_the_volume_of_that_name(volume, dataset):
    assert plan(volume, "training", dataset="sea.txt").options["dataset"] == "sea"
    with pytest.raises(ng.UserError, match="there is no text .* on this machine or on the Volume"):
        plan(volume, "training", dataset=dataset)


def test_upload_that_replaces_another_text_says_so(volume, capsys):
    Path("sea.txt").write_text(TEXT, encoding="utf-8")
    (text,) = plan(volume, "training", dataset="sea.txt").texts
    upload_texts(volume, [text])
    assert "--dataset sea names this text, which was another one before" in capsys.readouterr().out
    (text,) = plan(volume, "training", dataset="mine.txt").texts
    upload_texts(volume, [text])
    assert "before" not in capsys.readouterr().out


def replace_text_of(volume, dataset):
    """As after the upload and the preparation of another text of this name."""
    manifest = volume.folder / "datasets" / dataset / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "sha256": "0" * 64}), encoding="utf-8")


def test_run_whose_text_was_replaced_is_resumed_with_the_text_from_this_machine_stored_apart(volume):
    replace_text_of(volume, "sea")
    for command, flags in (("training", {"init_from": "resume", "max_iters": 30}), ("evaluation", {})):
        with pytest.raises(ng.UserError, match=r"the text 'sea' is not the one that the run 'plain' was .*`dataset`"):
            plan(volume, command, out_dir="plain", **flags)
    shutil.copy(GOLDEN / "sea.txt", "sea.txt")
    resumed = plan(volume, "training", out_dir="plain", init_from="resume", max_iters=30, dataset="sea.txt")
    (text,) = resumed.texts
    assert (text.dataset, text.local_path, resumed.options["dataset"]) == ("sea-for-plain", "sea.txt", "sea-for-plain")
    shutil.rmtree(volume.folder / "datasets/sea")
    with pytest.raises(ng.UserError, match="the text 'sea' is not on the Volume, or not the one"):
        plan(volume, "evaluation", out_dir="plain")


def test_run_whose_text_is_there_needs_no_upload(volume):
    shutil.copy(GOLDEN / "sea.txt", "sea.txt")
    resumed = plan(volume, "training", out_dir="plain", init_from="resume", max_iters=30, dataset="sea.txt")
    assert resumed.texts == ()
    assert "dataset" not in resumed.options
    with pytest.raises(ng.UserError, match="mine.txt is not the text that the run 'plain' was trained on"):
        plan(volume, "training", out_dir="plain", init_from="resume", max_iters=30, dataset="mine.txt")


def test_name_that_another_call_has_reserved_is_refused(volume):
    shared = SharedDict()
    Call("first", shared).reserve_run("long")
    stored = StoredFiles(volume, shared)
    with pytest.raises(ng.UserError, match="another call has started to train the run 'long'.*`overwrite=True`"):
        plans.plan_training(stored, {"dataset": "sea", "out_dir": "long"}, gpu="L4")
    for flags in ({"out_dir": "long", "overwrite": True}, {"out_dir": "other"}):
        assert plans.plan_training(stored, {"dataset": "sea", **flags}, gpu="L4").options["out_dir"]


def test_text_with_characters_that_the_run_does_not_know_is_not_evaluated(volume):
    Path("emoji.txt").write_text("🙂" * 100, encoding="utf-8")
    with pytest.raises(ng.UserError, match=r"the text emoji has '🙂' \(U\+1F642\).* the run 'plain' knows"):
        plan(volume, "evaluation", out_dir="plain", dataset="emoji.txt")


def test_empty_gpu_is_refused(volume):
    with pytest.raises(ng.UserError, match="--gpu is empty; give a GPU"):
        plan(volume, "training", dataset="sea", gpu="")


def test_newest_run_is_named(volume):
    assert plan(volume, "sampling").notes == plan(volume, "evaluation").notes == ("the newest run: plain",)
    assert plan(volume, "sampling", out_dir="modern").notes == ()


def test_sweep_over_tokenizers_prepares_each_text_with_each_and_uploads_it_once(volume, capsys):
    sweep = plan(volume, "sweep", dataset="mine.txt,sea", tokenizer="char,byte")
    assert (sweep.options["dataset"], sweep.options["tokenizer"]) == ("mine,sea", "char,byte")
    prepared = {(text.dataset, text.tokenizer) for text in sweep.texts_to_prepare()}
    assert prepared == {("mine", "char"), ("mine", "byte"), ("sea", "byte")}, "sea is prepared for characters"
    upload_texts(volume, sweep.texts)
    assert capsys.readouterr().out.count("uploaded mine.txt") == 1


def test_run_on_a_built_in_text_needs_no_data_on_the_volume(volume):
    config = volume.folder / "runs/bytes/config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["config"]["dataset"], content["dataset"]["path"] = "python_docs", "data/python_docs-byte"
    config.write_text(json.dumps(content), encoding="utf-8")
    assert plan(volume, "evaluation", out_dir="bytes").options == {"out_dir": "bytes"}
    content["config"]["dataset"] = "docs.txt"
    config.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ng.UserError, match="the text 'python_docs-byte' is not on the Volume"):
        plan(volume, "evaluation", out_dir="bytes")


def test_sweep_over_two_texts_of_one_name_is_refused(volume):
    Path("other").mkdir()
    Path("other/mine.txt").write_text(TEXT[::-1], encoding="utf-8")
    with pytest.raises(ng.UserError, match="two texts would be stored as 'mine'"):
        plan(volume, "sweep", dataset="mine.txt,other/mine.txt")


def test_rented_gpu_that_is_not_used_is_a_warning(volume, capsys):
    plan(volume, "training", dataset="sea", device="cpu")
    assert capsys.readouterr().out == "warning: with --device cpu, the GPU that is rented is not used\n"
