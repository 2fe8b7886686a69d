"""A text that has not changed is not read again, and one that has is.

The oracle: files whose content is replaced behind the program's back, with their size and time of modification kept. A
program that accepts them has not read them. A program that refuses them, or prepares them anew, has.
"""

import os
import time
from pathlib import Path

import book_starts
import pytest
from book_data import (
    LONG_AGO,
    TEXT,
    downgrade,
    nanogpt_bins,
    read_bins,
    replace_unnoticed,
    set_time,
)
from book_starts import REVERSED, start_training, text_of

from nanogpt_lite.cli.main import main
from nanogpt_lite.data.preparation import open_or_prepare, prepare
from nanogpt_lite.tokenizers.char import CharTokenizer

book, checked = book_starts.book, book_starts.checked  # fixtures


def test_text_that_has_not_changed_is_not_read(book):
    folder = prepare(book).path
    replace_unnoticed(book, REVERSED.encode())
    assert text_of(open_or_prepare(book)) == TEXT
    start_training()
    assert read_bins(folder) == nanogpt_bins(TEXT)


@pytest.mark.parametrize(
    "call",
    [prepare, lambda _: start_training(verify=True), lambda _: main(["prepare", "--dataset", "book.txt"])],
    ids=["ng.prepare", "verify=True", "the command prepare"],
)
def test_text_that_seems_unchanged_is_read_on_request(book, call):
    folder = prepare(book).path
    replace_unnoticed(book, REVERSED.encode())
    call(book)
    assert read_bins(folder) == nanogpt_bins(REVERSED)
    assert text_of(open_or_prepare(book)) == REVERSED


@pytest.mark.parametrize("content", [REVERSED, TEXT + "!", TEXT[1:]])
@pytest.mark.parametrize("modified_at", [LONG_AGO - 1, LONG_AGO + 1])
def test_text_with_another_time_is_read(book, content, modified_at):
    prepare(book)
    book.write_bytes(content.encode())
    set_time(book, ns=modified_at)
    assert text_of(open_or_prepare(book)) == content


def test_text_of_another_size_is_read(book):
    prepare(book)
    book.write_bytes(TEXT[1:].encode())
    set_time(book)
    assert text_of(open_or_prepare(book)) == TEXT[1:]


def test_touched_text_is_read_once(book):
    folder = prepare(book).path
    set_time(book, ns=LONG_AGO + 1)
    assert text_of(open_or_prepare(book)) == TEXT
    replace_unnoticed(book, REVERSED.encode())
    assert text_of(open_or_prepare(book)) == TEXT
    assert read_bins(folder) == nanogpt_bins(TEXT)


def test_text_modified_just_before_it_was_read_is_read_again(book):
    """The clock of a file system may be so coarse that a second change has the time of the first one."""
    now = time.time_ns()
    set_time(book, ns=now - 10**9)
    prepare(book)
    replace_unnoticed(book, REVERSED.encode())
    assert text_of(open_or_prepare(book)) == REVERSED


@pytest.mark.parametrize("dataset", ["texts", "texts/*.txt"])
def test_added_removed_and_renamed_files_are_noticed(book, dataset):
    folder = Path("texts")
    folder.mkdir()

    def write(name: str, text: str) -> None:
        (folder / name).write_text(text)
        set_time(folder / name)

    def expect(*names: str) -> None:
        joined = "\n".join((folder / name).read_text() for name in names)
        assert text_of(open_or_prepare(dataset)) == joined

    write("a.txt", "first part")
    write("b.txt", "other part")
    expect("a.txt", "b.txt")
    write("c.txt", "third part")
    expect("a.txt", "b.txt", "c.txt")
    (folder / "a.txt").unlink()
    expect("b.txt", "c.txt")
    (folder / "b.txt").rename(folder / "d.txt")
    expect("c.txt", "d.txt")
    (folder / "c.txt").rename(folder / "x")
    (folder / "d.txt").rename(folder / "c.txt")
    (folder / "x").rename(folder / "d.txt")  # two files of one size and time are swapped
    expect("c.txt", "d.txt")


def test_other_file_of_the_same_size_and_time_is_noticed(book):
    """The same relative path in another folder."""
    prepared = prepare("book.txt", out_dir=book.parent / "out").path
    elsewhere = book.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "book.txt").write_bytes(REVERSED.encode())
    set_time(elsewhere / "book.txt")
    os.chdir(elsewhere)
    assert text_of(open_or_prepare("book.txt", out_dir=prepared)) == REVERSED


@pytest.mark.parametrize("version", ["0.1", "now"])
def test_char_tokenizer_with_more_characters_than_the_text_is_not_taken_for_its_own(book, version):
    larger = CharTokenizer("".join(sorted(set(TEXT))) + "ß")
    folder = prepare(book, tokenizer=larger, out_dir="data/book").path  # as an earlier version wrote it
    if version == "0.1":
        downgrade(folder)
    assert open_or_prepare(book, tokenizer=larger).tokenizer.vocab_size == larger.vocab_size
    for _ in range(2):
        assert open_or_prepare(book, tokenizer="char").tokenizer.vocab_size == larger.vocab_size - 1
        assert read_bins(folder) == nanogpt_bins(TEXT)
