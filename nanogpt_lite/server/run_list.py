"""The runs as JSON: how far each is, and its checkpoints."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanogpt_lite.diagnosis.loss_trend import Evaluation, best_evaluation, val_loss_trend
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.runs.run_progress import checkpoint_steps, is_training, run_state
from nanogpt_lite.server.run_catalog import Entry, RunCatalog

CACHED_RUNS = 256  # whose metrics are not read again as long as they do not change


def describe_runs(catalog: RunCatalog, *, started: str = "") -> dict[str, Any]:
    """The names of all models; and of each run its state, the last step, val losses and their trend, checkpoints.

    `started`: the run for which there is a process that trains it, which may not have locked its folder yet.
    """
    entries = catalog.entries()
    runs = [_describe_run(name, run, entries, is_started=name == started) for name, run in catalog.runs().items()]
    return {"models": [entry.name for entry in entries], "runs": runs}


def _describe_run(name: str, run: Run, entries: Sequence[Entry], *, is_started: bool) -> dict[str, Any]:
    was_training = is_started or is_training(run)  # before the records are read: it may end meanwhile
    path = run.out_dir / "metrics.jsonl"
    try:
        status = path.stat()
        version = f"{status.st_mtime_ns}-{status.st_size}"
        progress = _read_progress(run.out_dir, version)
    except OSError:  # it is not there yet, or may not be read
        version, progress = "", {**_progress([]), "data_sha256": ""}
    models = [entry for entry in entries if entry.name == name or entry.name.startswith(f"{name}/")]
    return {
        "name": name,
        "folder": run.out_dir.as_posix().encode(errors="replace").decode(),
        "models": [entry.name for entry in models],
        "checkpoints": _checkpoints(models, progress["checkpoint_steps"]),
        "version": version,
        "state": run_state(progress["last_records"], was_training=was_training),
        **{key: value for key, value in progress.items() if key not in ("checkpoint_steps", "last_records")},
    }


@functools.lru_cache(maxsize=CACHED_RUNS)
def _read_progress(folder: Path, _version: str) -> dict[str, Any]:
    """What the files of a run say, which are read again when its metrics have changed."""
    run, sha256 = Run(folder), ""
    with contextlib.suppress(OSError):
        sha256 = run.data_sha256
    return {**_progress(run.metrics), "data_sha256": sha256}


def _progress(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    starts = [record for record in records if record["kind"] == "start"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    results = [record for record in records if record["kind"] == "result"]
    curve = [Evaluation.from_record(record) for record in evaluations]
    return {
        "step": max((record["step"] for record in records), default=None),
        "max_iters": starts[-1].get("max_iters") if starts else None,
        "is_finished": bool(records) and records[-1]["kind"] == "done",
        "best_val_loss": min((point.val_loss for point in curve), default=None),
        "best_step": best_evaluation(curve).step if curve else None,
        "evaluations": [[point.step, point.val_loss, point.network_val_loss] for point in curve],
        "trend": val_loss_trend(curve) if len(curve) > 1 else None,
        "verdict": results[-1].get("verdict") if results else None,
        "checkpoint_steps": checkpoint_steps(records),
        "last_records": list(records[-1:]),
    }


def _checkpoints(models: Sequence[Entry], steps: dict[str, int]) -> list[dict[str, Any]]:
    """The models of a run with their steps, in the order of these; without those whose step is not known."""
    known = []
    for entry in models:
        if entry.path is not None and (step := steps.get(entry.path.stem)) is not None:
            known.append({"step": step, "model": entry.name, "name": entry.path.stem, "created": entry.created})
    known.reverse()  # of the same step: first early weights, and what `sample` would take last
    return sorted(known, key=lambda checkpoint: checkpoint["step"])
