"""The job of `prepare_data`: a text is prepared in the current folder, and stored. It needs no PyTorch."""

from nanogpt_lite.cloud.client.volume_names import require_safe_name
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.data import preparation, sources
from nanogpt_lite.data.dataset import Dataset, open_dataset
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
    pull_prepared(storage, dataset, tokenizer)
    source = storage.text_source(dataset)
    prepared = preparation.open_or_prepare(source, tokenizer=tokenizer, overwrite=overwrite, verify=verify)
    storage.push(prepared.path)
    return prepared


def text_size(storage: Storage, dataset: str, tokenizer: str) -> tuple[int, int]:
    """The number of train tokens and the vocabulary size of a text with a tokenizer, which is prepared if needed."""
    prepared = prepare_and_push(storage, dataset, tokenizer=tokenizer)
    return len(prepared.train), prepared.tokenizer.vocab_size


def pull_prepared(storage: Storage, dataset: str, tokenizer: str | Tokenizer) -> Dataset | None:
    """Pull the folders that may hold a text with a tokenizer, until one does; the dataset in it.

    Whether that is still the text of this name is not known here.
    """
    name = require_safe_name(sources.dataset_name(dataset), "dataset")
    tokenizer = "char" if tokenizer == "auto" else tokenizer
    for folder in preparation.possible_folders(name, tokenizer):
        storage.pull(folder)
        prepared = open_dataset(folder, source=str(folder))
        if prepared and preparation.has_tokenizer(prepared, tokenizer):
            return prepared
    return None
