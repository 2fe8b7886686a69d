"""The runs that can be asked for, and how far their trainings are, by their metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.server.run_catalog import Entry


def describe_runs(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each run of the entries: its checkpoints, the last step, and the losses of the evaluations."""
    by_folder: dict[Path, list[Entry]] = {}
    for entry in entries:
        if entry.path is not None:
            by_folder.setdefault(entry.path.parent, []).append(entry)
    return [_describe(Run(folder), own) for folder, own in by_folder.items()]


def _describe(run: Run, entries: Sequence[Entry]) -> dict[str, Any]:
    records = run.metrics
    steps = [record["step"] for record in records if "step" in record]
    evaluations = [record for record in records if record["kind"] == "eval"]
    results = [record for record in records if record["kind"] == "result"]
    return {
        "name": run.out_dir.resolve().name,
        "models": [entry.name for entry in entries],
        "step": max(steps, default=None),
        "is_finished": bool(records) and records[-1]["kind"] == "done",
        "best_val_loss": min((record["val_loss"] for record in evaluations), default=None),
        "evaluations": [[record["step"], record["val_loss"]] for record in evaluations],
        "verdict": results[-1]["verdict"] if results else None,
    }
