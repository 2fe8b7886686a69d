"""Prepares a text for training: finds it, chooses the tokenizer, and writes the dataset unless it exists already.

Start with `prepare`, the public function, which reads and checks all; the program itself calls `open_or_prepare`. See
`sources` for finding and reading texts, `encoding` for their token ids, `dataset` for the folder on disk,
`fingerprints` for what need not be read again, and `verification` for the check of the ids.
"""

from collections.abc import Iterator
from pathlib import Path

from nanogpt_lite.config.options import DataConfig
from nanogpt_lite.data import fingerprints, sources, verification
from nanogpt_lite.data.dataset import Dataset, open_dataset, write_dataset
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.encoding import TextStats, collect_stats
from nanogpt_lite.data.manifest import RUN_TOKENIZER, has_run_tokenizer, is_prepared_dir
from nanogpt_lite.data.sources import TextSource
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import make_tokenizer

DATA_DIR = Path("data")


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
    `tokenizer`: char, byte, gpt2, bpe-SIZE, auto (as already prepared, else char), or a tokenizer to use unchanged.
    `out_dir`: the folder to write, by default data/NAME. `overwrite`: download and write again in any case.
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
    report: ProgressCallback | None = None,
) -> Dataset:
    """The same as `prepare`, but files that have not changed since they were read are not read, unless `verify`.

    See `fingerprints` for what counts as a change. So the time does not grow with the length of a prepared text.
    """
    source = str(dataset)
    name = sources.dataset_name(source)
    if prepared_dir := _find_prepared_dir(source):
        opened = _open_prepared_dir(prepared_dir, tokenizer)
        _require_sha256(opened.sha256, expected=sha256, label=source)
        verification.verify_dataset(opened, read_all=verify, report=report)
        return opened
    folder = Path(out_dir) if out_dir else DATA_DIR / name
    recorded_source = str(folder) if out_dir else source
    existing = open_dataset(folder, source=recorded_source)
    if tokenizer == "auto" and existing and has_run_tokenizer(folder):
        tokenizer = "char"
    reusable = existing if existing and not overwrite and _has_tokenizer(existing, tokenizer) else None
    resource = None if out_dir else sources.RESOURCES.get(source)
    known_sha256 = sha256 or (resource.sha256 if resource else None)
    if reusable and reusable.sha256 == known_sha256:  # the text itself is not needed, and may be gone
        verification.verify_dataset(reusable, read_all=verify, report=report)
        return reusable
    text = sources.find_source(source, force_download=overwrite, report=report)
    text_files = fingerprints.text_fingerprint(text.paths)  # taken before they are read
    is_recorded = reusable and fingerprints.is_recorded(folder, "text", _text_record(text_files, reusable.sha256))
    if reusable and is_recorded and not (verify or sha256):
        verification.verify_dataset(reusable, report=report)
        return reusable
    stats = collect_stats(text, report)
    _require_sha256(stats.sha256, expected=sha256, label=text.label)
    if reusable and reusable.sha256 == stats.sha256:
        verification.verify_dataset(reusable, read_all=verify, report=report)
        prepared = reusable
    else:
        new_tokenizer = _choose_tokenizer(tokenizer, existing=existing, text=text, stats=stats, report=report)
        option = tokenizer if isinstance(tokenizer, str) else RUN_TOKENIZER
        del existing, reusable  # which hold maps of the files: Windows does not replace a file that is mapped
        write_dataset(folder, source=text, stats=stats, tokenizer=new_tokenizer, tokenizer_option=option, report=report)
        prepared = _open_written(folder, source=recorded_source, stats=stats, tokenizer=new_tokenizer)
        verification.verify_dataset(prepared, report=report)
    if text_files:
        fingerprints.record(folder, text=_text_record(text_files, stats.sha256))
    return prepared


def _find_prepared_dir(dataset: str) -> Path | None:
    """The prepared folder that `dataset` means: by its path, or by its name under data/ if no file has that name."""
    path = Path(dataset)
    if is_prepared_dir(path):
        return path
    by_name = DATA_DIR / path
    return by_name if dataset not in sources.DATASET_NAMES and not path.exists() and is_prepared_dir(by_name) else None


def _open_prepared_dir(folder: Path, tokenizer: str | Tokenizer) -> Dataset:
    """The dataset in a folder. `UserError` if it has another tokenizer: without the text it cannot be encoded again."""
    dataset = open_dataset(folder, source=str(folder))
    if dataset is None:
        raise UserError(f"the dataset in {folder} is incomplete or damaged; prepare its text again")
    kind = dataset.tokenizer.to_json()["type"]
    has_tokenizer = (
        tokenizer in ("auto", kind) if isinstance(tokenizer, str) else _same_tokenizer(dataset.tokenizer, tokenizer)
    )
    if not has_tokenizer:
        requested = tokenizer if isinstance(tokenizer, str) else f"the checkpoint's, vocab_size={tokenizer.vocab_size}"
        raise UserError(
            f"{folder} was prepared with another tokenizer ({kind}, vocab_size={dataset.tokenizer.vocab_size}) than "
            f"requested ({requested}); give the text itself as `dataset`"
        )
    return dataset


def _has_tokenizer(dataset: Dataset, tokenizer: str | Tokenizer) -> bool:
    """Whether a dataset has the requested tokenizer. For char, the characters must be exactly those of its text."""
    if not isinstance(tokenizer, str):
        return _same_tokenizer(dataset.tokenizer, tokenizer)
    if tokenizer not in ("auto", dataset.tokenizer.to_json()["type"]):
        return False
    if not isinstance(dataset.tokenizer, CharTokenizer):
        # BPE merges of another run were not trained on this text
        return tokenizer == "byte" or not has_run_tokenizer(dataset.path)
    return verification.uses_all_tokens(dataset)


def _same_tokenizer(first: Tokenizer, second: Tokenizer) -> bool:
    return first.to_json() == second.to_json()


def _text_record(text_files: str | None, sha256: str) -> dict[str, object]:
    """What `fingerprints` keeps when the files of a text, with this fingerprint, have a text with this SHA-256."""
    return {"files": text_files, "sha256": sha256}


def _require_sha256(actual: str, *, expected: str | None, label: str) -> None:
    if expected is not None and expected != actual:
        raise UserError(
            f"{label} is not the text that the run was trained on (SHA-256 {actual[:12]}…, expected {expected[:12]}…); "
            "restore that text, or start a new run from the weights: give the run's folder as `init_from`"
        )


def _choose_tokenizer(
    tokenizer: str | Tokenizer,
    *,
    existing: Dataset | None,
    text: TextSource,
    stats: TextStats,
    report: ProgressCallback | None,
) -> Tokenizer:
    """The requested tokenizer, made for the text. auto: of the same type as that of the existing dataset, else char."""

    def read_chunks() -> Iterator[str]:
        n_bytes = 0
        for chunk in text.read_chunks():
            yield chunk
            n_bytes += len(chunk.encode("utf-8"))
            if report:
                report("train tokenizer", n_bytes, stats.n_bytes)

    if not isinstance(tokenizer, str):
        return tokenizer
    name = DataConfig(tokenizer=tokenizer).tokenizer  # checks the value
    if name == "auto":
        name = existing.tokenizer.to_json()["type"] if existing else "char"
    return make_tokenizer(name, charset=stats.charset, read_chunks=read_chunks)


def _open_written(folder: Path, *, source: str, stats: TextStats, tokenizer: Tokenizer) -> Dataset:
    """The dataset that was just written. `ExternalError` if another program has replaced it in the meantime."""
    dataset = open_dataset(folder, source=source)
    if dataset is None or dataset.sha256 != stats.sha256 or not _same_tokenizer(dataset.tokenizer, tokenizer):
        raise ExternalError(
            f"{folder} changed while it was written; check that no other program prepares it, and try again"
        )
    return dataset
