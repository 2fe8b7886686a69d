"""The data of a job: pulled from the storage, or prepared and pushed if it is not stored yet."""

from pathlib import Path

from nanogpt_lite import files
from nanogpt_lite.cloud.client.volume_names import require_safe_name
from nanogpt_lite.cloud.prepare_job import prepare_and_push, pull_prepared
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.data import folder_names, preparation, sources
from nanogpt_lite.data.dataset import Dataset, open_dataset
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tokenizers.base import Tokenizer


def pull_or_prepare(storage: Storage, dataset: str, tokenizer: str | Tokenizer) -> Dataset:
    """The stored dataset of a text with a tokenizer, prepared and pushed if it is not stored.

    Also if the stored one is of another text than the one that was uploaded under this name since.
    """
    name = require_safe_name(sources.dataset_name(dataset), "dataset")
    if name in sources.DATASET_NAMES:  # the checkpoint then has the built-in name, which every machine knows
        return prepare_and_push(storage, name, tokenizer=tokenizer)
    prepared = pull_prepared(storage, dataset, tokenizer)
    if prepared is None or storage.text_source(dataset) != dataset:
        prepared = prepare_and_push(storage, dataset, tokenizer=tokenizer)
    return preparation.open_or_prepare(prepared.path, tokenizer=tokenizer)


def data_to_resume(storage: Storage, run: Run, dataset: str) -> Dataset | str:
    """The data that a run was trained on; or `dataset`, if another one is given, encoded as the run's.

    Whether its text is the same is checked by its hash, when training resumes.
    """
    if dataset:
        tokenizer = load_checkpoint(run, "last", weights_only=True).tokenizer
        name, data_name = sources.dataset_name(dataset), run.data_folder.name
        # version 0.2 stored the data of a run that had the tokenizer of another one as DATASET-for-RUN
        is_data_of_run = data_name in folder_names.possible_names(name, tokenizer)
        if not is_data_of_run and not data_name.startswith(f"{name}-for-"):
            return pull_or_prepare(storage, dataset, tokenizer)
    folder = pull_data_of_run(storage, run)
    return _built_in_dataset(run) or preparation.open_or_prepare(folder)


def pull_data_of_run(storage: Storage, run: Run) -> Path:
    """Pull the data that a run was trained on; its folder.

    If that has another tokenizer now, the text is encoded as the run's, and stored in a folder of its own. `UserError`
    if the text of this name is another one now.
    """
    folder = run.data_folder
    storage.pull(folder)
    stored = open_dataset(folder, source=str(folder)) if storage.is_remote else None
    if stored is None or _built_in_dataset(run):
        return folder
    saved = load_checkpoint(run, "last", weights_only=True)
    if saved.checkpoint.metadata.dataset_sha256 not in ("", stored.sha256):
        raise UserError(
            f"the text {folder.name!r} on the Volume is not the one that the run {run.out_dir.name!r} was trained on; "
            f"give that text (`dataset`), or start a new run from the weights: `init_from={run.out_dir.name!r}`"
        )
    if preparation.has_tokenizer(stored, saved.tokenizer):
        return folder
    return pull_or_prepare(storage, _text_of(storage, folder.name, saved.tokenizer), saved.tokenizer).path


def _built_in_dataset(run: Run) -> str:
    """The dataset of a run, if it is a built-in one, which every machine can prepare; else empty."""
    match files.read_json(run.out_dir / "config.json"):
        case {"config": {"dataset": str(dataset)}} if dataset in sources.DATASET_NAMES:
            return dataset
    return ""


def _text_of(storage: Storage, folder_name: str, tokenizer: Tokenizer) -> str:
    """The name of the text in a folder of this name: the name itself where a text was uploaded under it."""
    is_uploaded = storage.text_source(folder_name) != folder_name
    return folder_name if is_uploaded else folder_names.text_name(folder_name, tokenizer)
