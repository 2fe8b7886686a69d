"""Prepares a text for training: finds it, chooses the tokenizer, and writes the dataset unless it exists already.

Start with `prepare`, the public function, which reads and checks all; the program itself calls `open_or_prepare`. See
`sources` for finding and reading texts, `encoding` for their token ids, `dataset` for the folder on disk,
`folder_names` for its name, `fingerprints` for what need not be read again, and `verification` for the check of the
ids.
"""

from collections.abc import Iterator
from pathlib import Path

from nanogpt_lite import files
from nanogpt_lite.config.options import DataConfig
from nanogpt_lite.data import fingerprints, folder_names, sources, verification
from nanogpt_lite.data.dataset import Dataset, open_dataset, write_dataset
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.encoding import TextStats, collect_stats
from nanogpt_lite.data.folder_names import DATA_DIR
from nanogpt_lite.data.manifest import RUN_TOKENIZER, has_run_tokenizer, is_prepared_dir
from nanogpt_lite.data.sources import TextSource
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import make_tokenizer, option_of


def prepare(
    dataset: str | Path,
    *,
    tokenizer: str | Tokenizer = "auto",
    out_dir: str | Path | None = None,
    overwrite: bool = False,
    sha256: str | None = None,
    report: ProgressCallback | None = None,
) -> Dataset:
    """Prepare a text, or open it if it is prepared already, and return the dataset. It is checked: all files are read.

    `dataset`: shakespeare_char, python_docs, a file, folder, glob or URL of UTF-8 text, or a prepared folder.
    `tokenizer`: char, byte, gpt2, bpe-SIZE, auto (char; of a prepared folder its own), or a tokenizer to use unchanged.
    `out_dir`: the folder to write, by default data/NAME, and with another tokenizer than char data/NAME-TOKENIZER.
    `overwrite`: download and write again in any case.
    `sha256`: the SHA-256 of the text that a run was trained on; any other text is refused.
    `report`: called with (task, bytes done, bytes in total or None).

    `UserError` if there is no such text, if it is not UTF-8, too short, or has another SHA-256, or if the folder holds
    data of another program, or damaged data. `ExternalError` if the download fails, or if the text changes while it is
    read.
    """
    return open_or_prepare(
        dataset, tokenizer=tokenizer, out_dir=out_dir, overwrite=overwrite, sha256=sha256, verify=True, report=report
    )


def open_or_prepare(
    dataset: str | Path,
    *,
    tokenizer: str | Tokenizer = "auto",
    out_dir: str | Path | None = None,
    overwrite: bool = False,
    sha256: str | None = None,
    verify: bool = False,
    temporary_dir: str | Path | None = None,
    report: ProgressCallback | None = None,
) -> Dataset:
    """The same as `prepare`, but files that have not changed since they were read are not read, unless `verify`.

    See `fingerprints` for what counts as a change. So the time does not grow with the length of a prepared text.
    `temporary_dir`: the folder to write, for a caller that deletes it; what is prepared under data/ is used as it is.
    """
    if isinstance(tokenizer, str):
        DataConfig(tokenizer=tokenizer)  # checks the value
    source = str(dataset)
    name = sources.dataset_name(source)
    if prepared_dir := _find_prepared_dir(source, tokenizer):
        opened = _open_prepared_dir(prepared_dir, tokenizer)
        _require_sha256(opened.sha256, expected=sha256, label=source)
        verification.verify_dataset(opened, read_all=verify, report=report)
        return opened
    tokenizer = "char" if tokenizer == "auto" else tokenizer
    reusable = [] if overwrite else _open_reusable(name, out_dir, tokenizer, source=source)
    resource = None if out_dir else sources.RESOURCES.get(source)
    known_sha256 = sha256 or (resource.sha256 if resource else None)
    prepared = next((data for data in reusable if data.sha256 == known_sha256), None)
    if prepared:  # the text itself is not needed, and may be gone
        verification.verify_dataset(prepared, read_all=verify, report=report)
        return prepared
    text = sources.find_source(source, force_download=overwrite, report=report)
    text_files = fingerprints.text_fingerprint(text.paths)  # taken before they are read
    prepared = next((data for data in reusable if _is_recorded(text_files, data)), None)
    if prepared and not (verify or sha256):
        verification.verify_dataset(prepared, report=report)
        return prepared
    stats = collect_stats(text, report)
    _require_sha256(stats.sha256, expected=sha256, label=text.label)
    prepared = next((data for data in reusable if data.sha256 == stats.sha256), None)
    if prepared:
        verification.verify_dataset(prepared, read_all=verify, report=report)
    else:
        del reusable  # which hold maps of the files: Windows does not replace a file that is mapped
        prepared = _write(
            name, out_dir or temporary_dir, tokenizer, text=text, stats=stats, source=source, report=report
        )
        verification.verify_dataset(prepared, report=report)
    if text_files:
        fingerprints.record(prepared.path, text=_text_record(text_files, stats.sha256))
    return prepared


def possible_folders(name: str, tokenizer: str | Tokenizer) -> list[Path]:
    """The folders that may hold the text of this name with a tokenizer, the likeliest first."""
    return [DATA_DIR / folder for folder in folder_names.possible_names(name, tokenizer)]


def has_tokenizer(dataset: Dataset, tokenizer: str | Tokenizer) -> bool:
    """Whether a dataset has this tokenizer, or the one of this name that belongs to its text."""
    if not isinstance(tokenizer, str):
        return _same_tokenizer(dataset.tokenizer, tokenizer)
    if tokenizer != dataset.tokenizer.to_json()["type"]:
        return False
    if isinstance(dataset.tokenizer, CharTokenizer):
        # the tokenizer of another run may have more characters than the text, or another order
        chars = dataset.tokenizer.chars
        return chars == "".join(sorted(chars)) and verification.uses_all_tokens(dataset)
    # BPE merges of another run were not trained on this text
    return tokenizer == "byte" or not has_run_tokenizer(dataset.path)


def _find_prepared_dir(dataset: str, tokenizer: str | Tokenizer) -> Path | None:
    """The prepared folder that `dataset` means: by its path, or by its name under data/ if no file has that name.

    A name also means the folders beside it with other tokenizers, if one is asked for.
    """
    path = Path(dataset)
    if is_prepared_dir(path):
        return path
    if dataset in sources.DATASET_NAMES or path.exists() or path.is_absolute():
        return None
    folders = [folder for folder in possible_folders(str(path), tokenizer) if is_prepared_dir(folder)]
    if not isinstance(tokenizer, str):
        folders.sort(key=lambda folder: files.read_json(folder / "tokenizer.json") != tokenizer.to_json())
    return folders[0] if folders else None


def _open_prepared_dir(folder: Path, tokenizer: str | Tokenizer) -> Dataset:
    """The dataset in a folder. `UserError` if it has another tokenizer: without the text it cannot be encoded again."""
    dataset = open_dataset(folder, source=str(folder))
    if dataset is None:
        raise UserError(f"the dataset in {folder} is incomplete or damaged; prepare its text again")
    kind = dataset.tokenizer.to_json()["type"]
    is_right = tokenizer in ("auto", kind) if isinstance(tokenizer, str) else has_tokenizer(dataset, tokenizer)
    if not is_right:
        requested = tokenizer if isinstance(tokenizer, str) else f"the checkpoint's, vocab_size={tokenizer.vocab_size}"
        raise UserError(
            f"{folder} was prepared with another tokenizer ({kind}, vocab_size={dataset.tokenizer.vocab_size}) than "
            f"requested ({requested}); give the text itself as `dataset`"
        )
    return dataset


def _open_reusable(name: str, out_dir: str | Path | None, tokenizer: str | Tokenizer, *, source: str) -> list[Dataset]:
    """The datasets in `out_dir`, or in the folders for a text of this name, that have the tokenizer."""
    if out_dir:
        opened = [open_dataset(Path(out_dir), source=str(Path(out_dir)))]
    else:
        opened = [open_dataset(folder, source=source) for folder in possible_folders(name, tokenizer)]
    return [dataset for dataset in opened if dataset and has_tokenizer(dataset, tokenizer)]


def _write(
    name: str,
    out_dir: str | Path | None,
    tokenizer: str | Tokenizer,
    *,
    text: TextSource,
    stats: TextStats,
    source: str,
    report: ProgressCallback | None,
) -> Dataset:
    """Encode a text, and write it to `out_dir`, or to the folder for its name and tokenizer; the dataset there."""
    if isinstance(tokenizer, str):
        option: str | None = tokenizer
        tokenizer = _make_tokenizer(tokenizer, text=text, stats=stats, report=report)
    else:
        option = option_of(tokenizer, charset=stats.charset)
    if out_dir:
        folder = Path(out_dir)
    elif option:
        folder = DATA_DIR / folder_names.prepared_name(name, option)
    else:
        folder = DATA_DIR / folder_names.run_tokenizer_name(name, tokenizer)
    write_dataset(
        folder, source=text, stats=stats, tokenizer=tokenizer, tokenizer_option=option or RUN_TOKENIZER, report=report
    )
    return _open_written(folder, source=str(folder) if out_dir else source, stats=stats, tokenizer=tokenizer)


def _same_tokenizer(first: Tokenizer, second: Tokenizer) -> bool:
    return first.to_json() == second.to_json()


def _is_recorded(text_files: str | None, dataset: Dataset) -> bool:
    """Whether the files of a text, with this fingerprint, were found to have the text of a dataset."""
    return fingerprints.is_recorded(dataset.path, "text", _text_record(text_files, dataset.sha256))


def _text_record(text_files: str | None, sha256: str) -> dict[str, object]:
    """What `fingerprints` keeps when the files of a text, with this fingerprint, have a text with this SHA-256."""
    return {"files": text_files, "sha256": sha256}


def _require_sha256(actual: str, *, expected: str | None, label: str) -> None:
    if expected is not None and expected != actual:
        raise UserError(
            f"{label} is not the text that the run was trained on (SHA-256 {actual[:12]}…, expected {expected[:12]}…); "
            "restore that text, or start a new run from the weights: give the run's folder as `init_from`"
        )


def _make_tokenizer(
    tokenizer: str, *, text: TextSource, stats: TextStats, report: ProgressCallback | None
) -> Tokenizer:
    """The tokenizer of this name, made for a text."""

    def read_chunks() -> Iterator[str]:
        n_bytes = 0
        for chunk in text.read_chunks():
            yield chunk
            n_bytes += len(chunk.encode("utf-8"))
            if report:
                report("train tokenizer", n_bytes, stats.n_bytes)

    return make_tokenizer(tokenizer, charset=stats.charset, read_chunks=read_chunks)


def _open_written(folder: Path, *, source: str, stats: TextStats, tokenizer: Tokenizer) -> Dataset:
    """The dataset that was just written. `ExternalError` if another program has replaced it in the meantime."""
    dataset = open_dataset(folder, source=source)
    if dataset is None or dataset.sha256 != stats.sha256 or not _same_tokenizer(dataset.tokenizer, tokenizer):
        raise ExternalError(
            f"{folder} changed while it was written; check that no other program prepares it, and try again"
        )
    return dataset
