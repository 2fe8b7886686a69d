"""The road where data and runs live on a volume that several machines share: what `modal_app.py` calls.

The work is done in the current folder, in `data/` and `runs/`, as on a laptop; folders are brought from the volume
and put back. A volume is what can `commit` and `reload`, and neither works while a file on it is open: files are
copied, never mapped or written in place.
"""

import json
import re
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from nanogpt_lite import config, datasets, files, pipeline, texts
from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.config import SHAPE_FIELDS, DataConfig, TrainConfig
from nanogpt_lite.datasets import DATA_DIR, Dataset
from nanogpt_lite.errors import UserError
from nanogpt_lite.logs import Console
from nanogpt_lite.metrics import CheckpointRecord, Record
from nanogpt_lite.runs import RUNS_DIR, Run

OWNERS = "owners"  # in a run's folder on the volume: the calls that trained it, one a line, the last one the owner
TEXTS = "texts"  # the folder on the volume for texts that were sent up
DEFAULT_PRESET = "tutorial"


class Volume(Protocol):
    """What several machines share: each sees what others committed once it reloads."""

    def commit(self) -> None:
        """Show the others what was written here."""

    def reload(self) -> None:
        """See what others committed."""


def prepare(home: "Here", dataset: str, **options: Any) -> Dataset:
    """Prepare a text as `datasets.prepare` does, unless it is prepared at home, and keep it there."""
    folder = DATA_DIR / require_plain(texts.name_of(dataset), "dataset")
    home.bring(folder)
    prepared = datasets.prepare(home.text(dataset), **options)
    if prepared.path == folder:
        home.put(folder)
    return prepared


def train(home: "Here", *, owner: str, overwrite: bool = False, **options: Any) -> Run:
    """Train as `pipeline.train` does, or go on if the run has a checkpoint at home; its checkpoints are kept there.

    `out_dir` is the name of the run; without it that of the dataset. `owner` names the call, and stays the same
    when a call is started again. A later call takes the run over: the earlier one stops at its next checkpoint.
    `UserError` for that, and whenever `pipeline.train` has one.
    """
    given = str(options.pop("dataset", ""))
    name = str(options.pop("out_dir", "")) or texts.name_of(given or DataConfig.dataset)
    folder = RUNS_DIR / require_plain(name, "run")
    anew = home.claim(folder, owner) and overwrite  # started again, the call goes on with what it has made
    if anew:
        home.forget(folder)
    home.bring(folder)
    if (folder / f"last{SUFFIX}").is_file() and not anew:
        options = {**_shape_of(options.pop("preset", "")), **options, "init_from": "resume"}
        dataset = given or _data_of(Run(folder)).name
    else:
        options = {"preset": DEFAULT_PRESET, **options}
        dataset = given or DataConfig.dataset
        if options.get("init_from", "scratch") != "scratch":
            options["init_from"] = find_run(home, str(options["init_from"])).out_dir
    data = _prepared(home, dataset, options.get("tokenizer", "auto"))
    records = pipeline.training(data, out_dir=folder, overwrite=anew, **options)
    with closing(Console()) as console, closing(keeping(records, home, folder, owner)) as kept:
        return pipeline.watch(kept, console)


def evaluate(home: "Here", name: str = "", **options: Any) -> dict[str, Any]:
    """What `pipeline.evaluate` returns for a run, the newest one without a name."""
    run = find_run(home, name)
    home.bring(_data_of(run))
    return pipeline.evaluate(run, **options)


def find_run(home: "Here", name: str = "") -> Run:
    """Bring a run, the newest one without a name. `UserError` without a checkpoint; it lists the runs that have one."""
    there = home.runs()
    name = name.removeprefix(f"{RUNS_DIR}/") or (there[-1] if there else TrainConfig.dataset)
    if name not in there:
        known = f"runs with one: {', '.join(there)}; or train it" if there else "train it"
        raise UserError(
            f"there is no checkpoint of a run {name!r}; {known}: modal run modal_app.py::train --out-dir {name}"
        )
    home.bring(RUNS_DIR / name)
    return Run(RUNS_DIR / name)


def keeping(records: Iterator[Record], home: "Here", folder: Path, owner: str) -> Generator[Record, None, None]:
    """The records of a run in `folder`, which is put home at each checkpoint, while training goes on, and at the end.

    Whatever ends the run, an interrupt too, leaves its last state at home. `UserError` when the run at home
    belongs to another owner by now.
    """
    with ThreadPoolExecutor(max_workers=1) as worker:  # one, so that no put overtakes the one before
        last: Future[None] | None = None
        try:
            for record in records:
                yield record
                if isinstance(record, CheckpointRecord):
                    if last is not None and last.done():
                        last.result()  # raises what went wrong
                    last = worker.submit(home.put, folder, owner)
        finally:
            worker.submit(home.put, folder, owner).result()


def require_plain(name: str, what: str) -> str:
    """The name of a run or a dataset, which is that of a folder. `UserError` if it could lead elsewhere."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(
            f"{what} {name!r} is no plain name: give up to 100 letters, digits, '-', '_' and '.', "
            "the first a letter or a digit"
        )
    return name


class Here:
    """Data and runs stay where the work is done: nothing to bring, nothing to put back."""

    def text(self, dataset: str) -> str:
        """The dataset, or the path of the text if it was sent up under that name."""
        return dataset

    def bring(self, folder: Path) -> None:
        """Make `folder`, data/NAME or runs/NAME, what it is at home, if it is there."""

    def put(self, folder: Path, owner: str = "") -> None:
        """Make the folder at home what `folder` is. `UserError` if the run belongs to another owner by now."""

    def claim(self, folder: Path, owner: str) -> bool:
        """Take over a run; whether `owner` does so for the first time. `UserError` if it was taken over since."""
        return True

    def forget(self, folder: Path) -> None:
        """Delete what the folder at home holds."""

    def write(self, path: str, text: str) -> None:
        """Keep a text for people at home, if that is elsewhere."""

    def runs(self) -> list[str]:
        """The names of the runs that have a checkpoint, the newest last."""
        return _by_age(RUNS_DIR)


class OnVolume(Here):
    """Data and runs on a volume that is mounted at `root`: datasets/NAME and runs/NAME."""

    def __init__(self, root: Path, volume: Volume) -> None:
        self.root, self.volume = root, volume

    def text(self, dataset: str) -> str:
        sent = self.root / TEXTS / Path(dataset).name
        return str(sent) if dataset == f"{TEXTS}/{sent.name}" else dataset

    def bring(self, folder: Path) -> None:
        self.volume.reload()
        if (home := self._home(folder)).is_dir():
            _copy(home, folder)

    def put(self, folder: Path, owner: str = "") -> None:
        self.volume.reload()
        home = self._home(folder)
        if owner:
            _require_owner(home, owner)
        if _copy(folder, home):
            self.volume.commit()

    def claim(self, folder: Path, owner: str) -> bool:
        self.volume.reload()
        home = self._home(folder)
        if owner in (owners := _owners(home)):
            _require_owner(home, owner)
            return False
        with files.atomic(home / OWNERS) as new:
            new.write_text("".join(f"{name}\n" for name in [*owners, owner]), encoding="utf-8")
        self.volume.commit()
        return True

    def forget(self, folder: Path) -> None:
        self.volume.reload()
        for path in self._home(folder).iterdir():
            if path.name != OWNERS:
                path.unlink()
        self.volume.commit()

    def write(self, path: str, text: str) -> None:
        self.volume.reload()
        with files.atomic(self.root / path) as new:
            new.write_text(text, encoding="utf-8")
        self.volume.commit()

    def runs(self) -> list[str]:
        self.volume.reload()
        return _by_age(self.root / "runs")

    def _home(self, folder: Path) -> Path:
        kind = {DATA_DIR: "datasets", RUNS_DIR: "runs"}[folder.parent]
        return self.root / kind / require_plain(folder.name, kind.removesuffix("s"))


def _prepared(home: Here, dataset: str, tokenizer: str) -> Dataset:
    """What is prepared at home, or is now: the text itself is not needed, unless its hash is known."""
    folder = DATA_DIR / require_plain(texts.name_of(dataset), "dataset")
    home.bring(folder)
    if dataset in texts.NAMES or not (folder / "manifest.json").is_file():
        return prepare(home, dataset, tokenizer=tokenizer)
    return datasets.prepare(folder, tokenizer=tokenizer)


def _data_of(run: Run) -> Path:
    """The folder of the data that a run was trained on."""
    return Path(json.loads((run.out_dir / "config.json").read_text(encoding="utf-8"))["dataset"]["path"])


def _shape_of(preset: str) -> dict[str, Any]:
    """The shape of the network that a preset asks for: a run that goes on must not have another one."""
    if not preset:
        return {}
    asked = TrainConfig.from_dict(config.preset(preset))
    return {name: getattr(asked, name) for name in SHAPE_FIELDS}


def _copy(source: Path, target: Path) -> bool:
    """Make the files in `target` what they are in `source`, others stay; whether there was anything to do."""
    found = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    # a run may go on meanwhile: `last` comes first, since what is newer than it does no harm to a run that goes on
    found.sort(key=lambda path: (path.name != f"last{SUFFIX}", path.name))
    changed = [path for path in found if _stamp(path) != _stamp(target / path.name)]
    for path in changed:
        with files.atomic(target / path.name) as new:
            shutil.copy2(path, new)
    return bool(changed)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells two versions of a file apart, kept by `copy2`."""
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except FileNotFoundError:
        return None


def _require_owner(home: Path, owner: str) -> None:
    if _owners(home)[-1:] != [owner]:
        raise UserError(
            f"another call took over the run {home.name} since, so this one stops; to train at the same time, give "
            "each its own --out-dir"
        )


def _owners(home: Path) -> list[str]:
    path = home / OWNERS
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _by_age(runs: Path) -> list[str]:
    """The names of the runs in a folder that have a checkpoint, the oldest first."""
    found = sorted(runs.glob(f"*/last{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    return [path.parent.name for path in found]
