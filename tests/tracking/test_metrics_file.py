"""The metrics file holds complete lines only, one record each."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from example_records import START, eval_record, step_record

from nanogpt_lite.tracking.metrics_file import MetricsFile, read_metrics
from nanogpt_lite.tracking.records import Record, SampleRecord


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records as Python's json module reads them: each line is complete JSON and ends with a newline."""
    text = path.read_text(encoding="ascii")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def metrics(tmp_path):
    """A metrics file with records of steps 0 to 5, and its path."""
    path = tmp_path / "run" / "metrics.jsonl"
    sink = MetricsFile(path)
    records: list[Record] = [START, *map(step_record, range(1, 6)), eval_record(5)]
    for record in records:
        sink.write(record)
    sink.close()
    return path


def test_each_record_is_one_line_of_json(metrics):
    assert read_lines(metrics) == read_metrics(metrics)
    assert [(line["kind"], line["step"]) for line in read_lines(metrics)] == [
        ("start", 0),
        *[("step", number) for number in range(1, 6)],
        ("eval", 5),
    ]
    assert read_lines(metrics)[1] == {
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
    "invalid_tail",
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
@pytest.mark.parametrize("last_step", [-1, 0, 2, 5, 99])
def test_reopening_keeps_complete_records_up_to_a_step(metrics, invalid_tail, last_step):
    before = read_lines(metrics)
    with metrics.open("ab") as file:
        file.write(invalid_tail)
    assert read_metrics(metrics) == before
    sink = MetricsFile(metrics, keep_until=last_step)
    expected = [line for line in before if line["step"] <= last_step]
    assert read_lines(metrics) == expected
    sink.write(step_record(6))
    sink.close()
    assert read_lines(metrics) == [*expected, step_record(6).to_json()]
    assert [path.name for path in metrics.parent.iterdir()] == ["metrics.jsonl"]


def test_each_line_is_written_by_one_call(tmp_path, monkeypatch):
    sink = MetricsFile(tmp_path / "metrics.jsonl")
    written = []

    def spy(handle: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", spy)
    records: list[Record] = [START, step_record(1), SampleRecord(step=1, text="line\r\nline\u2028 ä" + "x" * 100_000)]
    for record in records:
        sink.write(record)
    assert [json.loads(data) for data in written] == [record.to_json() for record in records]
    assert all(data.count(b"\n") == 1 and data.endswith(b"\n") for data in written)
    sink.close()


def test_any_text_round_trips_as_one_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = MetricsFile(path)
    texts = ["a\nb\r\nc\x0b\x0c\x1c\x85\u2028\u2029", "\ud800", "\0", "😀"]
    for text in texts:
        sink.write(SampleRecord(step=1, text=text))
    sink.close()
    assert [record["text"] for record in read_metrics(path)] == texts


def test_a_missing_file_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "missing.jsonl") == []
