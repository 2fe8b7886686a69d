"""The job of `prepare_data`: a text is prepared in the current folder, and stored. It needs no PyTorch."""

from nanogpt_lite.cloud.client.volume_names import require_safe_name
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.data import preparation, sources
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.folder_names import DATA_DIR
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
