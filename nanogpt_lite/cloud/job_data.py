"""The data of a job: pulled from the storage, or prepared and pushed if it is not stored yet."""

from pathlib import Path

from nanogpt_lite.cloud.client.volume_names import require_safe_name
from nanogpt_lite.cloud.prepare_job import prepare_and_push
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.data import preparation, sources
from nanogpt_lite.data.dataset import Dataset, open_dataset
from nanogpt_lite.data.folder_names import DATA_DIR
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tokenizers.base import Tokenizer


def pull_or_prepare(storage: Storage, dataset: str, tokenizer: str | Tokenizer, name: str = "") -> Dataset:
    """The stored dataset `name` (without it, the name of `dataset`), prepared and pushed if it is not stored.

    Also if the stored one is of another text than the one that was uploaded under this name since.
    """
    name = name or require_safe_name(sources.dataset_name(dataset), "dataset")
    if name in sources.DATASET_NAMES:  # the checkpoint then has the built-in name, which every machine knows
        return prepare_and_push(storage, name, tokenizer=tokenizer)
    folder = DATA_DIR / name
    storage.pull(folder)
    source = storage.text_source(dataset)
    if source != dataset or not (folder / "manifest.json").is_file():
        preparation.open_or_prepare(source, tokenizer=tokenizer, out_dir=folder)
        storage.push(folder)
    return preparation.open_or_prepare(folder, tokenizer=tokenizer)


def data_for_initial_weights(storage: Storage, dataset: str, parent: Run) -> Dataset:
    """The dataset with the tokenizer of the run whose weights training starts from, stored as DATASET-for-RUN."""
    tokenizer = load_checkpoint(parent, weights_only=True).tokenizer
    return pull_or_prepare(storage, dataset, tokenizer, derived_name(dataset, parent.out_dir.name))


def data_to_resume(storage: Storage, run: Run, dataset: str) -> Dataset | str:
    """The data that a run was trained on; or `dataset`, if another one is given, encoded as the run's.

    Whether its text is the same is checked by its hash, when training resumes.
    """
    name = sources.dataset_name(dataset) if dataset else ""
    folder = run.data_folder
    if name and folder.name != name and not folder.name.startswith(f"{name}-for-"):
        return pull_or_prepare(storage, dataset, load_checkpoint(run, "last", weights_only=True).tokenizer)
    folder = pull_data_of_run(storage, run)
    return folder.name if folder.name in sources.DATASET_NAMES else preparation.open_or_prepare(folder)


def pull_data_of_run(storage: Storage, run: Run) -> Path:
    """Pull the data that a run was trained on; its folder.

    If the dataset of this name was prepared with another tokenizer since, the text is encoded as the run's too, and
    stored as DATASET-for-RUN. `UserError` if the text of this name is another one now.
    """
    folder = run.data_folder
    storage.pull(folder)
    stored = open_dataset(folder, source=str(folder)) if storage.is_remote else None
    if stored is None or folder.name in sources.DATASET_NAMES:
        return folder
    saved = load_checkpoint(run, "last", weights_only=True)
    if saved.checkpoint.metadata.dataset_sha256 not in ("", stored.sha256):
        raise UserError(
            f"the text {folder.name!r} on the Volume is not the one that the run {run.out_dir.name!r} was trained on; "
            f"give that text (`dataset`), or start a new run from the weights: `init_from={run.out_dir.name!r}`"
        )
    if stored.tokenizer.to_json() == saved.tokenizer.to_json():
        return folder
    derived = derived_name(folder.name, run.out_dir.name)
    return pull_or_prepare(storage, folder.name, saved.tokenizer, derived).path


def derived_name(dataset: str, model: str) -> str:
    """The name of a dataset that is encoded with the tokenizer of a model: a run, or GPT-2."""
    return require_safe_name(f"{sources.dataset_name(dataset)}-for-{model}", "dataset")
