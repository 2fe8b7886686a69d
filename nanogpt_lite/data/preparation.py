"""Text to tokens on disk: which text, with which tokenizer, and whether it has been prepared already.

Where texts come from is the business of `texts`, how they become ids that of `encoding`, what a prepared folder is
that of `prepared`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nanogpt_lite.config.options import DataConfig
from nanogpt_lite.data import sources
from nanogpt_lite.data.dataset import FROM_RUN, Dataset, has_run_tokenizer, is_prepared_dir, open_dataset, write_dataset
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.encoding import TextStats, collect_stats
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
    """Prepare a text, or open it if that has been done, and return it.

    `dataset`: shakespeare_char, python_docs, a file, folder, glob or URL of UTF-8 text, or a prepared folder.
    `tokenizer`: "char", "byte", "auto" (as already prepared, else char), or a tokenizer to use as it is.
    `out_dir`: where to write, instead of data/NAME. `overwrite`: fetch and write again even if nothing changed.
    `sha256`: of the text that a run was trained on; another one is refused. `report(what, done, total)` is told
    the progress, in bytes.

    `UserError`: no such text, not UTF-8, empty, another one than `sha256` says, or a folder that holds somebody
    else's data.
    `ExternalError`: it cannot be fetched, or it changed while it was read.
    """
    asked = str(dataset)
    name = sources.dataset_name(asked)
    if prepared := _find_prepared_dir(asked):
        opened = _open_prepared_dir(prepared, tokenizer)
        _require_sha256(sha256, opened.sha256, asked)
        return opened
    folder = Path(out_dir) if out_dir else DATA_DIR / name
    asked = str(folder) if out_dir else asked
    existing = open_dataset(folder, asked)
    if existing and tokenizer == "auto" and has_run_tokenizer(folder):
        tokenizer = "char"
    wanted = sha256 or (sources.SHAKESPEARE.sha256 if asked == "shakespeare_char" else None)
    if existing and not overwrite and existing.sha256 == wanted and _has_tokenizer(existing, tokenizer):
        return existing  # then the text itself is not needed, and may be gone
    source = sources.find_source(str(dataset), fetch_again=overwrite, report=report)
    text = collect_stats(source, report)
    _require_sha256(sha256, text.sha256, source.label)
    if existing and not overwrite and existing.sha256 == text.sha256 and _has_tokenizer(existing, tokenizer):
        return existing
    chosen = _choose_tokenizer(tokenizer, existing, text, source, report)
    write_dataset(folder, source, text, chosen, tokenizer if isinstance(tokenizer, str) else FROM_RUN, report)
    written = open_dataset(folder, asked)
    if written is None or written.sha256 != text.sha256 or not _same_tokenizer(written.tokenizer, chosen):
        raise ExternalError(f"{folder} changed while it was written; is another program preparing it? Try again")
    return written


def _require_sha256(wanted: str | None, found: str, label: str) -> None:
    if wanted is not None and wanted != found:
        raise UserError(
            f"{label} is another text than the one that was trained on (SHA-256 {found[:12]!r}, not {wanted[:12]!r}); "
            "restore it, or begin a new run with the weights of that one: --init_from its folder"
        )


def _choose_tokenizer(
    wanted: str | Tokenizer,
    existing: Dataset | None,
    text: TextStats,
    source: TextSource,
    report: ProgressCallback | None,
) -> Tokenizer:
    def pieces() -> Iterator[str]:
        octets = 0
        for piece in source.pieces():
            yield piece
            octets += len(piece.encode("utf-8"))
            if report:
                report("learn tokens", octets, text.octets)

    if not isinstance(wanted, str):
        return wanted
    wanted = DataConfig(tokenizer=wanted).tokenizer  # which judges it
    if wanted == "auto":
        wanted = existing.tokenizer.to_json()["type"] if existing else "char"
    return make_tokenizer(wanted, charset=text.alphabet, read_chunks=pieces)


def _same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    return one.to_json() == other.to_json()


def _has_tokenizer(existing: Dataset, wanted: str | Tokenizer) -> bool:
    """Whether an existing folder has the wanted tokenizer; one made from another text's characters is not "char"."""
    if not isinstance(wanted, str):
        return _same_tokenizer(existing.tokenizer, wanted)
    if wanted not in ("auto", existing.tokenizer.to_json()["type"]):
        return False
    if not isinstance(existing.tokenizer, CharTokenizer):
        return wanted == "byte" or not has_run_tokenizer(existing.path)  # whose pairs come from another text
    used = np.zeros(existing.tokenizer.vocab_size, dtype=bool)
    for ids in existing.read():
        if int(ids.max()) >= len(used):
            return False  # damaged
        used[ids] = True
    return bool(used.all())


def _find_prepared_dir(dataset: str) -> Path | None:
    """The prepared folder that is meant by its path, or by its name under data/ if no file has that name."""
    path = Path(dataset)
    if is_prepared_dir(path):
        return path
    by_name = DATA_DIR / path
    return by_name if dataset not in sources.DATASET_NAMES and not path.exists() and is_prepared_dir(by_name) else None


def _open_prepared_dir(folder: Path, tokenizer: str | Tokenizer) -> Dataset:
    """A prepared folder, which has to have the tokenizer that is asked for: its text is not at hand."""
    dataset = open_dataset(folder, str(folder))
    if dataset is None:
        raise UserError(f"{folder} was not prepared to the end; prepare its text again")
    kind = dataset.tokenizer.to_json()["type"]
    fits = tokenizer in ("auto", kind) if isinstance(tokenizer, str) else _same_tokenizer(dataset.tokenizer, tokenizer)
    if not fits:
        wanted = tokenizer if isinstance(tokenizer, str) else f"the checkpoint's {tokenizer.vocab_size} symbols"
        raise UserError(
            f"{folder} was prepared with another tokenizer ({kind}, {dataset.tokenizer.vocab_size} symbols) than "
            f"asked for ({wanted}); give the text itself as dataset"
        )
    return dataset
