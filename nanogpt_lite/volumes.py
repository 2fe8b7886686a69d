"""The road where data and runs live elsewhere than the work is done: what `modal_app.py` calls.

Each function does what `pipeline` does, between bringing what it needs from a `homes.Here` and putting back what it
made.
"""

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from nanogpt_lite import checkpoint, datasets, hub, inference, launcher, pipeline, presets, texts
from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.config import SHAPE_FIELDS, DataConfig, TrainConfig
from nanogpt_lite.datasets import DATA_DIR
from nanogpt_lite.errors import UserError
from nanogpt_lite.homes import Here, require_plain
from nanogpt_lite.logs import Console
from nanogpt_lite.metrics import CheckpointRecord, Record
from nanogpt_lite.prepared import Dataset
from nanogpt_lite.runs import RUNS_DIR, Run, find_checkpoint
from nanogpt_lite.state import network_of
from nanogpt_lite.tokenizer import Tokenizer


def prepare(home: Here, dataset: str, **options: Any) -> Dataset:
    """Prepare a text as `datasets.prepare` does, unless it is prepared at home, and keep it there."""
    folder = DATA_DIR / require_plain(texts.name_of(dataset), "dataset")
    home.bring(folder)
    where = None if dataset in texts.NAMES else folder  # those are known by their name
    prepared = datasets.prepare(home.text(dataset), out_dir=where, **options)
    home.put(folder)
    return prepared


def train(home: Here, *, owner: str, count: int = 1, overwrite: bool = False, **options: Any) -> Run:
    """Train as `pipeline.train` does, or go on if the run has a checkpoint at home; its checkpoints are kept there.

    `out_dir` is the name of the run; without it that of the dataset. `count` ranks share the work. `owner` names the
    call, and stays the same when a call is started again, after what it finds at home is its own work. A later call
    takes the run over: the earlier one stops at its next checkpoint. `UserError` for that, and whenever
    `pipeline.train` has one; then nothing at home has changed.
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
        options["preset"] = preset or ("finetune" if parent in hub.GPT2 else presets.RENTED_GPU_PRESET)
        dataset = dataset or DataConfig.dataset
        if parent == "scratch":
            data = _prepared(home, dataset, str(options.get("tokenizer", "auto")))
        elif parent in hub.GPT2:
            name_of_data = require_plain(f"{texts.name_of(dataset)}-for-{parent}", "dataset")
            data = _prepared(home, dataset, "gpt2", name_of_data)
        else:
            other = find_run(home, name if parent == "resume" else parent)
            options["init_from"] = other.out_dir
            data = _prepared_for(home, dataset, other)
    # with a home elsewhere the folder is a copy, so what a run without `last` left in it may go
    options |= {"out_dir": folder, "overwrite": anew or (home.elsewhere and not goes_on)}
    with closing(Console()) as console:
        if count == 1:
            records = pipeline.training(data, console=console, **options)
        else:
            records = launcher.training(count, data, **options)
        with closing(records):
            first = next(records)  # by now no option and no text can be wrong
            home.claim(folder, owner, anew=not goes_on)
            kept = keeping(itertools.chain([first], records), home, folder, owner)
            with closing(kept):
                return pipeline.watch(kept, console)


def evaluate(home: Here, name: str = "", **options: Any) -> dict[str, Any]:
    """What `inference.evaluate` returns for a run, the newest one without a name."""
    run = find_run(home, name)
    home.bring(run.data_folder)
    return inference.evaluate(run, **options)


def find_run(home: Here, name: str = "") -> Run:
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


def keeping(records: Iterator[Record], home: Here, folder: Path, owner: str) -> Generator[Record, None, None]:
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
    asked = TrainConfig.from_dict(presets.preset(preset))
    return {name: getattr(asked, name) for name in SHAPE_FIELDS}
