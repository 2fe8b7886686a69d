"""The road from Python: prepare, train, sample, and what a run's folder promises."""

import inspect
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import pipeline, request, setup
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data import download
from nanogpt_lite.device import devices
from nanogpt_lite.runs import run_files, run_folder
from nanogpt_lite.tracking import console


def test_the_road_in_python(text_file, capsys):
    dataset = ng.prepare("bottles.txt")
    run = ng.train(dataset, preset="cpu", **TINY)
    assert run.out_dir == run_folder.RUNS_DIR / "bottles-1"
    text = ng.sample(run, start="9 green", max_new_tokens=30)[0]
    assert text.startswith("9 green")
    assert len(text) == len("9 green") + 30
    assert "".join(ng.stream(run, start="9 green", max_new_tokens=30)) == text
    assert [line.get_label() for line in run.plot().axes[0].lines] == ["train", "val"]
    captured = capsys.readouterr()
    assert captured.out == ""  # results only go to standard output
    assert "step 20: train loss" in captured.err


def test_metrics_and_config_tell_the_run(trained):
    kinds = [record["kind"] for record in trained.metrics]
    assert kinds == ["start", "step", "eval", "checkpoint", "checkpoint", "step", "eval", *["checkpoint"] * 2, "done"]
    step = trained.metrics[1]
    assert step.keys() >= {"loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds", "mfu"}
    assert step["grad_norm"] > 0
    assert step["mfu"] is None  # no peak rate is known of a CPU
    config = json.loads((trained.out_dir / "config.json").read_text())
    assert config["config"].keys() == set(TrainConfig.names()) - {"out_dir"}
    assert config["dataset"]["sha256"] == ng.prepare("bottles.txt").sha256
    assert config["versions"]["torch"] == torch.__version__


def test_config_json_repeats_a_run(trained):
    again = ng.train(config=trained.out_dir / "config.json")
    assert again.out_dir != trained.out_dir
    files = [(run.out_dir / "last.safetensors").read_bytes() for run in (trained, again)]
    assert files[0] == files[1]


def test_precedence_is_preset_file_given(text_file):
    (text_file.parent / "options.json").write_text(json.dumps({**TINY, "max_iters": 3, "learning_rate": 5e-4}))
    run = ng.train("bottles.txt", preset="tutorial", config="options.json", max_iters=2)
    config = json.loads((run.out_dir / "config.json").read_text())["config"]
    assert config["max_iters"] == 2  # given, over the file's 3 and the preset's 1000
    assert config["learning_rate"] == 5e-4  # the file's, over the preset's 1e-3
    assert config["beta2"] == 0.99  # nobody said otherwise


def test_a_resumed_run_takes_its_options_from_the_checkpoint(trained):
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=30, learning_rate=2e-3, preset="tutorial")
    metadata = read_checkpoint(trained.out_dir / "last.safetensors").metadata
    assert metadata.step == 30
    assert metadata.config["n_embd"] == 16
    assert metadata.config["learning_rate"] == 2e-3
    assert metadata.config["lr_decay_iters"] == 20
    steps = [record["step"] for record in trained.metrics if record["kind"] == "step"]
    assert steps == [10, 20, 30]


def test_a_checkpoint_does_not_say_where_or_how_often_it_was_made(text_file):
    straight = ng.train("bottles.txt", out_dir="here", **TINY)
    for record in ng.training("bottles.txt", out_dir="there/deep", max_seconds=1000, **TINY):
        if record.kind == "checkpoint" and record.step == 10:
            break
    ng.train(out_dir="there/deep", init_from="resume")
    for name in ("best", "last"):
        one, other = (run / f"{name}.safetensors" for run in (straight.out_dir, text_file.parent / "there/deep"))
        assert one.read_bytes() == other.read_bytes()


def test_metrics_past_the_checkpoint_are_dropped_on_resume(trained):
    path = trained.out_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "step", "step": 23}\n{"kind": "st')
    seconds = max(record["seconds"] for record in trained.metrics if "seconds" in record)
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=25)
    steps = [record["step"] for record in trained.metrics]
    assert steps == sorted(steps)
    assert 23 not in steps
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert trained.metrics[-1]["seconds"] > seconds


def test_a_run_can_begin_with_the_weights_of_another(trained, text_file):
    (text_file.parent / "other.txt").write_text("9 green bottles in a wall; " * 60)
    second = ng.train(
        "other.txt", init_from=str(trained.out_dir), preset="cpu", learning_rate=1e-9, min_lr=0.0, max_iters=1
    )
    metadata = read_checkpoint(second.out_dir / "last.safetensors").metadata
    assert metadata.config["n_embd"] == 16
    assert metadata.tokenizer == read_checkpoint(trained.out_dir / "best.safetensors").metadata.tokenizer
    for one, other in zip(ng.load(trained)[0].parameters(), ng.load(second)[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    ng.train(out_dir=second.out_dir, init_from="resume", max_iters=3)  # the first run is no longer needed for that
    with pytest.raises(ng.UserError, match=r"n_layer=3 \(the checkpoint has 1\)"):
        ng.train("other.txt", init_from=str(trained.out_dir), n_layer=3)
    (text_file.parent / "foreign.txt").write_text("Ω" * 200)
    with pytest.raises(ng.UserError, match=r"'Ω' \(U\+03A9\) at position 0"):
        ng.train("foreign.txt", init_from=str(trained.out_dir))


def test_nothing_is_overwritten_unasked(trained):
    before = (trained.out_dir / "last.safetensors").read_bytes()
    with pytest.raises(ng.UserError, match="`init_from='resume'`.*`overwrite=True`"):
        ng.train("bottles.txt", out_dir=trained.out_dir, **TINY)
    assert (trained.out_dir / "last.safetensors").read_bytes() == before
    ng.train("bottles.txt", out_dir=trained.out_dir, overwrite=True, **{**TINY, "max_iters": 5})
    assert trained.metrics[-1]["step"] == 5


def test_a_run_is_trained_by_one_process_at_a_time(trained, text_file):
    options = {**TINY, "max_iters": 40}
    with closing(ng.training(out_dir=trained.out_dir, init_from="resume", max_iters=40)) as records:
        next(records)
        before = {path: path.read_bytes() for path in trained.out_dir.iterdir()}
        command = [sys.executable, "-m", "nanogpt_lite", "train", "--out_dir", str(trained.out_dir)]
        others = [
            subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True)
            for more in (["--init_from", "resume"], ["--overwrite", "--dataset", "bottles.txt"])
        ]
        for other in others:
            assert "is in use by another training" in other.communicate()[1]
            assert other.returncode == 2
        assert {path: path.read_bytes() for path in trained.out_dir.iterdir()} == before
        assert list(records)[-1].step == 40
    assert ng.train("bottles.txt", out_dir=trained.out_dir, overwrite=True, **options).metrics[-1]["step"] == 40


def test_a_run_cannot_go_back(trained):
    with pytest.raises(ng.UserError, match="is at step 20, beyond max_iters=5"):
        ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=5)


def test_a_resumed_run_whose_text_is_elsewhere_says_what_it_was(trained, text_file, monkeypatch):
    elsewhere = text_file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ng.UserError, match="trained on 'bottles.txt', as seen from the folder where it was started"):
        ng.train(out_dir=f"../{trained.out_dir}", init_from="resume", max_iters=30)
    assert ng.train("../bottles.txt", out_dir=f"../{trained.out_dir}", init_from="resume", max_iters=30)


def test_a_replaced_run_leaves_none_of_its_files(text_file):
    ng.train("bottles.txt", out_dir="runs/a", **{**TINY, "keep_every": 5})
    (run_folder.RUNS_DIR / "a" / "notes.txt").write_text("mine")
    ng.train("bottles.txt", out_dir="runs/a", overwrite=True, **{**TINY, "max_iters": 2})
    left = sorted(path.name for path in (run_folder.RUNS_DIR / "a").iterdir())
    assert left == ["best.safetensors", "config.json", "last.safetensors", "metrics.jsonl", "notes.txt"]


def test_resuming_a_finished_run_changes_nothing_of_it(trained):
    kept = {path: path.read_bytes() for path in trained.out_dir.iterdir() if path.name != "metrics.jsonl"}
    ng.train(out_dir=trained.out_dir, init_from="resume", learning_rate=0.5)
    assert {path: path.read_bytes() for path in kept} == kept
    assert [record for record in trained.metrics if record["kind"] == "step"][-1]["step"] == 20


def test_a_run_is_replaced_only_when_the_new_one_is_possible(trained, text_file):
    (trained.out_dir / "mine.safetensors").write_bytes(b"foreign weights")
    before = (trained.out_dir / "best.safetensors").read_bytes()
    again = {"out_dir": trained.out_dir, "overwrite": True}
    for mistake in ({"dataset": "typo.txt"}, {"device": "cuda:77"}, {"block_size": 10**6}, {"init_from": "nowhere"}):
        with pytest.raises(ng.UserError):
            ng.train(**{**TINY, "dataset": "bottles.txt", **again, **mistake})
    assert (trained.out_dir / "best.safetensors").read_bytes() == before
    ng.train("bottles.txt", **again, **{**TINY, "max_iters": 1})
    assert (trained.out_dir / "mine.safetensors").read_bytes() == b"foreign weights"


def test_files_of_others_in_the_folder_of_a_run_stay(text_file):
    (text_file.parent / "results").mkdir()
    (text_file.parent / "results/loss.txt").write_text("mine")
    (text_file.parent / "results/.draft.tmp").write_text("mine")
    ng.train("bottles.txt", out_dir="results", **{**TINY, "max_iters": 1})
    assert (text_file.parent / "results/loss.txt").read_text() == "mine"
    assert (text_file.parent / "results/.draft.tmp").read_text() == "mine"


def test_prepared_data_serves_when_the_text_is_gone(trained, text_file):
    text_file.unlink()
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=21)
    assert ng.evaluate(trained)["step"] == 21


def test_a_prepared_dataset_is_remembered_by_what_was_asked_for(text_file):
    run = ng.train(ng.prepare("bottles.txt"), **{**TINY, "max_iters": 2})
    assert checkpoint_file.read_checkpoint(run.out_dir / "last.safetensors").metadata.config["dataset"] == "bottles.txt"
    dataset = ng.prepare("bottles.txt")
    text_file.write_text("another text altogether\n" * 50)
    ng.prepare("bottles.txt")
    with pytest.raises(ng.UserError, match="not the text that the run was trained on"):
        ng.train(dataset, **TINY)


def test_a_file_of_options_serves_a_resume_too(trained, text_file):
    ng.train("bottles.txt", **{**TINY, "max_iters": 1})  # a newer run, which is not meant
    options = {"out_dir": str(trained.out_dir), "init_from": "resume", "max_iters": 7, "max_seconds": 500}
    (text_file.parent / "options.json").write_text(json.dumps(options))
    run = ng.train(config="options.json", max_iters=22)
    assert run == trained
    config = json.loads((trained.out_dir / "config.json").read_text())["config"]
    assert (config["max_iters"], config["max_seconds"]) == (22, 500)
    with pytest.raises(ng.UserError, match="unknown preset"):
        ng.train(init_from="resume", preset="typo")


def test_whole_numbers_given_for_numbers_are_the_same_run(text_file):
    tiny = {**TINY, "max_iters": 2}
    one, other = (ng.train("bottles.txt", **{**tiny, "dropout": zero}) for zero in (0, 0.0))
    files = [(run.out_dir / "last.safetensors").read_bytes() for run in (one, other)]
    assert files[0] == files[1]


def test_float16_runs_whose_scaler_leaves_steps_out_are_logged(text_file, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **options: scaler(*args, init_scale=2.0**24, **options))
    run = ng.train("bottles.txt", dtype="float16", log_interval=1, **TINY)
    norms = [record["grad_norm"] for record in run.metrics if record["kind"] == "step"]
    assert norms[0] is None
    assert isinstance(norms[-1], float)


def test_run_tells_a_mistake_in_sampling_before_it_trains(text_file):
    tiny = {**TINY, "dataset": "bottles.txt"}
    for mistake in ({"top_p": 7.0}, {"start": "FILE:missing.txt"}, {"start": "é"}):
        with pytest.raises(ng.UserError):
            pipeline.run(**tiny, **mistake)
    assert not list(text_file.parent.glob("runs/*/*.safetensors"))


def test_run_goes_on_with_a_run_on_any_text(trained):
    run, pieces = pipeline.run(init_from="resume", max_iters=21, max_new_tokens=5)
    assert run == trained
    assert run.metrics[-1]["step"] == 21
    assert len("".join(piece[0] for piece in pieces)) == 6


def test_runs_get_the_next_free_name_and_the_newest_is_found(trained):
    second = ng.train("bottles.txt", **TINY)
    assert second.out_dir.name == "bottles-2"
    assert run_folder.newest_run() == second
    later = (second.out_dir / "last.safetensors").stat().st_mtime + 10
    os.utime(trained.out_dir / "last.safetensors", (later, later))
    assert run_folder.newest_run() == trained


def test_another_text_under_a_run_is_an_error(trained, text_file):
    for text in (text_file.read_text()[:-1], "a text with new characters: é" * 20):
        text_file.write_text(text)
        ng.prepare("bottles.txt")  # until then the prepared data serves
        with pytest.raises(ng.UserError, match="not the text that the run was trained on.*`init_from`"):
            ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=30)
        with pytest.raises(ng.UserError, match="not the text that the run was trained on"):
            ng.evaluate(trained)
    assert "sha256" in json.loads((text_file.parent / "data/bottles/manifest.json").read_text())


def test_a_change_of_arithmetic_is_warned_of(trained, capsys):
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=21, threads=2, seed=1)
    assert "warning: threads, seed changed" in capsys.readouterr().err
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=22, batch_size=2, gradient_accumulation_steps=4)
    assert "warning: batch_size, gradient_accumulation_steps changed" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"dataset": 3}', b"\xff"])
def test_a_config_json_that_is_of_no_use_is_told_of_and_written_anew(trained, content):
    path = trained.out_dir / "config.json"
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ng.UserError, match=r"config.json does not say where .*`init_from='resume'`, `out_dir='.*'`"):
        _ = trained.data_folder
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=23)
    assert json.loads(path.read_bytes())["dataset"] == json.loads(before)["dataset"]


def test_whatever_the_metrics_say_a_picture_is_drawn_or_refused(trained):
    path = trained.out_dir / "metrics.jsonl"
    whole, records = path.read_bytes(), trained.metrics
    for line in (
        b'{"kind": "eval", "step": 9}',
        b'{"kind": "step", "step": 9, "loss": ""}',
        b"[]",
    ):
        path.write_bytes(whole + line + b"\n")
        assert trained.metrics == records
        trained.save_plot()
    path.unlink()
    with pytest.raises(ng.UserError, match=r"metrics.jsonl holds no losses; train for .* another run"):
        trained.plot()


@pytest.mark.parametrize(
    "text", ["Съешь ещё этих мягких французских булок.\r\n", "天地玄黃宇宙洪荒日月盈昃\n", "🙂🙃😀👩‍👩‍👧 ok\r\n"]
)
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_other_scripts_train_and_sample(text_file, text, tokenizer):
    (text_file.parent / "script.txt").write_bytes(text.encode() * 60)
    run = ng.train("script.txt", tokenizer=tokenizer, **{**TINY, "max_iters": 200, "learning_rate": 1e-2})
    drawn = ng.sample(run, start=text[:4], max_new_tokens=60, temperature=0.0)[0]
    assert drawn.startswith(text[:4])
    assert set(drawn) <= set(text) | {"\ufffd"}
    assert run.best_val_loss is not None
    assert run.best_val_loss < 1.5  # what each symbol's frequency alone allows is above 2


def test_samples_in_training_do_not_change_it(text_file):
    plain, sampled = (ng.train("bottles.txt", **TINY, sample_interval=n, log_interval=3) for n in (0, 4))
    options = [read_checkpoint(run.out_dir / "last.safetensors") for run in (plain, sampled)]
    assert all(torch.equal(options[0].tensors[name], options[1].tensors[name]) for name in options[0].tensors)
    texts = [record["text"] for record in sampled.metrics if record["kind"] == "sample"]
    assert [len(text) for text in texts] == [pipeline.PREVIEW_TOKENS] * 5


def test_an_interrupt_saves_and_is_raised(text_file, capsys):
    records = ng.training("bottles.txt", **{**TINY, "max_iters": 10_000, "log_interval": 1})
    with pytest.raises(ng.Interrupted) as caught:
        for record in records:
            if record.kind == "step" and record.step == 13:
                os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    assert (str(caught.value), caught.value.out_dir) == ("the state is saved", "runs/bottles-1")
    assert read_checkpoint(run_folder.find_checkpoint("runs/bottles-1", "last")).metadata.step == 13
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_interrupted_pipeline_names_the_folder_to_resume_from(text_file, monkeypatch):
    """The signal arrives while an evaluation is recorded."""
    written = console.Console.write

    def write(console, record):
        written(console, record)
        if record.kind == "eval":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(console.Console, "write", write)
    with pytest.raises(ng.Interrupted, match="the state is saved") as caught:
        pipeline.run(dataset="bottles.txt", **{**TINY, "max_iters": 10_000})
    assert caught.value.out_dir == "runs/bottles-1"


def test_unknown_options_are_errors_that_name_the_nearest(text_file):
    for call in (ng.train, ng.sample, ng.evaluate):
        with pytest.raises(ng.UserError, match=r"unknown option 'devise'; did you mean device\?"):
            call(devise="cpu")
    with pytest.raises(ng.UserError, match="unknown preset 'cpuu'; did you mean cpu"):
        ng.train("bottles.txt", preset="cpuu")


def test_functions_show_their_options():
    parameters = inspect.signature(ng.train).parameters
    assert parameters["max_iters"].default == 5000
    assert set(parameters) == {*TrainConfig.names(), "preset", "config", "overwrite", "console"}
    assert "temperature" in inspect.signature(ng.sample).parameters


def test_the_preset_fits_the_device(monkeypatch):
    assert setup.default_preset("cpu") == "modern-cpu"
    monkeypatch.setattr(devices, "resolve_device", lambda name, group: torch.device("cuda"))
    assert setup.default_preset("auto") == "modern"


def test_run_goes_on_with_python_docs_only_if_nobody_chose(text_file, monkeypatch, capsys):
    def refuse(*_args, **_options):
        raise download.DownloadError("cannot fetch it")

    monkeypatch.setattr("nanogpt_lite.data.download.fetch", refuse)
    tiny = {**TINY, "max_iters": 2}
    run, pieces = pipeline.run(**tiny, max_new_tokens=5)
    assert run.out_dir.name == "python_docs-1"
    assert len("".join(piece[0] for piece in pieces)) == 6
    assert "warning: cannot fetch it. Using python_docs instead" in capsys.readouterr().err
    for chosen in (
        {"dataset": "shakespeare_char"},
        {"config": run.out_dir / "config.json", "dataset": "shakespeare_char"},
    ):
        with pytest.raises(ng.ExternalError, match="cannot fetch it"):
            pipeline.run(**tiny, **chosen)


def test_a_folder_in_which_another_training_works_is_refused(trained):
    with run_files.lock_run(trained.out_dir):
        for options in ({"init_from": "resume", "max_iters": 30}, {"overwrite": True}):
            with pytest.raises(ng.UserError, match="is in use by another training; wait"):
                ng.train("bottles.txt", out_dir=trained.out_dir, **options)


@pytest.mark.parametrize("left", [["best"], ["step_000006"], ["best", "step_000006"], ["step_000003", "step_000006"]])
def test_without_last_it_goes_on_from_the_newest_there_is(text_file, left):
    """A kill may come between the saves of one evaluation, or before the first one, with --keep_every."""
    options = {**TINY, "eval_interval": 3, "keep_every": 3, "lr_decay_iters": 9}
    whole = ng.train("bottles.txt", out_dir="whole", **{**options, "max_iters": 9})
    ng.train("bottles.txt", out_dir="cut", **{**options, "max_iters": 6})
    for path in Path("cut").glob("*.safetensors"):
        if path.stem not in left:
            path.unlink()
    cut = ng.train(out_dir="cut", init_from="resume", max_iters=9)
    files = [(run.out_dir / "last.safetensors").read_bytes() for run in (whole, cut)]
    assert files[0] == files[1]


def test_ranks_that_are_started_anew_go_on_from_the_newest_there_is(text_file):
    first = request.read_request("bottles.txt", "cpu", None, True, {"max_iters": 3})
    Path("begun").mkdir()
    assert request.request_for_restart(first, "") == first
    anew = request.request_for_restart(first, "begun")
    assert (anew.explicit["out_dir"], anew.explicit.get("init_from"), anew.preset) == ("begun", None, "cpu")
    Path("begun/step_000002.safetensors").touch()
    on = request.request_for_restart(first, "begun")
    assert (on.explicit["out_dir"], on.explicit["init_from"], on.preset) == ("begun", "resume", None)


def test_a_folder_that_was_taken_meanwhile_is_left_alone(text_file, monkeypatch):
    """Two runs begin with one name, and one is over before the other one has its data."""
    open_data, begun = setup.open_data, list[bytes]()

    def slow(*arguments, **options):
        if not begun:
            begun.append(b"")
            ng.train("bottles.txt", out_dir="one", **TINY)
            begun.append(Path("one/last.safetensors").read_bytes())
        return open_data(*arguments, **options)

    monkeypatch.setattr(setup, "open_data", slow)
    with pytest.raises(ng.UserError, match="holds a run already"):
        ng.train("bottles.txt", out_dir="one", **TINY)
    assert Path("one/last.safetensors").read_bytes() == begun[1]


def test_a_long_evaluation_is_told_of_before_it_begins(text_file, monkeypatch, capsys):
    for long, options, told in ((50, {}, True), (50, {"eval_iters": 1}, False), (10**6, {}, False)):
        monkeypatch.setattr(pipeline, "LONG_VAL_TOKENS", long)
        ng.train("bottles.txt", **{**TINY, "max_iters": 1, **options})
        assert ("each evaluation reads all " in capsys.readouterr().err) == told
