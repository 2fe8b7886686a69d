"""Which text and tokenizer `prepare` uses, and when it reuses or replaces a dataset."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from book_data import OTHER_TEXT, TEXT, fingerprints, nanogpt_bins, read_bins, write_book

from nanogpt_lite.data import preparation
from nanogpt_lite.data.dataset import Dataset, write_dataset
from nanogpt_lite.data.preparation import open_or_prepare, prepare
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_book(tmp_path, monkeypatch)


def test_existing_dataset_is_reused(book):
    first = prepare(book)
    before = fingerprints(first.path)
    for reopened in (prepare(book), prepare(book, tokenizer="char"), prepare(first.path), prepare("book")):
        assert fingerprints(first.path) == before
        assert repr(reopened) == repr(first).replace(str(first.path), str(reopened.path))
        assert np.array_equal(reopened.train, first.train)


def test_new_text_replaces_the_dataset(book):
    folder = prepare(book).path
    for text in (TEXT[::-1], OTHER_TEXT):  # with the same characters, and with others
        book.write_bytes(text.encode())
        assert prepare(book).path == folder
        assert read_bins(folder) == nanogpt_bins(text)


def test_damaged_tokens_are_an_error_and_overwrite_replaces_them(book):
    folder = prepare(book).path
    damaged = np.frombuffer(nanogpt_bins(TEXT)["train.bin"], "<u2")[::-1].tobytes()  # every token still occurs
    (folder / "train.bin").write_bytes(damaged)
    for call in (prepare, open_or_prepare):
        with pytest.raises(UserError, match="prepare it again with .* `overwrite=True`"):
            call(book)
    assert read_bins(folder)["train.bin"] == damaged
    prepare(book, overwrite=True)
    assert read_bins(folder) == nanogpt_bins(TEXT)


@pytest.mark.parametrize("name", ["book", "data/book", Path("data/book")])
def test_prepared_folder_is_opened_without_its_text(book, name):
    prepare(book)
    book.unlink()
    opened = prepare(name)
    assert opened.tokenizer.decode([*opened.train, *opened.val]) == TEXT
    assert prepare(name, tokenizer="char").path == prepare(name, tokenizer=opened.tokenizer).path == opened.path
    for other in ("byte", ByteTokenizer(), CharTokenizer("ab")):
        with pytest.raises(UserError, match="prepared with another tokenizer") as caught:
            prepare(name, tokenizer=other)
        assert "give the text itself" in str(caught.value)


def test_tokenizer_object_is_used_unchanged(book):
    chars = "".join(sorted(set(TEXT), reverse=True)) + "ß"
    dataset = prepare(book, tokenizer=CharTokenizer(chars))
    assert dataset.train.tolist() == [chars.index(c) for c in TEXT[: int(0.9 * len(TEXT))]]
    with pytest.raises(UserError, match="`tokenizer='chars'` is an invalid value: .* auto, char, .*, or bpe-"):
        prepare(book, tokenizer="chars")


def test_text_with_another_sha256_is_refused(book):
    right, wrong = hashlib.sha256(TEXT.encode()).hexdigest(), hashlib.sha256(OTHER_TEXT.encode()).hexdigest()
    for dataset in (book, "data/book"):  # the text, and the folder prepared from it
        assert prepare(dataset, sha256=right).sha256 == right
        before = fingerprints(book.parent / "data" / "book")
        with pytest.raises(UserError, match="is not the text that the run was trained on"):
            prepare(dataset, sha256=wrong)
        assert fingerprints(book.parent / "data" / "book") == before


def test_file_name_that_is_not_utf8_is_accepted(book):
    path = os.fsdecode(os.fsencode(book.parent) + b"/caf\xe9.txt")
    try:
        Path(path).write_text(TEXT, encoding="utf-8", newline="")
    except OSError:
        pytest.skip("this file system has no such names")
    assert read_bins(prepare(path, out_dir="out").path) == nanogpt_bins(TEXT)


def test_python_docs_need_no_network(book):
    from pydoc_data.topics import topics

    dataset = prepare("python_docs")
    assert read_bins(dataset.path) == nanogpt_bins("\n".join(topics[name] for name in sorted(topics)))
    assert isinstance(dataset, Dataset)


@pytest.mark.linux("/proc/self/maps shows what is mapped")
def test_no_file_is_mapped_while_it_is_written_again(book, monkeypatch):
    """Windows does not replace a file that is mapped."""
    mapped = []

    def look_and_write(*arguments, **options):
        mapped.extend(
            line
            for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
            if ".bin" in line and str(book.parent) in line
        )
        write_dataset(*arguments, **options)

    monkeypatch.setattr(preparation, "write_dataset", look_and_write)
    kept = prepare(book)
    again = prepare(book, overwrite=True)
    assert len(mapped) == 2, "the maps of the dataset that this test holds"
    del kept, again
    mapped.clear()
    prepare(book, overwrite=True)
    assert mapped == []
