"""A text has a folder for each tokenizer: which one is used, what it is called, and that none replaces another."""

import hashlib
import json
from pathlib import Path

import pytest
from book_data import OTHER_TEXT, TEXT, fingerprints, nanogpt_bins, read_bins, write_book

from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.preparation import open_or_prepare, prepare
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import BPETokenizer
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer

CHARS = "".join(sorted(set(TEXT)))
FOLDERS = {"char": "data/book", "byte": "data/book-byte", "bpe-260": "data/book-bpe-260"}
MERGES = ["h e", "t he", "q u", "z z"]  # of another text


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_book(tmp_path, monkeypatch)


def hash_of(tokenizer: Tokenizer) -> str:
    """Of the JSON with sorted keys, ASCII only and without spaces."""
    content = json.dumps(tokenizer.to_json(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def folders() -> list[str]:
    return sorted(path.as_posix() for path in Path("data").iterdir())


def text_of(dataset: Dataset) -> str:
    return dataset.tokenizer.decode([*dataset.train, *dataset.val])


@pytest.mark.parametrize("order", [["char", "byte", "bpe-260"], ["bpe-260", "byte", "auto"]])
def test_each_tokenizer_has_a_folder_and_none_changes_what_another_call_gets(book, order):
    for tokenizer in order:
        prepare(book, tokenizer=tokenizer)
    assert folders() == sorted(FOLDERS.values())
    before = {folder: fingerprints(Path(folder)) for folder in folders()}
    for tokenizer, folder in {**FOLDERS, "auto": "data/book"}.items():
        dataset = open_or_prepare(book, tokenizer=tokenizer)
        assert (dataset.path.as_posix(), dataset.name) == (folder, Path(folder).name)
        assert dataset.tokenizer.to_json()["type"] == ("char" if tokenizer == "auto" else tokenizer)
        assert text_of(dataset) == TEXT
    assert read_bins(Path("data/book")) == nanogpt_bins(TEXT)
    assert {folder: fingerprints(Path(folder)) for folder in folders()} == before


def test_new_text_replaces_the_dataset_of_the_tokenizer_that_is_asked_for(book):
    for tokenizer in FOLDERS:
        prepare(book, tokenizer=tokenizer)
    book.write_bytes(OTHER_TEXT.encode())
    assert text_of(prepare(book, tokenizer="byte")) == OTHER_TEXT
    assert read_bins(Path("data/book")) == nanogpt_bins(TEXT)
    assert text_of(prepare("data/book-bpe-260")) == TEXT


def test_prepared_folder_is_found_by_path_and_by_name_with_its_tokenizer(book):
    prepare(book, tokenizer="byte")
    book.unlink()
    for name in ("book-byte", "data/book-byte"):
        assert prepare(name).path == prepare(name, tokenizer="byte").path == Path("data/book-byte")
    assert prepare("book", tokenizer="byte").path == Path("data/book-byte")
    assert prepare("book", tokenizer=ByteTokenizer()).path == Path("data/book-byte")
    with pytest.raises(UserError, match="there is no dataset, file or folder 'book'"):
        prepare("book")


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (CharTokenizer(CHARS + "ß"), "book"),
        (CharTokenizer(CHARS[::-1]), "book"),
        (BPETokenizer("bpe-260", MERGES), "book-bpe-260"),
    ],
    ids=["more characters", "another order", "other merges"],
)
def test_tokenizer_of_a_run_has_a_folder_of_its_own(book, tokenizer, name):
    for option in FOLDERS:
        prepare(book, tokenizer=option)
    before = {folder: fingerprints(Path(folder)) for folder in folders()}
    dataset = prepare(book, tokenizer=tokenizer)
    kind = tokenizer.to_json()["type"]
    assert dataset.path == Path(f"data/book-{kind}-{hash_of(tokenizer)}")
    assert dataset.name == name, "runs are called so"
    assert text_of(dataset) == TEXT
    written = fingerprints(dataset.path)
    assert open_or_prepare(book, tokenizer=tokenizer).path == dataset.path
    book.unlink()
    assert prepare("book", tokenizer=tokenizer).path == dataset.path
    assert fingerprints(dataset.path) == written
    assert {folder: fingerprints(Path(folder)) for folder in before} == before


@pytest.mark.parametrize(
    ("option", "is_prepared"),
    [*((option, True) for option in FOLDERS), ("char", False), ("byte", False)],  # bpe-260 would have to be trained
)
def test_tokenizer_of_a_run_that_belongs_to_the_text_has_no_folder_of_its_own(book, option, is_prepared):
    by_name = prepare(book, tokenizer=option)
    manifest = (by_name.path / "manifest.json").read_bytes()
    if not is_prepared:
        by_name.path.rename("elsewhere")
    assert prepare(book, tokenizer=by_name.tokenizer).path == by_name.path
    assert (by_name.path / "manifest.json").read_bytes() == manifest
    assert folders() == [FOLDERS[option]]


@pytest.mark.parametrize("option", ["byte", "bpe-260"])
def test_data_of_earlier_versions_is_used_by_its_tokenizer_until_characters_are_asked_for(book, option):
    """Up to version 0.2, data/NAME held the tokenizer that was given last."""
    earlier = prepare(book, tokenizer=option, out_dir="data/book")
    for tokenizer in (option, earlier.tokenizer):
        assert open_or_prepare(book, tokenizer=tokenizer).path == Path("data/book")
    assert folders() == ["data/book"]
    assert read_bins(prepare(book).path) == nanogpt_bins(TEXT)
    again = prepare(book, tokenizer=earlier.tokenizer)  # as the run of the earlier version does
    assert again.tokenizer.to_json() == earlier.tokenizer.to_json()
    assert text_of(again) == TEXT
    assert read_bins(Path("data/book")) == nanogpt_bins(TEXT)


def test_data_of_earlier_versions_is_not_replaced_by_a_new_text_for_its_tokenizer(book):
    earlier = prepare(book, tokenizer="byte", out_dir="data/book")
    before = fingerprints(earlier.path)
    book.write_bytes(OTHER_TEXT.encode())
    assert text_of(prepare(book, tokenizer="byte")) == OTHER_TEXT
    assert fingerprints(Path("data/book")) == before


@pytest.mark.parametrize("chars", [CHARS[::-1], CHARS + "ß"])
def test_characters_of_a_run_in_data_of_earlier_versions_are_not_those_of_the_text(book, chars):
    prepare(book, tokenizer=CharTokenizer(chars), out_dir="data/book")
    assert prepare(book).tokenizer.to_json() == {"type": "char", "chars": CHARS}


def test_merges_of_a_run_in_data_of_earlier_versions_are_not_those_of_the_text(book):
    merges_of_run = BPETokenizer("bpe-260", MERGES)
    prepare(book, tokenizer=merges_of_run, out_dir="data/book")
    assert open_or_prepare(book, tokenizer=merges_of_run).path == Path("data/book")
    assert prepare(book, tokenizer="bpe-260").path == Path("data/book-bpe-260")


def test_out_dir_is_the_folder_for_any_tokenizer(book):
    for tokenizer in ("byte", CharTokenizer(CHARS + "ß"), "char", "byte", "auto"):
        assert prepare(book, tokenizer=tokenizer, out_dir="mine").path == Path("mine")
    assert read_bins(Path("mine")) == nanogpt_bins(TEXT), "auto is char"
    assert not Path("data").exists()


@pytest.mark.parametrize("tokenizer", ["byte", CharTokenizer(CHARS + "ß")], ids=["by name", "of a run"])
def test_remedy_for_damaged_data_keeps_its_tokenizer(book, tokenizer):
    dataset = prepare(book, tokenizer=tokenizer)
    (dataset.path / "val.bin").write_bytes((dataset.path / "val.bin").read_bytes()[::-1])
    with pytest.raises(UserError, match="are not those of the text that was prepared") as caught:
        prepare(book, tokenizer=tokenizer)
    if tokenizer == "byte":
        assert "`tokenizer='byte'` `out_dir='data/book-byte'` `overwrite=True`" in str(caught.value)
        prepare(book, tokenizer="byte", out_dir="data/book-byte", overwrite=True)
    else:
        assert "delete that folder" in str(caught.value)
        for path in dataset.path.iterdir():
            path.unlink()
    repaired = prepare(book, tokenizer=tokenizer)
    assert repaired.path == dataset.path
    assert text_of(repaired) == TEXT


def test_temporary_folder_is_written_only_for_what_is_not_prepared(book):
    """As an evaluation does: the text book.txt of another folder does not replace this one."""
    dataset = prepare(book, tokenizer="byte")
    before = fingerprints(dataset.path)
    same = open_or_prepare(book, tokenizer=ByteTokenizer(), temporary_dir="temporary")
    assert same.path == dataset.path
    Path("elsewhere").mkdir()
    Path("elsewhere/book.txt").write_bytes(OTHER_TEXT.encode())
    other = open_or_prepare("elsewhere/book.txt", tokenizer=ByteTokenizer(), temporary_dir="temporary")
    assert (other.path, text_of(other)) == (Path("temporary"), OTHER_TEXT)
    assert fingerprints(dataset.path) == before
    assert folders() == ["data/book-byte"]
