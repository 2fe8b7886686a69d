"""Prepare, train and sample from Python; interrupts, previews and the files of a run."""

import gc
import inspect
import json
import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
import torch
from emulated_graph import emulated_graphs
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import main_job, pipeline
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.generation.cuda_graph import Recording
from nanogpt_lite.runs import run_folder
from nanogpt_lite.tracking import console
from nanogpt_lite.tracking.metrics_file import MetricsFile
from nanogpt_lite.trainer import loop, step


def test_prepare_train_and_sample_in_python(text_file, capsys):
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


def test_metrics_and_config_describe_the_run(trained):
    kinds = [record["kind"] for record in trained.metrics]
    evaluation = ["eval", "checkpoint", "checkpoint"]
    assert kinds == ["start", "step", *evaluation, "step", *evaluation, "result", "done"]
    step = trained.metrics[1]
    assert step.keys() >= {"loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds", "mfu"}
    assert step["grad_norm"] > 0
    assert step["mfu"] is None  # no peak rate is known of a CPU
    config = json.loads((trained.out_dir / "config.json").read_text())
    assert config["config"].keys() == set(TrainConfig.names()) - {"out_dir"}
    assert config["dataset"]["sha256"] == ng.prepare("bottles.txt").sha256
    release = config["versions"]["torch"].split("+")[0]  # the build (+cpu, +cu130) may be only in torch.__version__
    assert release == torch.__version__.split("+")[0]


def test_config_json_repeats_a_run(trained):
    again = ng.train(config=trained.out_dir / "config.json")
    assert again.out_dir != trained.out_dir
    files = [(run.out_dir / "last.safetensors").read_bytes() for run in (trained, again)]
    assert files[0] == files[1]


def test_a_checkpoint_does_not_depend_on_its_folder_or_on_resumes(text_file):
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


def test_a_prepared_dataset_is_stored_by_its_source(text_file):
    run = ng.train(ng.prepare("bottles.txt"), **{**TINY, "max_iters": 2})
    assert checkpoint_file.read_checkpoint(run.out_dir / "last.safetensors").metadata.config.dataset == "bottles.txt"
    dataset = ng.prepare("bottles.txt")
    text_file.write_text("another text altogether\n" * 50)
    ng.prepare("bottles.txt")
    with pytest.raises(ng.UserError, match="not the text that the run was trained on"):
        ng.train(dataset, **TINY)


def test_float16_steps_skipped_by_the_scaler_are_logged(text_file, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **options: scaler(*args, init_scale=2.0**24, **options))
    # with spread windows, a step that overflows happens to be the last one
    run = ng.train("bottles.txt", dtype="float16", log_interval=1, **{**TINY, "batch_sampling": "random"})
    norms = [record["grad_norm"] for record in run.metrics if record["kind"] == "step"]
    assert norms[0] is None
    assert isinstance(norms[-1], float)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"dataset": 3}', b"\xff"])
def test_an_unusable_config_json_is_reported_and_rewritten(trained, content):
    path = trained.out_dir / "config.json"
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ng.UserError, match=r"config.json does not say where .*`init_from='resume'`, `out_dir='.*'`"):
        _ = trained.data_folder
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=23)
    assert json.loads(path.read_bytes())["dataset"] == json.loads(before)["dataset"]


def test_damaged_metrics_are_plotted_or_refused(trained):
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
def test_texts_in_other_scripts_train_and_sample(text_file, text, tokenizer):
    (text_file.parent / "script.txt").write_bytes(text.encode() * 60)
    run = ng.train("script.txt", tokenizer=tokenizer, **{**TINY, "max_iters": 200, "learning_rate": 1e-2})
    drawn = ng.sample(run, start=text[:4], max_new_tokens=60, temperature=0.0)[0]
    assert drawn.startswith(text[:4])
    assert set(drawn) <= set(text) | {"\ufffd"}
    assert run.best_val_loss is not None
    assert run.best_val_loss < 1.5  # what each symbol's frequency alone allows is above 2


def test_sample_interval_does_not_change_training(text_file):
    plain, sampled = (ng.train("bottles.txt", **TINY, sample_interval=n, log_interval=3) for n in (0, 4))
    options = [read_checkpoint(run.out_dir / "last.safetensors") for run in (plain, sampled)]
    assert all(torch.equal(options[0].tensors[name], options[1].tensors[name]) for name in options[0].tensors)
    texts = [record["text"] for record in sampled.metrics if record["kind"] == "sample"]
    assert [len(text) for text in texts] == [pipeline.PREVIEW_TOKENS] * 5


def test_a_preview_keeps_no_recording_whose_memory_a_step_may_need(text_file, monkeypatch):
    with emulated_graphs(monkeypatch) as log:
        for record in ng.training("bottles.txt", **{**TINY, "max_iters": 4}, sample_interval=2):
            if record.kind == "sample":
                gc.collect()
                assert not [thing for thing in gc.get_objects() if type(thing) is Recording]
    assert log.counts()["capture"] == 2


@pytest.mark.posix("os.kill sends no signal on Windows, but ends the process")
def test_an_interrupt_saves_and_is_raised(text_file, capsys):
    records = pipeline.training_to_end("bottles.txt", **{**TINY, "max_iters": 10_000, "log_interval": 1})
    with pytest.raises(ng.Interrupted) as caught:
        for record in records:
            if record.kind == "step" and record.step == 13:
                os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    assert (str(caught.value), caught.value.out_dir) == ("the state is saved", "runs/bottles-1")
    assert read_checkpoint(run_folder.find_checkpoint("runs/bottles-1", "last")).metadata.step == 13
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_functions_show_their_options():
    parameters = inspect.signature(ng.train).parameters
    assert parameters["max_iters"].default == 5000
    assert set(parameters) == {*TrainConfig.names(), "preset", "config", "overwrite", "verify", "console"}
    assert "temperature" in inspect.signature(ng.sample).parameters


def settings_of_the_process():
    return [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), torch.get_num_threads()]


@pytest.fixture
def python_handles_sigint():
    """Also if the tests were started with SIGINT ignored, as a shell starts jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.posix("os.kill sends no signal on Windows, but ends the process")
def test_suspended_generator_changes_neither_signal_handlers_nor_threads(text_file, python_handles_sigint):
    options = {**TINY, "threads": torch.get_num_threads() + 1}
    before = settings_of_the_process()
    with closing(ng.training("bottles.txt", **options)) as records:
        for record in records:
            assert settings_of_the_process() == before, record
            if record.kind == "start":
                with pytest.raises(KeyboardInterrupt):  # as without a training
                    os.kill(os.getpid(), signal.SIGINT)
    run = ng.Run(Path("runs/bottles-1"))
    chunks = ng.stream(run, threads=torch.get_num_threads() + 1, max_new_tokens=5)
    for chunk in chunks:
        assert settings_of_the_process() == before, chunk
    next(ng.stream(run, threads=torch.get_num_threads() + 1))
    assert settings_of_the_process() == before


@pytest.mark.posix("os.kill sends no signal on Windows, but ends the process")
def test_ctrl_c_during_a_step_of_a_bare_generator_ends_the_step_and_saves(text_file, monkeypatch):
    train_step, before = step.train_step, settings_of_the_process()

    def interrupted_step(state, forward, batch):
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        train_step(state, forward, batch)

    monkeypatch.setattr(loop, "train_step", interrupted_step)
    kinds = []
    with pytest.raises(ng.Interrupted) as caught:
        for record in ng.training("bottles.txt", **TINY):
            kinds.append(record.kind)
    assert (caught.value.signum, caught.value.out_dir) == (signal.SIGINT, "runs/bottles-1")
    assert kinds[-2:] == ["checkpoint", "done"]
    assert settings_of_the_process() == before
    saved = read_checkpoint(Path("runs/bottles-1/last.safetensors"))
    assert saved.metadata.step == 6


@pytest.mark.posix("os.kill sends no signal on Windows, but ends the process")
@pytest.mark.parametrize("call", [ng.train, main_job.run])
def test_signal_while_the_console_draws_still_saves_the_state(text_file, call):
    class InterruptedConsole(console.Console):
        def write(self, record):
            super().write(record)
            if record.kind == "step":
                os.kill(os.getpid(), signal.SIGTERM)

    options = {**TINY, "dataset": "bottles.txt", "log_interval": 3}
    with pytest.raises(ng.Interrupted) as caught:
        call(**options, console=InterruptedConsole(silent=True))
    assert caught.value.signum == signal.SIGTERM
    assert read_checkpoint(Path("runs/bottles-1/last.safetensors")).metadata.step == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.posix("os.kill sends no signal on Windows, but ends the process")
def test_signal_while_a_tracker_writes_still_saves_the_state(text_file, monkeypatch):
    write = MetricsFile.write

    def interrupted_write(self, record):
        write(self, record)
        if record.kind == "step":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsFile, "write", interrupted_write)
    with pytest.raises(ng.Interrupted):
        list(ng.training("bottles.txt", **{**TINY, "log_interval": 3}))
    assert read_checkpoint(Path("runs/bottles-1/last.safetensors")).metadata.step == 3
