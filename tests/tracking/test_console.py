"""What a person sees, on standard error only, and the metrics file, in whole lines."""

import io
import json
import os
import sys
from typing import Any

import pytest
from tqdm.std import tqdm

from nanogpt_lite.tracking import console as console_module
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.metrics_file import MetricsFile, read_metrics
from nanogpt_lite.tracking.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    SampleRecord,
    StartRecord,
    StepRecord,
)

START = StartRecord(
    step=0,
    out_dir="runs/a",
    parameters=10_745_088,
    tokenizer="char",
    vocab_size=65,
    tokens_per_step=16_384,
    epochs=81.6,
    max_iters=5000,
    device="NVIDIA H100",
    dtype="bfloat16",
    threads=2,
    dropout=False,
    ranks=1,
)


def step(number: int) -> StepRecord:
    return StepRecord(
        step=number,
        loss=1 / 3 + number,
        learning_rate=1e-3,
        grad_norm=0.1,
        tokens_per_second=123_456.0,
        mfu=0.25,
        seconds=0.5,
    )


def evaluation(number: int, best: bool = True) -> EvalRecord:
    return EvalRecord(step=number, train_loss=1.25, val_loss=1.5, best_val_loss=1.4, is_best=best, seconds=61.0)


def lines(path) -> list[dict[str, Any]]:
    """Python's own reading: every line is whole JSON, and ends with a newline."""
    text = path.read_text(encoding="ascii")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def metrics(tmp_path):
    """A metrics file with records of steps 0 to 5, and its path."""
    path = tmp_path / "run" / "metrics.jsonl"
    sink = MetricsFile(path)
    for record in [START, *map(step, range(1, 6)), evaluation(5)]:
        sink.write(record)
    sink.close()
    return path


def test_a_record_is_a_line(metrics):
    assert lines(metrics) == read_metrics(metrics)
    assert [(line["kind"], line["step"]) for line in lines(metrics)] == [
        ("start", 0),
        *[("step", number) for number in range(1, 6)],
        ("eval", 5),
    ]
    assert lines(metrics)[1] == {
        "kind": "step",
        "step": 1,
        "loss": 1 / 3 + 1,
        "learning_rate": 1e-3,
        "grad_norm": 0.1,
        "tokens_per_second": 123_456.0,
        "mfu": 0.25,
        "seconds": 0.5,
    }


@pytest.mark.parametrize(
    "torn",
    [
        b'{"kind": "eval", "step": 2, "val_loss": 1e999}',
        b"",
        b"{",
        b'{"kind": "step", "step": 2',
        b'{"kind": "step"}\n',
        b"\x00\xff",
        b"7",
    ],
)
@pytest.mark.parametrize("until", [-1, 0, 2, 5, 99])
def test_going_on_keeps_whole_records_up_to_a_step(metrics, torn, until):
    before = lines(metrics)
    with metrics.open("ab") as file:
        file.write(torn)
    assert read_metrics(metrics) == before
    sink = MetricsFile(metrics, keep_until=until)
    kept = [line for line in before if line["step"] <= until]
    assert lines(metrics) == kept
    sink.write(step(6))
    sink.close()
    assert lines(metrics) == [*kept, step(6).to_json()]
    assert [path.name for path in metrics.parent.iterdir()] == ["metrics.jsonl"]


def test_a_line_is_one_write(tmp_path, monkeypatch):
    sink = MetricsFile(tmp_path / "metrics.jsonl")
    written = []

    def spy(handle: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", spy)
    records = [START, step(1), SampleRecord(step=1, text="line\r\nline\u2028 ä" + "x" * 100_000)]
    for record in records:
        sink.write(record)
    assert [json.loads(data) for data in written] == [record.to_json() for record in records]
    assert all(data.count(b"\n") == 1 and data.endswith(b"\n") for data in written)
    sink.close()


def test_any_text_is_one_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = MetricsFile(path)
    texts = ["a\nb\r\nc\x0b\x0c\x1c\x85\u2028\u2029", "\ud800", "\0", "😀"]
    for text in texts:
        sink.write(SampleRecord(step=1, text=text))
    sink.close()
    assert [record["text"] for record in read_metrics(path)] == texts


def test_no_file_holds_no_records(tmp_path):
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_a_run_that_is_at_its_end_says_how_to_go_on(capsys):
    Console(bar=False).write(StartRecord(**{**vars(START), "step": 5000}))
    assert capsys.readouterr().err == "runs/a has its 5000 steps; to go on, give more --max_iters\n"


def test_the_header_tells_what_will_be_done(capsys):
    console = Console(bar=False)
    console.write(START)
    console.write(StartRecord(**{**vars(START), "step": 250}))
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    for part in ("5000", "10.75M parameters", "16,384 tokens", "81.6 epochs", "NVIDIA H100", "bfloat16", "2 threads"):
        assert part in first
    assert "from step 250 to step 5000" in second
    assert "from" not in first


def test_elsewhere_than_on_a_terminal_there_is_a_line_per_evaluation(capsys):
    console = Console()
    console.write(START)
    for number in range(1, 4):
        console.report("download", number, 3)
        console.write(step(number))
        console.write(evaluation(number, best=number == 1))
        console.write(CheckpointRecord(step=number, name="last", path="x"))
    console.write(SampleRecord(step=3, text="To be"))
    console.write(DoneRecord(step=3, reason="patience", best_val_loss=1.4, best_step=1, seconds=62))
    console.note("done")
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    _start, *evaluations, rule, sample, end, done, note = err.splitlines()
    assert evaluations == [
        "step 1: train loss 1.2500, val loss 1.5000, the best so far, 61 s",
        "step 2: train loss 1.2500, val loss 1.5000 (best 1.4000), 61 s",
        "step 3: train loss 1.2500, val loss 1.5000 (best 1.4000), 61 s",
    ]
    assert (rule, sample, end) == ("--- sample at step 3", "To be", "---")
    assert done.startswith("stopped at step 3, no new best")
    assert "best val loss 1.4000 at step 1" in done
    assert note == "done"


@pytest.mark.parametrize("reason", ["max_iters", "max_seconds", "target_loss", "patience", "interrupted"])
def test_every_ending_has_its_words(capsys, reason):
    Console(bar=False).write(DoneRecord(step=7, reason=reason, best_val_loss=None, best_step=0, seconds=1.0))
    err = capsys.readouterr().err
    assert err.startswith("stopped at step 7, ")
    assert "None" not in err
    assert "best val loss" not in err


def test_a_bar_shows_loss_and_rate(capsys):
    console = Console(bar=True)
    console.write(START)
    console.write(step(2500))
    console.write(evaluation(2500))
    console.write(DoneRecord(step=5000, reason="max_iters", best_val_loss=1.4, best_step=1, seconds=62))
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("\r", "2500/5000", "50%", "loss 2500.3333, 123.46k tokens/s, MFU 25.0%", "5000/5000"):
        assert part in err


def test_a_bar_begins_where_training_goes_on(capsys):
    console = Console(bar=True)
    console.write(StartRecord(**{**vars(START), "step": 2000}))
    console.close()
    assert "2000/5000" in capsys.readouterr().err


def test_a_report_of_bytes_is_one_bar(monkeypatch, capsys):
    """However many pieces there are; a new one begins when something else is done."""
    made = []

    def spy(**options):
        made.append(tqdm(**{**options, "delay": 0, "mininterval": 0}))
        return made[-1]

    monkeypatch.setattr(console_module, "terminal_bar", spy)
    console = Console(bar=True)
    for what, total in (("download", 50), ("read", None), ("encode", 50)):
        for done in range(10, 60, 10):
            console.report(what, done, total)
    assert [(bar.desc, bar.n, bar.total) for bar in made] == [
        ("download", 50, 50),
        ("read", 50, None),
        ("encode", 50, 50),
    ]
    console.close()
    assert all(bar.disable for bar in made)  # closed
    out, err = capsys.readouterr()
    assert out == ""
    assert "50.0/50.0" in err


def test_where_there_is_no_bar_a_line_comes_now_and_then(capsys, monkeypatch):
    console = Console(bar=False)
    console.write(START)
    console.write(step(10))
    assert "step 10" not in capsys.readouterr().err
    monkeypatch.setattr(console_module, "SILENT_SECONDS", -1)
    console.write(step(20))
    assert capsys.readouterr().err == "step 20: loss 20.3333, 123.46k tokens/s, MFU 25.0%\n"


@pytest.mark.parametrize("closed", [False, True])
def test_without_standard_error_nothing_is_shown_and_nothing_fails(monkeypatch, closed):
    stream = io.StringIO() if closed else None
    if stream:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    for record in (START, step(1), DoneRecord(step=1, reason="max_iters", best_val_loss=None, best_step=0, seconds=1)):
        console.write(record)
    console.report("read", 1, 2)
    console.close()


def test_a_loss_of_nothing_is_a_loss(capsys):
    Console(bar=False).write(DoneRecord(step=7, reason="max_iters", best_val_loss=0.0, best_step=4, seconds=1.0))
    assert "best val loss 0.0000 at step 4; " in capsys.readouterr().err
