"""Prepare, train and sample in one call: mistakes come before the work, and what was done survives an interrupt."""

import os
import signal

import pytest
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import main_job
from nanogpt_lite.data import download
from nanogpt_lite.tracking import console


def test_run_reports_sampling_mistakes_before_training(text_file):
    tiny = {**TINY, "dataset": "bottles.txt"}
    for mistake in ({"top_p": 7.0}, {"start": "FILE:missing.txt"}, {"start": "é"}):
        with pytest.raises(ng.UserError):
            main_job.run(**tiny, **mistake)
    assert not list(text_file.parent.glob("runs/*/*.safetensors"))


def test_run_resumes_a_run_on_any_text(trained):
    run, pieces = main_job.run(init_from="resume", max_iters=21, max_new_tokens=5)
    assert run == trained
    assert run.metrics[-1]["step"] == 21
    assert len("".join(piece[0] for piece in pieces)) == 6


@pytest.mark.posix("os.kill sends no signal on Windows, but ends the process")
def test_interrupted_pipeline_names_the_folder_to_resume_from(text_file, monkeypatch):
    """The signal arrives while an evaluation is recorded."""
    written = console.Console.write

    def write(console, record):
        written(console, record)
        if record.kind == "eval":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(console.Console, "write", write)
    with pytest.raises(ng.Interrupted, match="the state is saved") as caught:
        main_job.run(dataset="bottles.txt", **{**TINY, "max_iters": 10_000})
    assert caught.value.out_dir == "runs/bottles-1"


def test_run_falls_back_to_python_docs_only_without_a_chosen_dataset(text_file, monkeypatch, capsys):
    def refuse(*_args, **_options):
        raise download.DownloadError("cannot fetch it")

    monkeypatch.setattr("nanogpt_lite.data.download.fetch", refuse)
    tiny = {**TINY, "max_iters": 2}
    run, pieces = main_job.run(**tiny, max_new_tokens=5)
    assert run.out_dir.name == "python_docs-1"
    assert len("".join(piece[0] for piece in pieces)) == 6
    assert "warning: cannot fetch it. Using python_docs instead" in capsys.readouterr().err
    for chosen in (
        {"dataset": "shakespeare_char"},
        {"config": run.out_dir / "config.json", "dataset": "shakespeare_char"},
    ):
        with pytest.raises(ng.ExternalError, match="cannot fetch it"):
            main_job.run(**tiny, **chosen)
