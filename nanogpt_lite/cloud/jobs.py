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

from nanogpt_lite.api import inference, pipeline
from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX
from nanogpt_lite.cloud import launcher
from nanogpt_lite.cloud.storage import LocalStorage, require_safe_name
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import SHAPE_FIELDS, DataConfig, TrainConfig
from nanogpt_lite.data import preparation, sources
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.preparation import DATA_DIR
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import RUNS_DIR, Run
from nanogpt_lite.tokenizers import hub
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.records import CheckpointRecord, Record


def prepare_job(home: LocalStorage, dataset: str, **options: Any) -> Dataset:
    """Prepare a text as `preparation.prepare` does, unless it is prepared at home, and keep it there."""
    folder = DATA_DIR / require_safe_name(sources.dataset_name(dataset), "dataset")
    home.bring(folder)
    where = None if dataset in sources.DATASET_NAMES else folder  # those are known by their name
    prepared = preparation.prepare(home.text(dataset), out_dir=where, **options)
    home.put(folder)
    return prepared


def train_job(home: LocalStorage, *, owner: str, count: int = 1, overwrite: bool = False, **options: Any) -> Run:
    """Train as `pipeline.train` does, or go on if the run has a checkpoint at home; its checkpoints are kept there.

    `out_dir` is the name of the run; without it that of the dataset. `count` ranks share the work. `owner` names the
    call, and stays the same when a call is started again, after what it finds at home is its own work. A later call
    takes the run over: the earlier one stops at its next checkpoint. `UserError` for that, and whenever
    `pipeline.train` has one; then nothing at home has changed.
    """
    dataset = str(options.pop("dataset", ""))
    name = _run_name(str(options.pop("out_dir", ""))) or sources.dataset_name(dataset or DataConfig.dataset)
    folder = RUNS_DIR / require_safe_name(name, "run")
    preset, parent = str(options.pop("preset", "")), str(options.get("init_from", "scratch"))
    anew = overwrite and not home.owns(folder, owner)
    if not anew:
        home.bring(folder)
    goes_on = (folder / f"last{SUFFIX}").is_file() and not anew
    if goes_on:
        shape = _shape_of(preset) if preset and parent in ("scratch", "resume") else {}
        options = {**shape, **options, "init_from": "resume"}
        data = _data_to_resume(home, Run(folder), dataset)
    else:
        options["preset"] = preset or ("finetune" if parent in hub.GPT2_REPOS else presets.RENTED_GPU_PRESET)
        dataset = dataset or DataConfig.dataset
        if parent == "scratch":
            data = _prepare_if_needed(home, dataset, str(options.get("tokenizer", "auto")))
        elif parent in hub.GPT2_REPOS:
            name_of_data = require_safe_name(f"{sources.dataset_name(dataset)}-for-{parent}", "dataset")
            data = _prepare_if_needed(home, dataset, "gpt2", name_of_data)
        else:
            other = find_run(home, name if parent == "resume" else parent)
            options["init_from"] = other.out_dir
            data = _prepare_for_run(home, dataset, other)
    # with a home elsewhere the folder is a copy, so what a run without `last` left in it may go
    options |= {"out_dir": folder, "overwrite": anew or (home.elsewhere and not goes_on)}
    with closing(Console()) as console:
        if count == 1:
            records = pipeline.training(data, console=console, **options)
        else:
            records = launcher.train_on_ranks(count, data, **options)
        with closing(records):
            first = next(records)  # by now no option and no text can be wrong
            home.claim(folder, owner, anew=not goes_on)
            kept = sync_checkpoints(itertools.chain([first], records), home, folder, owner)
            with closing(kept):
                return pipeline.show_records(kept, console)


def evaluate_job(home: LocalStorage, name: str = "", **options: Any) -> dict[str, Any]:
    """What `inference.evaluate` returns for a run, the newest one without a name."""
    run = find_run(home, name)
    home.bring(run.data_folder)
    return inference.evaluate(run, **options)


def find_run(home: LocalStorage, name: str = "") -> Run:
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


def sync_checkpoints(
    records: Iterator[Record], home: LocalStorage, folder: Path, owner: str
) -> Generator[Record, None, None]:
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


def _prepare_if_needed(home: LocalStorage, dataset: str, tokenizer: str | Tokenizer, name: str = "") -> Dataset:
    """What is prepared at home, or is now; the text itself is not needed, unless its hash is known."""
    name = name or require_safe_name(sources.dataset_name(dataset), "dataset")
    if name in sources.DATASET_NAMES:  # by the name under which any machine finds it
        return prepare_job(home, name, tokenizer=tokenizer)
    home.bring(DATA_DIR / name)
    if not (DATA_DIR / name / "manifest.json").is_file():
        preparation.prepare(home.text(dataset), tokenizer=tokenizer, out_dir=DATA_DIR / name)
        home.put(DATA_DIR / name)
    return preparation.prepare(DATA_DIR / name, tokenizer=tokenizer)


def _prepare_for_run(home: LocalStorage, dataset: str, other: Run) -> Dataset:
    """A dataset with the tokenizer of a run that training is to begin from, in a folder of its own."""
    tokenizer = load_checkpoint(other, weights_only=True).tokenizer
    return _prepare_if_needed(
        home,
        dataset,
        tokenizer,
        require_safe_name(f"{sources.dataset_name(dataset)}-for-{other.out_dir.name}", "dataset"),
    )


def _data_to_resume(home: LocalStorage, run: Run, dataset: str) -> Dataset | str:
    """The data that a run was trained on, or another one that was asked for; the hash tells whether it is the same."""
    before, asked = run.data_folder, sources.dataset_name(dataset) if dataset else ""
    if asked and before.name != asked and not before.name.startswith(f"{asked}-for-"):
        return _prepare_if_needed(home, dataset, "auto")
    home.bring(before)
    return before.name if before.name in sources.DATASET_NAMES else preparation.prepare(before)


def _run_name(out_dir: str) -> str:
    """The name of a run that is given by name, or by its folder as the library calls it."""
    return out_dir.removeprefix(f"{RUNS_DIR}/")


def _shape_of(preset: str) -> dict[str, Any]:
    """The shape of the network that a preset asks for: a run that goes on must not have another one."""
    asked = TrainConfig.from_dict(presets.get_preset(preset))
    return {name: getattr(asked, name) for name in SHAPE_FIELDS}
