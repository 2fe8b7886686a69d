"""Text to tokens on disk: which text, with which tokenizer, and whether it has been prepared already.

Where texts come from is the business of `texts`, how they become ids that of `encoding`, what a prepared folder is
that of `prepared`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nanogpt_lite import texts
from nanogpt_lite.config import DataConfig
from nanogpt_lite.download import Report
from nanogpt_lite.encoding import Survey, survey
from nanogpt_lite.errors import UserError, WorldError
from nanogpt_lite.prepared import OF_A_RUN, Dataset, is_of_a_run, is_ours, open_existing, write
from nanogpt_lite.texts import Text
from nanogpt_lite.tokenizer import CharTokenizer, Tokenizer
from nanogpt_lite.vocabulary import named

DATA_DIR = Path("data")


def prepare(
    dataset: str | Path,
    *,
    tokenizer: str | Tokenizer = "auto",
    out_dir: str | Path | None = None,
    overwrite: bool = False,
    sha256: str | None = None,
    report: Report | None = None,
) -> Dataset:
    """Prepare a text, or open it if that has been done, and return it.

    `dataset`: shakespeare_char, python_docs, a file, folder, glob or URL of UTF-8 text, or a prepared folder.
    `tokenizer`: "char", "byte", "auto" (as already prepared, else char), or a tokenizer to use as it is.
    `out_dir`: where to write, instead of data/NAME. `overwrite`: fetch and write again even if nothing changed.
    `sha256`: of the text that a run was trained on; another one is refused. `report(what, done, total)` is told
    the progress, in bytes.

    `UserError`: no such text, not UTF-8, empty, another one than `sha256` says, or a folder that holds somebody
    else's data.
    `WorldError`: it cannot be fetched, or it changed while it was read.
    """
    asked = str(dataset)
    name = texts.name_of(asked)
    if prepared := _prepared_folder(asked):
        opened = _open_fitting(prepared, tokenizer)
        _require_text(sha256, opened.sha256, asked)
        return opened
    folder = Path(out_dir) if out_dir else DATA_DIR / name
    asked = str(folder) if out_dir else asked
    existing = open_existing(folder, asked)
    if existing and tokenizer == "auto" and is_of_a_run(folder):
        tokenizer = "char"
    wanted = sha256 or (texts.SHAKESPEARE.sha256 if asked == "shakespeare_char" else None)
    if existing and not overwrite and existing.sha256 == wanted and _fits(existing, tokenizer):
        return existing  # then the text itself is not needed, and may be gone
    source = texts.find(str(dataset), fetch_again=overwrite, report=report)
    text = survey(source, report)
    _require_text(sha256, text.sha256, source.label)
    if existing and not overwrite and existing.sha256 == text.sha256 and _fits(existing, tokenizer):
        return existing
    chosen = _choose_tokenizer(tokenizer, existing, text, source, report)
    write(folder, source, text, chosen, tokenizer if isinstance(tokenizer, str) else OF_A_RUN, report)
    written = open_existing(folder, asked)
    if written is None or written.sha256 != text.sha256 or not _same(written.tokenizer, chosen):
        raise WorldError(f"{folder} changed while it was written; is another program preparing it? Try again")
    return written


def _require_text(wanted: str | None, found: str, label: str) -> None:
    if wanted is not None and wanted != found:
        raise UserError(
            f"{label} is another text than the one that was trained on (SHA-256 {found[:12]!r}, not {wanted[:12]!r}); "
            "restore it, or begin a new run with the weights of that one: --init_from its folder"
        )


def _choose_tokenizer(
    wanted: str | Tokenizer, existing: Dataset | None, text: Survey, source: Text, report: Report | None
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
    return named(wanted, text.alphabet, pieces)


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    return one.to_json() == other.to_json()


def _fits(existing: Dataset, wanted: str | Tokenizer) -> bool:
    """Whether an existing folder has the wanted tokenizer; one made from another text's characters is not "char"."""
    if not isinstance(wanted, str):
        return _same(existing.tokenizer, wanted)
    if wanted not in ("auto", existing.tokenizer.to_json()["type"]):
        return False
    if not isinstance(existing.tokenizer, CharTokenizer):
        return wanted == "byte" or not is_of_a_run(existing.path)  # whose pairs come from another text
    used = np.zeros(existing.tokenizer.vocab_size, dtype=bool)
    for ids in existing.read():
        if int(ids.max()) >= len(used):
            return False  # damaged
        used[ids] = True
    return bool(used.all())


def _prepared_folder(dataset: str) -> Path | None:
    """The prepared folder that is meant by its path, or by its name under data/ if no file has that name."""
    path = Path(dataset)
    if is_ours(path):
        return path
    by_name = DATA_DIR / path
    return by_name if dataset not in texts.NAMES and not path.exists() and is_ours(by_name) else None


def _open_fitting(folder: Path, tokenizer: str | Tokenizer) -> Dataset:
    """A prepared folder, which has to have the tokenizer that is asked for: its text is not at hand."""
    dataset = open_existing(folder, str(folder))
    if dataset is None:
        raise UserError(f"{folder} was not prepared to the end; prepare its text again")
    kind = dataset.tokenizer.to_json()["type"]
    fits = tokenizer in ("auto", kind) if isinstance(tokenizer, str) else _same(dataset.tokenizer, tokenizer)
    if not fits:
        wanted = tokenizer if isinstance(tokenizer, str) else f"the checkpoint's {tokenizer.vocab_size} symbols"
        raise UserError(
            f"{folder} was prepared with another tokenizer ({kind}, {dataset.tokenizer.vocab_size} symbols) than "
            f"asked for ({wanted}); give the text itself as dataset"
        )
    return dataset
