"""The runs and checkpoints that can be asked for, by name, and their networks.

A name is looked up among those that exist. It never becomes part of a path.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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

    # NAME for the checkpoint of a run that `sample` would take; NAME/last, NAME/step_001000, NAME/early_000005
    name: str
    path: Path | None  # of the checkpoint; None for the network that was given
    created: int  # seconds since 1970


class RunCatalog:
    """The named run, or a network that was loaded before; then every run under runs/.

    Without a name, the newest run is the first one; there may be none yet.
    """

    def __init__(self, run: RunLike | Loaded, settings: LoadConfig) -> None:
        """`UserError` if the run that is named has no checkpoint."""
        self._settings = settings
        self._given = run if isinstance(run, tuple) else None
        self._run: Path | None = None  # the folder of the named run, or the file of a checkpoint
        if not isinstance(run, tuple) and run is not None:
            checkpoint = run_folder.find_checkpoint(run, settings.checkpoint)
            is_file = isinstance(run, str | Path) and Path(run).is_file()
            self._run = checkpoint if is_file else checkpoint.parent
        self._loaded: OrderedDict[tuple[Path, int, int], Loaded] = OrderedDict()

    def entries(self) -> list[Entry]:
        """The networks that can be asked for now; the first one is the default."""
        entries = {} if self._given is None else {GIVEN_NAME: Entry(GIVEN_NAME, None, 0)}
        first = self._first_folder()
        for folder in self._folders().values():
            if folder == first:
                assert self._run is not None
                entries |= self._entries_of(self._run, self._settings.checkpoint)
            else:
                entries |= self._entries_of(folder, "best")
        return list(entries.values())

    def runs(self) -> dict[str, Run]:
        """The runs by their names, also those without a checkpoint yet; the named one first."""
        runs = {name: Run(folder) for name, folder in self._folders().items()}
        return {name: run for name, run in runs.items() if _has_files(run)}

    def find_run(self, name: str) -> Run:
        """The run of a name. `UnknownModelError` if there is none (any more)."""
        runs = self.runs()
        if name not in runs:
            raise UnknownModelError(f"there is no run {name!r}; /api/runs lists those that exist")
        return runs[name]

    def find(self, name: str | None) -> Entry:
        """The entry of a name; the default for None. `UnknownModelError` if there is none (any more)."""
        for entry in self.entries():
            if name in (None, entry.name):
                return entry
        if name is None:
            raise UnknownModelError("there is no trained network yet; train one: nanogpt-lite run, or on the page")
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

    def _first_folder(self) -> Path | None:
        if self._run is None and self._given is None:
            with suppress(UserError):  # no run yet
                self._run = run_folder.newest_run().out_dir
        if self._run is None:
            return None
        return self._run.parent if self._run.is_file() else self._run

    def _folders(self) -> dict[str, Path]:
        """The folders that may hold runs, by their names; of two with the same name, the first one is meant."""
        first = self._first_folder()
        under_runs = sorted(path for path in run_folder.RUNS_DIR.glob("*") if path.is_dir())
        folders: dict[str, Path] = {}
        for folder in [*([] if first is None else [first]), *under_runs]:
            folders.setdefault(folder.resolve().name, folder)
        return folders

    def _entries_of(self, run: Path, checkpoint: str) -> dict[str, Entry]:
        """Those of a run: first the checkpoint that `sample` would take, then the others."""
        folder = run.parent if run.is_file() else run
        run_name = folder.resolve().name
        if not has_name(folder):
            return {}
        paths: dict[Path, str] = {}
        with suppress(UserError, FileNotFoundError):  # none (yet): there may be early weights
            paths[run_folder.find_checkpoint(run, checkpoint)] = run_name
        for path in _checkpoints(folder):
            paths.setdefault(path, f"{run_name}/{path.stem}")
        entries = {}
        for path, name in paths.items():
            with suppress(FileNotFoundError):  # it was removed meanwhile
                entries[name] = Entry(name, path, int(path.stat().st_mtime))
        return entries


def has_name(path: Path) -> bool:
    """Whether the name of a file or folder can be sent: a file system may hold bytes that are no text."""
    try:
        path.resolve().name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_files(run: Run) -> bool:
    folder = run.out_dir
    has_weights = bool(run_folder.checkpoints_in(folder) or run_folder.early_weights_in(folder))
    return has_name(folder) and (has_weights or (folder / "metrics.jsonl").is_file())


def _checkpoints(folder: Path) -> Iterator[Path]:
    """The checkpoints of a run: best, last, the numbered ones in their order, then early weights."""
    order = {"best": 0, "last": 1}
    checkpoints = sorted(run_folder.checkpoints_in(folder), key=lambda path: (order.get(path.stem, 2), path.stem))
    yield from (path for path in [*checkpoints, *run_folder.early_weights_in(folder)] if has_name(path))
