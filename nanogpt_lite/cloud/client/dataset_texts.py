"""The text of a call: found on this machine or on the Volume, checked before anything is rented, and uploaded."""

import glob
import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Protocol

from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.cloud.client.volume_names import UPLOADS_DIR, require_safe_name
from nanogpt_lite.data import folder_names, sources
from nanogpt_lite.errors import UserError, shorten

# The characters of tiny Shakespeare, and their number. Its SHA-256 is in `sources.RESOURCES`, so they are facts.
SHAKESPEARE_CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SHAKESPEARE_LENGTH = 1_115_394


class UploadBatch(Protocol):
    """What `modal.Volume.batch_upload()` gives."""

    def put_file(self, local_file: BinaryIO, remote_path: str) -> None:
        """Add a file to the upload."""


class UploadVolume(Protocol):
    """The one method of `modal.Volume` that is used here."""

    def batch_upload(self, force: bool = False) -> AbstractContextManager[UploadBatch]:
        """Upload files together at the end of the `with` block; `force` replaces existing ones."""


@dataclass(frozen=True)
class Text:
    """A text with a tokenizer, and what is known of it here: nothing of a URL, for instance, until it is prepared."""

    dataset: str  # what a Function takes: the name of the dataset, or a URL
    local_path: str = ""  # a file, folder or glob of this machine, to upload
    is_prepared: bool = False  # its token ids are on the Volume
    tokenizer: str = ""  # with which it is to be prepared before a Function is called; empty: the Function does it
    train_tokens: int | None = None
    characters: str | None = None  # the vocabulary; None also if any text can be encoded
    sha256: str = ""  # of the UTF-8 of a text of this machine
    replaces: bool = False  # another text of this name is on the Volume

    def require_length(self, block_size: int) -> None:
        """`UserError` if the train split is known to be too short for one window."""
        if self.train_tokens is not None and self.train_tokens <= block_size:
            raise UserError(
                f"the text is too short for block_size={block_size}: its train split has {self.train_tokens} tokens, "
                f"and one block needs {block_size + 1}; give a longer text, or a smaller `block_size`"
            )

    def require_characters_of(self, run: str, known: str | None) -> None:
        """`UserError` if this text has a character that the network of a run does not know; `known`: those it does."""
        unknown = sorted(set(self.characters or "") - set(known)) if known is not None else []
        if unknown:
            raise UserError(
                f"the text {self.dataset} has {unknown[0]!r} (U+{ord(unknown[0]):04X}), which is not among the "
                f"{len(known or '')} characters that the run {run!r} knows; remove it, or give another text"
            )

    def require_prompt(self, prompt: str) -> None:
        """`UserError` if a character of the prompt is known to be none of the text."""
        if self.characters is not None and (unknown := [c for c in prompt if c not in self.characters]):
            raise UserError(
                f"the prompt has {unknown[0]!r} (U+{ord(unknown[0]):04X}), which is not among the "
                f"{len(self.characters)} characters of the text {self.dataset}; remove it, or train with "
                "`tokenizer='byte'`, which encodes any text"
            )


def find_text(stored: StoredFiles, dataset: str, tokenizer: str) -> Text:
    """The text that a dataset is: a built-in one, a URL, a text of this machine, or one that was uploaded before.

    A text of this machine is read. `UserError` if there is none, or if it is not UTF-8 or too short to be split.
    """
    if dataset in sources.DATASET_NAMES or dataset.startswith(("http://", "https://")):
        name = require_safe_name(sources.dataset_name(dataset), "dataset")
        if prepared := _prepared_text(stored, name, dataset, tokenizer):
            return prepared
        if dataset == "shakespeare_char" and tokenizer in ("auto", "char"):
            length = int(SHAKESPEARE_LENGTH * sources.TRAIN_FRACTION)
            return Text(dataset, train_tokens=length, characters=SHAKESPEARE_CHARACTERS)
        return Text(dataset)
    name = require_safe_name(sources.dataset_name(dataset), "dataset")
    if _is_local_path(dataset):
        if name in sources.DATASET_NAMES:
            raise UserError(
                f"{dataset} would be stored as {name!r}, the name of a built-in text; give the file another name"
            )
        text = _local_text(dataset, name, tokenizer)
        hashes = {stored.dataset_sha256(folder) for folder in folder_names.possible_names(name, tokenizer)}
        return replace(text, replaces=not hashes <= {"", text.sha256})
    if name in stored.datasets and dataset in (name, f"{name}.txt", f"{UPLOADS_DIR}/{name}.txt"):
        return _prepared_text(stored, name, name, tokenizer) or Text(name)
    known = ", ".join([*sources.DATASET_NAMES, *(n for n in stored.datasets if n not in sources.DATASET_NAMES)])
    raise UserError(
        f"there is no text {shorten(dataset)!r} on this machine or on the Volume; give the path of a text, a URL, or "
        f"one of {known}"
    )


def upload_texts(volume: UploadVolume, texts: Iterable[Text]) -> None:
    """Upload those texts that are on this machine, each once, as texts/NAME.txt. One of the same name is replaced."""
    for text in {text.dataset: text for text in texts}.values():
        if text.local_path:
            _upload_text(volume, text)


def _upload_text(volume: UploadVolume, text: Text) -> None:
    with TemporaryFile() as file:
        for chunk in sources.find_source(text.local_path).read_chunks():
            file.write(chunk.encode())
        n_bytes = file.tell()
        file.seek(0)
        with volume.batch_upload(force=True) as batch:
            batch.put_file(file, f"{UPLOADS_DIR}/{text.dataset}.txt")
    replaced = ", which was another one before" if text.replaces else ""
    print(f"uploaded {text.local_path} ({n_bytes:,} bytes); --dataset {text.dataset} names this text{replaced}")


def _prepared_text(stored: StoredFiles, name: str, dataset: str, tokenizer: str) -> Text | None:
    """The text of the prepared dataset with this tokenizer; None if there is none.

    auto is char for a text. Where there is no text, the name is that of the prepared folder, which has a tokenizer.
    """
    is_text = stored.has_text(name) or dataset != name or name in sources.DATASET_NAMES
    requested = "char" if tokenizer == "auto" and is_text else tokenizer
    for folder in folder_names.possible_names(name, tokenizer):
        stored_tokenizer = stored.read_json(f"datasets/{folder}/tokenizer.json")
        if stored.is_prepared(folder) and requested in ("auto", stored_tokenizer.get("type")):
            train_tokens = stored.read_json(f"datasets/{folder}/manifest.json").get("train_tokens")
            characters = stored_tokenizer.get("chars")
            return Text(
                dataset,
                is_prepared=True,
                train_tokens=train_tokens if isinstance(train_tokens, int) else None,
                characters=characters if isinstance(characters, str) else None,
            )
    return None


def _local_text(path: str, name: str, tokenizer: str) -> Text:
    characters: set[str] = set()
    digest = hashlib.sha256()
    n_chars = n_bytes = 0
    for chunk in sources.find_source(path).read_chunks():
        data = chunk.encode()
        digest.update(data)
        characters.update(chunk)
        n_chars += len(chunk)
        n_bytes += len(data)
    train_chars = int(n_chars * sources.TRAIN_FRACTION)
    if n_chars - train_chars < 2:
        raise UserError(f"the text {path} has {n_chars} characters, too few to train on; give a longer one")
    if tokenizer in ("auto", "char"):
        known = "".join(sorted(characters))
        return Text(name, path, train_tokens=train_chars, characters=known, sha256=digest.hexdigest())
    return Text(name, path, train_tokens=n_bytes if tokenizer == "byte" else None, sha256=digest.hexdigest())


def _is_local_path(dataset: str) -> bool:
    """Whether a file, a folder or a glob pattern of this machine has at least one match."""
    return any(glob.iglob(str(Path(dataset).expanduser()), recursive=True))  # noqa: PTH207
