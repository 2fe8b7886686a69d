"""The data of a job: pulled from the storage, or prepared and pushed if it is not stored yet."""

from nanogpt_lite.cloud.client.volume_names import require_safe_name
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.data import preparation, sources
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.preparation import DATA_DIR
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tokenizers.base import Tokenizer


def prepare_and_push(
    storage: Storage,
    dataset: str,
    *,
    tokenizer: str | Tokenizer = "auto",
    overwrite: bool = False,
    verify: bool = False,
) -> Dataset:
    """Prepare a text as `preparation.open_or_prepare` does, unless it is stored already, and push it."""
    folder = DATA_DIR / require_safe_name(sources.dataset_name(dataset), "dataset")
    storage.pull(folder)
    out_dir = None if dataset in sources.DATASET_NAMES else folder  # a built-in dataset keeps its name as its source
    source = storage.text_source(dataset)
    prepared = preparation.open_or_prepare(
        source, tokenizer=tokenizer, out_dir=out_dir, overwrite=overwrite, verify=verify
    )
    storage.push(folder)
    return prepared


def pull_or_prepare(storage: Storage, dataset: str, tokenizer: str | Tokenizer, name: str = "") -> Dataset:
    """The stored dataset `name` (without it, the name of `dataset`), prepared and pushed if it is not stored.

    The text itself is read only to prepare it, or if `dataset` is a built-in one.
    """
    name = name or require_safe_name(sources.dataset_name(dataset), "dataset")
    if name in sources.DATASET_NAMES:  # the checkpoint then has the built-in name, which every machine knows
        return prepare_and_push(storage, name, tokenizer=tokenizer)
    folder = DATA_DIR / name
    storage.pull(folder)
    if not (folder / "manifest.json").is_file():
        preparation.open_or_prepare(storage.text_source(dataset), tokenizer=tokenizer, out_dir=folder)
        storage.push(folder)
    return preparation.open_or_prepare(folder, tokenizer=tokenizer)


def data_for_initial_weights(storage: Storage, dataset: str, parent: Run) -> Dataset:
    """The dataset with the tokenizer of the run whose weights training starts from, stored as DATASET-for-RUN."""
    tokenizer = load_checkpoint(parent, weights_only=True).tokenizer
    return pull_or_prepare(storage, dataset, tokenizer, derived_name(dataset, parent.out_dir.name))


def data_to_resume(storage: Storage, run: Run, dataset: str) -> Dataset | str:
    """The data that a run was trained on; or `dataset`, if another one is given.

    Whether its text is the same is checked by its hash, when training resumes.
    """
    folder = run.data_folder
    name = sources.dataset_name(dataset) if dataset else ""
    if name and folder.name != name and not folder.name.startswith(f"{name}-for-"):
        return pull_or_prepare(storage, dataset, "auto")
    storage.pull(folder)
    return folder.name if folder.name in sources.DATASET_NAMES else preparation.open_or_prepare(folder)


def derived_name(dataset: str, model: str) -> str:
    """The name of a dataset that is encoded with the tokenizer of a model: a run, or GPT-2."""
    return require_safe_name(f"{sources.dataset_name(dataset)}-for-{model}", "dataset")
