"""The runs on the Volume, listed, downloaded and deleted from this machine."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nanogpt_lite.cloud.client.plans import Plan
from nanogpt_lite.cloud.client.rental import GPURequest, is_modal_gpu
from nanogpt_lite.cloud.client.stored_files import ListedVolume, StoredFiles
from nanogpt_lite.cloud.client.volume_names import GPU_TIME_FILE, TRACE_DIR, require_safe_name, run_name
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs.run_folder import RUNS_DIR


class EditableVolume(ListedVolume, Protocol):
    """What `delete_run` needs of `modal.Volume`."""

    def remove_file(self, path: str, recursive: bool = False) -> None:
        """Remove a file or a folder."""


class Reservations(Protocol):
    """What `delete_run` needs of `modal.Dict`."""

    def pop(self, key: str, default: object = None) -> object:
        """Remove a key."""


def format_runs(stored: StoredFiles) -> str:
    """A table of the runs on the Volume, the newest last."""
    if not stored.runs:
        return "there are no runs yet; train one: modal run modal_app.py::train"
    header = ("run", "dataset", "step", "val loss", "GPU s", "dollars", "last change")
    rows = [header, *(_run_row(stored, run) for run in stored.runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def delete_run(stored: StoredFiles, volume: EditableVolume, reservations: Reservations, out_dir: str) -> str:
    """Delete a run from the Volume; its name, which is free then. `UserError` if there is none of this name."""
    name = run_name(out_dir)
    if not name or not stored.has_run(name):
        known = f"give one of {', '.join(stored.runs)}" if stored.runs else "there are no runs"
        raise UserError(f"there is no run {name!r} to delete (`out_dir`); {known}")
    volume.remove_file(f"runs/{require_safe_name(name, 'run')}", recursive=True)  # not all runs, as with "."
    reservations.pop(f"runs/{name}", None)
    return name


def bring_run(
    stored: StoredFiles, volume: ListedVolume, out_dir: str, *, to: str = "", overwrite: bool = False
) -> Path:
    """Download all files of a run, by default the newest, into `to`, by default runs/modal-NAME; that folder.

    `UserError` if the folder has a run already, unless `overwrite`, or if it cannot be created.
    """
    name = stored.require_run(run_name(out_dir))
    folder = Path(to) if to else local_folder(name)
    if not overwrite and any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has a run already; give another folder (`to`), or replace it (`overwrite=True`)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # such as a file of this name
        raise UserError(f"{folder} cannot be created ({error.strerror}); give another folder (`to`)") from error
    for path in stored.files(name):
        _download(volume, f"runs/{name}/{path}", folder / path)
    return folder


def report(result: object) -> str:
    """Print a result, and return the text, which `modal run -w FILE` writes to a file."""
    text = result if isinstance(result, str) else json.dumps(result)
    print(text)
    return text


def report_training(volume: ListedVolume, plan: Plan, trained: dict[str, Any]) -> dict[str, Any]:
    """Print the verdict on a run, download its pictures, and say how to download the rest; the result as it is."""
    if trained["verdict"]:
        print(trained["verdict"])
    for path in bring_pictures(volume, trained["run"], plan.options.get("trace", "")):
        print(f"downloaded {path}")
    print(f"download the run: modal run modal_app.py::bring --out-dir {trained['run']}")
    return trained


def bring_pictures(volume: ListedVolume, run: str, trace: str) -> list[Path]:
    """Download the plot of the losses of a run and, into the folder `trace`, its profiler traces; their paths here."""
    stored = StoredFiles(volume)
    targets = {path: local_folder(run) / path for path in stored.files(run) if path == "loss.png"}
    if trace:
        traces = [path for path in stored.files(run) if path.startswith(f"{TRACE_DIR}/")]
        targets |= {path: Path(trace) / Path(path).name for path in traces}
    for path, target in targets.items():
        _download(volume, f"runs/{run}/{path}", target)
    return list(targets.values())


def local_folder(run: str) -> Path:
    """Where a run of Modal is on this machine. Not runs/NAME, which may be a run that was trained here."""
    return RUNS_DIR / f"modal-{run}"


def _download(volume: ListedVolume, path: str, target: Path) -> None:
    """Download a file; what was at `target` before stays until all of it has arrived."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # not `files.atomic_write`, whose locks need a package beside modal
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in volume.read_file(path):
                file.write(chunk)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _run_row(stored: StoredFiles, run: str) -> tuple[str, ...]:
    records = stored.metrics(run)
    losses = [record["val_loss"] for record in records if record["kind"] == "eval"]
    seconds, dollars = _gpu_cost(stored.read_json(f"runs/{run}/{GPU_TIME_FILE}"))
    return (
        run,
        stored.run_dataset(run) or "?",
        str(records[-1]["step"] if records else "?"),
        f"{min(losses):.4f}" if losses else "-",
        f"{seconds:.0f}",
        f"{dollars:.2f}",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.modified(run))),
    )


def _gpu_cost(calls: Mapping[str, object]) -> tuple[float, float]:
    """The seconds and dollars of the calls that trained a run; a GPU that Modal does not have costs nothing."""
    seconds = dollars = 0.0
    for call in calls.values():
        match call:
            case {"gpu": str(gpu), "count": int(count), "seconds": float(used) | int(used)}:
                seconds += used
                if is_modal_gpu(gpu):
                    dollars += used * GPURequest(gpu, count).dollars_per_second
    return seconds, dollars
