"""The road where data and runs live on a volume that several machines share: what `modal_app.py` calls.

The work is done in the current folder, in `data/` and `runs/`, as on a laptop; folders are brought from the volume
and put back. A volume is what can `commit` and `reload`, and neither works while a file on it is open: files are
copied, never mapped or written in place.
"""

import itertools
import os
import re
import shutil
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from nanogpt_lite import checkpoint, config, datasets, files, pipeline, texts
from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.config import SHAPE_FIELDS, DataConfig, TrainConfig
from nanogpt_lite.datasets import DATA_DIR, Dataset
from nanogpt_lite.errors import UserError
from nanogpt_lite.logs import Console
from nanogpt_lite.metrics import CheckpointRecord, Record
from nanogpt_lite.runs import RUNS_DIR, Run, find_checkpoint
from nanogpt_lite.state import network_of
from nanogpt_lite.tokenizer import Tokenizer

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
    where = None if dataset in texts.NAMES else folder  # those are known by their name
    prepared = datasets.prepare(home.text(dataset), out_dir=where, **options)
    home.put(folder)
    return prepared


def train(home: "Here", *, owner: str, overwrite: bool = False, **options: Any) -> Run:
    """Train as `pipeline.train` does, or go on if the run has a checkpoint at home; its checkpoints are kept there.

    `out_dir` is the name of the run; without it that of the dataset. `owner` names the call, and stays the same
    when a call is started again, after what it finds at home is its own work. A later call takes the run over: the
    earlier one stops at its next checkpoint. `UserError` for that, and whenever `pipeline.train` has one; then
    nothing at home has changed.
    """
    dataset = str(options.pop("dataset", ""))
    name = _run_name(str(options.pop("out_dir", ""))) or texts.name_of(dataset or DataConfig.dataset)
    folder = RUNS_DIR / require_plain(name, "run")
    preset, parent = str(options.pop("preset", "")), str(options.get("init_from", "scratch"))
    anew = overwrite and not home.owns(folder, owner)
    if not anew:
        home.bring(folder)
    goes_on = (folder / f"last{SUFFIX}").is_file() and not anew
    if goes_on:
        shape = _shape_of(preset) if preset and parent in ("scratch", "resume") else {}
        options = {**shape, **options, "init_from": "resume"}
        data = _data_to_go_on(home, Run(folder), dataset)
    else:
        options["preset"] = preset or DEFAULT_PRESET
        dataset = dataset or DataConfig.dataset
        if parent == "scratch":
            data = _prepared(home, dataset, str(options.get("tokenizer", "auto")))
        else:
            other = find_run(home, name if parent == "resume" else parent)
            options["init_from"] = other.out_dir
            data = _prepared_for(home, dataset, other)
    # with a home elsewhere the folder is a copy, so what a run without `last` left in it may go
    records = pipeline.training(data, out_dir=folder, overwrite=anew or (home.elsewhere and not goes_on), **options)
    with closing(records):
        first = next(records)  # by now no option and no text can be wrong
        home.claim(folder, owner, anew=not goes_on)
        kept = keeping(itertools.chain([first], records), home, folder, owner)
        with closing(Console()) as console, closing(kept):
            return pipeline.watch(kept, console)


def evaluate(home: "Here", name: str = "", **options: Any) -> dict[str, Any]:
    """What `pipeline.evaluate` returns for a run, the newest one without a name."""
    run = find_run(home, name)
    home.bring(run.data_folder)
    return pipeline.evaluate(run, **options)


def find_run(home: "Here", name: str = "") -> Run:
    """Bring a run, the newest one without a name. `UserError` without a checkpoint; it lists the runs that have one."""
    there = home.runs()
    name = _run_name(name) or (there[-1] if there else TrainConfig.dataset)
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
    puts: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:  # one, so that no put overtakes the one before
        try:
            for record in records:
                yield record
                if isinstance(record, CheckpointRecord):
                    puts.append(worker.submit(home.put, folder, owner))
                while puts and puts[0].done():
                    puts.popleft().result()  # raises what went wrong
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

    elsewhere = False  # whether home is not the current folder

    def text(self, dataset: str) -> str:
        """The dataset, or the path of the text if it was sent up under that name."""
        return dataset

    def bring(self, folder: Path) -> None:
        """Make `folder`, data/NAME or runs/NAME, what it is at home, if it is there."""

    def put(self, folder: Path, owner: str = "") -> None:
        """Put the files in `folder` home. `UserError` if the run belongs to another owner by now."""

    def owns(self, folder: Path, owner: str) -> bool:
        """Whether the run at home is this owner's. `UserError` if it was, and another one took it over since."""
        return False

    def claim(self, folder: Path, owner: str, *, anew: bool) -> None:
        """Make the run at home this owner's; `anew`: and delete what is there of it."""

    def read(self, path: str) -> str:
        """A text that was kept by `write`, empty if there is none."""
        return ""

    def write(self, path: str, text: str) -> None:
        """Keep a text for people at home, if that is elsewhere."""

    def runs(self) -> list[str]:
        """The names of the runs that have a checkpoint, the newest last."""
        return _by_age(RUNS_DIR)


class OnVolume(Here):
    """Data and runs on a volume that is mounted at `root`: datasets/NAME and runs/NAME."""

    elsewhere = True

    def __init__(self, root: Path, volume: Volume) -> None:
        self.root, self.volume = root, volume

    def text(self, dataset: str) -> str:
        sent = self.root / TEXTS / Path(dataset).name
        return str(sent) if dataset == f"{TEXTS}/{sent.name}" else dataset

    def bring(self, folder: Path) -> None:
        self.volume.reload()
        home = self._home(folder)
        if home.is_dir():
            _copy(home, folder)
            for path in folder.glob("*"):  # of a run that was there before
                if path.is_file() and not (home / path.name).is_file():
                    path.unlink()

    def put(self, folder: Path, owner: str = "") -> None:
        self.volume.reload()
        home = self._home(folder)
        if owner:
            _require_owner(home, owner)
        if _copy(folder, home):
            self.volume.commit()

    def owns(self, folder: Path, owner: str) -> bool:
        self.volume.reload()
        home = self._home(folder)
        if owner not in _owners(home):
            return False
        _require_owner(home, owner)
        return True

    def claim(self, folder: Path, owner: str, *, anew: bool) -> None:
        owned = self.owns(folder, owner)
        home = self._home(folder)
        home.mkdir(parents=True, exist_ok=True)
        for path in home.iterdir():
            if path.name != OWNERS and (anew or path.name.startswith(".")):  # hidden: left by a killed copy
                path.unlink()
        if not owned:  # last, so that a call that was stopped before this line begins anew again
            with files.atomic(home / OWNERS) as new:
                new.write_text("".join(f"{name}\n" for name in [*_owners(home), owner]), encoding="utf-8")
        self.volume.commit()

    def read(self, path: str) -> str:
        self.volume.reload()
        kept = self.root / path
        return kept.read_text(encoding="utf-8") if kept.is_file() else ""

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


def _prepared(home: Here, dataset: str, tokenizer: str | Tokenizer, name: str = "") -> Dataset:
    """What is prepared at home, or is now; the text itself is not needed, unless its hash is known."""
    name = name or require_plain(texts.name_of(dataset), "dataset")
    if name in texts.NAMES:  # by the name under which any machine finds it
        return prepare(home, name, tokenizer=tokenizer)
    home.bring(DATA_DIR / name)
    if not (DATA_DIR / name / "manifest.json").is_file():
        datasets.prepare(home.text(dataset), tokenizer=tokenizer, out_dir=DATA_DIR / name)
        home.put(DATA_DIR / name)
    return datasets.prepare(DATA_DIR / name, tokenizer=tokenizer)


def _prepared_for(home: Here, dataset: str, other: Run) -> Dataset:
    """A dataset with the tokenizer of a run that training is to begin from, in a folder of its own."""
    tokenizer = network_of(checkpoint.load(find_checkpoint(other), prefix="no weights"))[1]
    return _prepared(
        home, dataset, tokenizer, require_plain(f"{texts.name_of(dataset)}-for-{other.out_dir.name}", "dataset")
    )


def _data_to_go_on(home: Here, run: Run, dataset: str) -> Dataset | str:
    """The data that a run was trained on, or another one that was asked for; the hash tells whether it is the same."""
    before, asked = run.data_folder, texts.name_of(dataset) if dataset else ""
    if asked and before.name != asked and not before.name.startswith(f"{asked}-for-"):
        return _prepared(home, dataset, "auto")
    home.bring(before)
    return before.name if before.name in texts.NAMES else datasets.prepare(before)


def _run_name(out_dir: str) -> str:
    """The name of a run that is given by name, or by its folder as the library calls it."""
    return out_dir.removeprefix(f"{RUNS_DIR}/")


def _shape_of(preset: str) -> dict[str, Any]:
    """The shape of the network that a preset asks for: a run that goes on must not have another one."""
    asked = TrainConfig.from_dict(config.preset(preset))
    return {name: getattr(asked, name) for name in SHAPE_FIELDS}


def _copy(source: Path, target: Path) -> bool:
    """Give `target` the files of `source`, all at the end; whether there was anything to do.

    The run in `source` may go on meanwhile. What is copied first, and renamed last, stands for the others: `last` is
    then never newer than they are, and a manifest never older than its data.
    """
    found = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    found.sort(key=lambda path: (path.name not in (f"last{SUFFIX}", "manifest.json"), path.name))
    changed = [path for path in found if path.name != OWNERS and _stamp(path) != _stamp(target / path.name)]
    with ExitStack() as stack:  # it leaves its contexts in the reverse order
        for path in changed:
            new = stack.enter_context(files.atomic(target / path.name))
            before = path.stat()  # of what is copied, or of something older that will be copied again
            shutil.copyfile(path, new)
            os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    return bool(changed)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells two versions of a file apart."""
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
