"""The runs and checkpoints that can be asked for, by name, their networks, and how far their trainings are.

A name is looked up among those that exist. It never becomes part of a path.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_lite.api.inference import Loaded, load_model
from nanogpt_lite.config.options import LoadConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs import run_folder
from nanogpt_lite.runs.run_folder import Run, RunLike

MAX_LOADED = 2  # networks in memory
GIVEN_NAME = "network"  # of a network that was loaded before, and has no run


class UnknownModelError(UserError):
    """A request names a model that does not exist."""


@dataclass(frozen=True)
class Entry:
    """A network that can be asked for."""

    name: str  # NAME for the checkpoint of a run that `sample` would take; NAME/last, NAME/step_001000 for the others
    path: Path | None  # of the checkpoint; None for the network that was given
    created: int  # seconds since 1970


class RunCatalog:
    """The named run, or a network that was loaded before; then every run under runs/."""

    def __init__(self, run: RunLike | Loaded, settings: LoadConfig) -> None:
        """`UserError` if the run has no checkpoint."""
        self._settings = settings
        self._given = run if isinstance(run, tuple) else None
        self._run: Path | None = None  # the folder of the named run, or the file of a checkpoint
        if not isinstance(run, tuple):
            checkpoint = run_folder.find_checkpoint(run, settings.checkpoint)
            is_file = isinstance(run, str | Path) and Path(run).is_file()
            self._run = checkpoint if is_file else checkpoint.parent
        self._loaded: OrderedDict[tuple[Path, int, int], Loaded] = OrderedDict()

    def entries(self) -> list[Entry]:
        """The networks that can be asked for now; the first one is the default."""
        entries = {} if self._given is None else {GIVEN_NAME: Entry(GIVEN_NAME, None, 0)}
        folders: dict[str, Path] = {}  # of two with the same name, the first one is meant
        if self._run is not None:
            entries |= self._entries_of(self._run, self._settings.checkpoint)
            folder = self._run.parent if self._run.is_file() else self._run
            folders[folder.resolve().name] = folder
        for folder in sorted(path for path in run_folder.RUNS_DIR.glob("*") if path.is_dir()):
            if folder.resolve().name not in folders:
                folders[folder.resolve().name] = folder
                entries |= self._entries_of(folder, "best")
        return list(entries.values())

    def find(self, name: str | None) -> Entry:
        """The entry of a name; the default for None. `UnknownModelError` if there is none (any more)."""
        for entry in self.entries():
            if name in (None, entry.name):
                return entry
        raise UnknownModelError(f"there is no model {name!r}; /v1/models lists those that exist")

    def load(self, entry: Entry) -> Loaded:
        """The network of an entry, in memory until `MAX_LOADED` others were asked for, or until its file changes.

        `UserError` if it is damaged. Only the thread that computes calls it.
        """
        if entry.path is None:
            assert self._given is not None
            return self._given
        try:
            status = entry.path.stat()
            key = (entry.path, status.st_mtime_ns, status.st_size)
            if key not in self._loaded:
                model, tokenizer, _ = load_model(entry.path, self._settings)
                self._loaded[key] = model, tokenizer
        except FileNotFoundError:
            raise UnknownModelError(
                f"the model {entry.name!r} was removed; /v1/models lists those that exist"
            ) from None
        self._loaded.move_to_end(key)
        while len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[key]

    def _entries_of(self, run: Path, checkpoint: str) -> dict[str, Entry]:
        """Those of a run: first the checkpoint that `sample` would take, then the others."""
        folder = run.parent if run.is_file() else run
        run_name = folder.resolve().name
        try:
            run_name.encode()
            first = run_folder.find_checkpoint(run, checkpoint)
        except (UserError, FileNotFoundError, UnicodeEncodeError):  # none (yet), or a name that cannot be sent
            return {}
        others = {path: f"{run_name}/{path.stem}" for path in _checkpoints(folder) if path != first}
        entries = {}
        for path, name in {first: run_name, **others}.items():
            with suppress(FileNotFoundError):  # it was removed meanwhile
                entries[name] = Entry(name, path, int(path.stat().st_mtime))
        return entries


def describe_runs(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each run of the entries: its checkpoints, the last step, and the losses of the evaluations."""
    by_folder: dict[Path, list[Entry]] = {}
    for entry in entries:
        if entry.path is not None:
            by_folder.setdefault(entry.path.parent, []).append(entry)
    return [_describe_run(Run(folder), own) for folder, own in by_folder.items()]


def _describe_run(run: Run, entries: Sequence[Entry]) -> dict[str, Any]:
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


def _checkpoints(folder: Path) -> Iterator[Path]:
    """The checkpoints of a run: best, last, then the numbered ones in their order."""
    order = {"best": 0, "last": 1}
    yield from sorted(run_folder.checkpoints_in(folder), key=lambda path: (order.get(path.stem, 2), path.stem))
