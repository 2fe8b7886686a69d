"""The jobs of `modal_app.py`: prepare, train and evaluate with folders that a `Storage` stores.

Each does what `api` does, in three steps: pull the folders that it needs, work in the current folder, push the results.
"""

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from nanogpt_lite.api import inference, pipeline
from nanogpt_lite.api.inference import EvalResult
from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX
from nanogpt_lite.cloud import job_data, launcher
from nanogpt_lite.cloud.client.volume_names import require_safe_name
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.config import presets
from nanogpt_lite.config.keyword_types import LoadOptions
from nanogpt_lite.config.options import DataConfig, NetworkConfig, TrainConfig
from nanogpt_lite.config.schema import Role, Value
from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.data import sources
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs.run_folder import RUNS_DIR, Run
from nanogpt_lite.tokenizers import hub
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.records import CheckpointRecord, Record


def prepare_job(storage: Storage, dataset: str, *, tokenizer: str = "auto", overwrite: bool = False) -> Dataset:
    """Prepare a text as `preparation.prepare` does, unless it is stored already, and store it."""
    return job_data.prepare_and_push(storage, dataset, tokenizer=tokenizer, overwrite=overwrite, verify=True)


def train_job(storage: Storage, *, owner: str, world_size: int = 1, overwrite: bool = False, **options: Any) -> Run:
    """Train as `pipeline.train` does, or resume if the stored run has a checkpoint. Its checkpoints are stored.

    `out_dir` is the name of the run, by default that of the dataset. `world_size` ranks share each step. `owner` is
    the id of the call. It stays the same when the call is started again, and then the stored checkpoints are the
    call's own: it resumes even with `overwrite`. A later call takes the run over, and the earlier one stops at its
    next checkpoint, with `UserError`. `UserError` also where `pipeline.train` raises it; the stored files are then
    unchanged.
    """
    dataset = str(options.pop("dataset", ""))
    name = _run_name(str(options.pop("out_dir", ""))) or sources.dataset_name(dataset or DataConfig.dataset)
    job = _resolve_run(storage, name, owner, overwrite=overwrite)
    prepare = _prepare_resume if job.resumes else _prepare_new_run
    data, options = prepare(storage, job.folder, dataset, options)
    return _train_and_sync(storage, job, data, world_size, options)


def evaluate_job(
    storage: Storage, name: str = "", *, verify: bool = False, **options: Unpack[LoadOptions]
) -> EvalResult:
    """What `inference.evaluate` returns for the run `name`, by default the newest one."""
    run = find_run(storage, name)
    storage.pull(run.data_folder)
    return inference.evaluate(run, verify=verify, **options)


def find_run(storage: Storage, name: str = "") -> Run:
    """Pull the run `name`, by default the newest one. `UserError`, which lists the runs, if it has no checkpoint."""
    run_names = storage.run_names()
    name = _run_name(name) or (run_names[-1] if run_names else TrainConfig.dataset)
    if name not in run_names:
        remedy = f"runs with one: {', '.join(run_names)}; or train it" if run_names else "train it"
        raise UserError(
            f"there is no checkpoint of a run {name!r}; {remedy}: modal run modal_app.py::train --out-dir {name}"
        )
    storage.pull(RUNS_DIR / name)
    return Run(RUNS_DIR / name)


def sync_checkpoints(
    records: Iterator[Record], storage: Storage, folder: Path, owner: str
) -> Generator[Record, None, None]:
    """The records of the run in `folder`, which is pushed after each checkpoint, in the background, and at the end.

    Whatever ends the run, also an interrupt: its last state is stored. `UserError` when the stored run belongs to
    another owner by then.
    """
    pushes: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:  # one thread, so that pushes stay in their order
        try:
            for record in records:
                yield record
                if isinstance(record, CheckpointRecord):
                    pushes.append(worker.submit(storage.push, folder, owner))
                while pushes and pushes[0].done():
                    pushes.popleft().result()  # raises the error of a failed push
        finally:
            worker.submit(storage.push, folder, owner).result()


@dataclass(frozen=True)
class _TrainJob:
    """Which run a call of `train_job` trains, and how it starts."""

    folder: Path  # runs/NAME
    owner: str
    resumes: bool  # from the last checkpoint
    replaces: bool  # the stored run, as `overwrite` says


def _resolve_run(storage: Storage, name: str, owner: str, *, overwrite: bool) -> _TrainJob:
    """Pull the run, unless it is to be replaced, and decide whether training resumes it."""
    folder = RUNS_DIR / require_safe_name(name, "run")
    replaces = overwrite and not storage.is_owner(folder, owner)
    if not replaces:
        storage.pull(folder)
    resumes = (folder / f"last{SUFFIX}").is_file() and not replaces
    return _TrainJob(folder, owner, resumes, replaces)


def _prepare_resume(
    storage: Storage, folder: Path, dataset: str, options: dict[str, Any]
) -> tuple[Dataset | str, dict[str, Any]]:
    """The data and the options to resume the run in `folder`."""
    preset, parent = str(options.pop("preset", "")), str(options.get("init_from", "scratch"))
    shape = _preset_shape(preset, options) if preset and parent in ("scratch", "resume") else {}
    return job_data.data_to_resume(storage, Run(folder), dataset), {**shape, **options, "init_from": "resume"}


def _prepare_new_run(
    storage: Storage, folder: Path, dataset: str, options: dict[str, Any]
) -> tuple[Dataset, dict[str, Any]]:
    """The data and the options to start the run in `folder`, from scratch or from the weights of another model."""
    dataset, parent = dataset or DataConfig.dataset, str(options.get("init_from", "scratch"))
    is_gpt2 = parent in hub.GPT2_REPOS
    preset = str(options.get("preset", "")) or ("finetune" if is_gpt2 else presets.RENTED_GPU_PRESET)
    options = {**options, "preset": preset}
    if parent == "scratch":
        return job_data.pull_or_prepare(storage, dataset, str(options.get("tokenizer", "auto"))), options
    if is_gpt2:
        return job_data.pull_or_prepare(storage, dataset, "gpt2", job_data.derived_name(dataset, parent)), options
    # `init_from='resume'` without a checkpoint of this run: `find_run` raises the error that lists the runs
    parent_run = find_run(storage, folder.name if parent == "resume" else parent)
    data = job_data.data_for_initial_weights(storage, dataset, parent_run)
    return data, {**options, "init_from": parent_run.out_dir}


def _train_and_sync(
    storage: Storage, job: _TrainJob, data: Dataset | str, world_size: int, options: dict[str, Any]
) -> Run:
    """Train, and store the run at each checkpoint. The stored run is claimed once training has started."""
    # the local folder of a remote storage is a copy: what a run without a last checkpoint left in it may be deleted
    overwrite = job.replaces or (storage.is_remote and not job.resumes)
    options = {**options, "out_dir": job.folder, "overwrite": overwrite}
    with closing(Console(spell=for_modal)) as console:
        if world_size == 1:
            records = pipeline.training_to_end(data, console=console, **options)
        else:
            records = launcher.train_on_ranks(world_size, data, **options)
        with closing(records):
            first = next(records)  # it comes after all options and data were checked
            storage.claim(job.folder, job.owner, delete_files=not job.resumes)
            synced = sync_checkpoints(itertools.chain([first], records), storage, job.folder, job.owner)
            with closing(synced):
                return pipeline.show_records(synced, console)


def _run_name(out_dir: str) -> str:
    """The name of a run that is given by its name, or by its folder: runs/NAME."""
    return out_dir.replace("\\", "/").removeprefix(f"{RUNS_DIR}/")  # runs\\NAME from a client on Windows


def _preset_shape(preset: str, options: Mapping[str, Value]) -> dict[str, Value]:
    """The options of the network with a preset and `options`: they must be the same in a run that is resumed."""
    names = NetworkConfig.names_by_role(Role.NETWORK)
    config = presets.config_with_preset(preset, {name: options[name] for name in names if name in options})
    return {name: getattr(config, name) for name in names}
