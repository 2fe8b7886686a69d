"""Metrics files of runs that were never trained."""

from pathlib import Path

from nanogpt_lite.runs.run_folder import RUNS_DIR
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.tracking.records import Record


def make_run(name: str, *records: Record, folder: Path = RUNS_DIR) -> Path:
    """A run that has only records; its metrics file."""
    path = folder / name / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    append(path, *records)
    return path


def append(path: Path, *records: Record) -> None:
    sink = metrics_file.MetricsFile(path, keep_until=10**9)
    for record in records:
        sink.write(record)
    sink.close()
