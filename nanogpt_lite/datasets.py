"""Tokens on disk: a prepared folder, which is written from a text, opened, and left alone while it fits.

A prepared folder holds train.bin and val.bin (raw little-endian ids, as nanoGPT writes them), tokenizer.json
and manifest.json. Where texts come from is the business of `texts`, how they become ids that of `encoding`.
"""

import filecmp
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_lite import files, texts
from nanogpt_lite.config import DataConfig, names_pairs
from nanogpt_lite.download import Report
from nanogpt_lite.encoding import TRAIN_SHARE, Survey, encode, survey
from nanogpt_lite.errors import UserError, WorldError
from nanogpt_lite.texts import Text
from nanogpt_lite.tokenizer import (
    CharTokenizer,
    Ids,
    Tokenizer,
    id_dtype,
)
from nanogpt_lite.vocabulary import from_json, named

Stamp = tuple[int, int, int]
"""Of a file: which one it is, its length in bytes, and when it was last changed."""

DATA_DIR = Path("data")
OF_A_RUN = "of a run"  # a tokenizer that was not chosen by its name
READ_AT_ONCE = 2**20  # tokens


@dataclass(frozen=True)
class Dataset:
    """A prepared text. `train` and `val` are read-only memory maps of token ids, shape (tokens,).

    They are for who wants to look at them: a run reads the files (`integrity.guarded`).
    """

    path: Path
    asked: str  # what `prepare` was given: with it a run finds its data again
    tokenizer: Tokenizer
    sha256: str  # of the text, as UTF-8
    train: Ids
    val: Ids
    stamps: tuple[Stamp, ...]  # of the two files, from before they were opened

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    def __repr__(self) -> str:
        return (
            f"Dataset({str(self.path)!r}: {len(self.train):,} train and {len(self.val):,} val tokens, "
            f"{self.tokenizer.vocab_size} symbols)"
        )

    @property
    def bins(self) -> tuple[Path, Path]:
        """The files of `train` and `val`."""
        return _bins(self.path)

    def read(self) -> Iterator[Ids]:
        """All tokens from first to last, in pieces that are read from the files: of a map all pages would stay."""
        for path in self.bins:
            with path.open("rb") as file:
                while len(ids := np.fromfile(file, self.train.dtype, READ_AT_ONCE)):
                    yield ids


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
    existing = _open_existing(folder, asked)
    if existing and tokenizer == "auto" and _is_of_a_run(folder):
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
    _write(folder, source, text, chosen, tokenizer if isinstance(tokenizer, str) else OF_A_RUN, report)
    written = _open_existing(folder, asked)
    if written is None or written.sha256 != text.sha256 or not _same(written.tokenizer, chosen):
        raise WorldError(f"{folder} changed while it was written; is another program preparing it? Try again")
    return written


def stamp(found: os.stat_result) -> Stamp:
    """By what a change of a file can be seen without reading it."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def _write(folder: Path, source: Text, text: Survey, tokenizer: Tokenizer, chosen: str, report: Report | None) -> None:
    """Write a prepared folder. Its manifest says "complete": false from before the first change to after the last."""
    dtype = np.dtype(id_dtype(tokenizer.vocab_size)).newbyteorder("<")
    files.remove_leftovers(folder, *(path.name for path in _bins(folder)), "tokenizer.json", "manifest.json")
    with ExitStack() as stack:
        train, val = (stack.enter_context(files.atomic(folder / f"{split}.bin")) for split in ("train", "val"))
        tokens = encode(source, text, tokenizer, dtype, train, val, report)
        manifest = {
            "complete": True,
            "source": source.label,
            "sha256": text.sha256,
            "characters": text.characters,
            "train_share": TRAIN_SHARE,
            "tokenizer": chosen,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.base.name,
            "train_tokens": tokens[0],
            "val_tokens": tokens[1],
        }
        _refuse_foreign(folder, {"train.bin": train, "val.bin": val})
        files.write_json(folder / "manifest.json", {**manifest, "complete": False})
        files.write_json(folder / "tokenizer.json", tokenizer.to_json())
    files.write_json(folder / "manifest.json", manifest)


def _refuse_foreign(folder: Path, bins: dict[str, Path]) -> None:
    """`UserError` if the folder holds files that this program did not write, and would replace by other ones."""
    if _is_ours(folder):
        return
    foreign = [folder / name for name, new in bins.items() if _differ(folder / name, new)]
    # JSON that cannot be read counts as ours, damaged
    if _read_json(folder / "manifest.json") is not None:
        foreign.append(folder / "manifest.json")
    tokenizer = _read_json(folder / "tokenizer.json")
    if tokenizer is not None and not (_is_a_form(tokenizer)):
        foreign.append(folder / "tokenizer.json")
    if foreign:
        raise UserError(
            f"{foreign[0]} holds other data, which this program did not write; move it away, or give another folder: "
            "nanogpt-lite prepare --dataset … --out_dir …"
        )


def _is_a_form(form: Any) -> bool:
    kind = form.get("type") if isinstance(form, dict) else None
    return isinstance(kind, str) and (kind in ("char", "byte") or names_pairs(kind))


def _differ(old: Path, new: Path) -> bool:
    return old.exists() and not filecmp.cmp(old, new, shallow=False)


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
        return wanted == "byte" or not _is_of_a_run(existing.path)  # whose pairs come from another text
    used = np.zeros(existing.tokenizer.vocab_size, dtype=bool)
    for ids in existing.read():
        if int(ids.max()) >= len(used):
            return False  # damaged
        used[ids] = True
    return bool(used.all())


def _prepared_folder(dataset: str) -> Path | None:
    """The prepared folder that is meant by its path, or by its name under data/ if no file has that name."""
    path = Path(dataset)
    if _is_ours(path):
        return path
    by_name = DATA_DIR / path
    return by_name if dataset not in texts.NAMES and not path.exists() and _is_ours(by_name) else None


def _is_ours(folder: Path) -> bool:
    """Whether this program prepared the folder, or began to."""
    manifest = _read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and "complete" in manifest


def _is_of_a_run(folder: Path) -> bool:
    """Whether a folder was prepared for the weights of another run, whose tokenizer nobody chose for this text."""
    manifest = _read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and manifest.get("tokenizer") == OF_A_RUN


def _open_fitting(folder: Path, tokenizer: str | Tokenizer) -> Dataset:
    """A prepared folder, which has to have the tokenizer that is asked for: its text is not at hand."""
    dataset = _open_existing(folder, str(folder))
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


def _open_existing(folder: Path, asked: str) -> Dataset | None:
    """A folder that was prepared to the end, else None."""
    manifest = _read_json(folder / "manifest.json")
    tokenizer = _read_json(folder / "tokenizer.json")
    if not isinstance(manifest, dict) or manifest.get("complete") is not True:
        return None
    try:
        dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[manifest["dtype"]])
        stamps = tuple(stamp(path.stat()) for path in _bins(folder))
        train, val = (np.asarray(np.memmap(path, dtype, mode="r")) for path in _bins(folder))
        whole = [len(train), len(val)] == [manifest["train_tokens"], manifest["val_tokens"]]
        unchanged = _read_json(folder / "manifest.json") == manifest  # nobody began to write in the meantime
        if whole and unchanged:
            return Dataset(folder, asked, from_json(tokenizer), str(manifest["sha256"]), train, val, stamps)
    except (KeyError, TypeError, ValueError, OSError):
        pass  # damaged: to be prepared again
    return None


def _bins(folder: Path) -> tuple[Path, Path]:
    return folder / "train.bin", folder / "val.bin"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
