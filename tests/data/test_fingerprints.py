"""What is read again when a prepared text is used: nothing that has not changed, and all that has.

The oracle: files whose content is replaced behind the program's back, with their size and time of modification kept. A
program that accepts them has not read them. A program that refuses them, or prepares them anew, has.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_ranks
import numpy as np
import pytest
from book_data import (
    CACHE_NAME,
    LONG_AGO,
    TEXT,
    change_token,
    downgrade,
    nanogpt_bins,
    read_bins,
    replace_unnoticed,
    set_time,
    write_book,
)
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.data import sources, verification
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.preparation import open_or_prepare, prepare
from nanogpt_lite.interop import conversion
from nanogpt_lite.tokenizers.char import CharTokenizer

REVERSED = TEXT[::-1]  # the same size and the same characters
BINS = ["train.bin", "val.bin"]
NOT_THE_TEXT = "are not those of the text that was prepared"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """book.txt, which was last modified long ago."""
    path = write_book(tmp_path, monkeypatch)
    set_time(path)
    return path


@pytest.fixture
def checked(book: Path) -> Path:
    """The folder of the prepared book, whose .bin files were checked long after they were written."""
    folder = prepare(book).path
    set_time(*(folder / name for name in BINS))
    assert open_or_prepare(book).path == folder
    return folder


def text_of(dataset: Dataset) -> str:
    return dataset.tokenizer.decode([*dataset.train, *dataset.val])


def start_training(**options: Any) -> None:
    """Take the first step of a training."""
    ng.train("book.txt", **{**TINY, "max_iters": 1, "out_dir": "run", "overwrite": True, **options})


def start_resuming(**options: Any) -> None:
    ng.train(out_dir="run", init_from="resume", max_iters=2, **options)


def start_evaluating(**options: Any) -> None:
    ng.evaluate("run", **options)


STARTS = [start_training, start_resuming, start_evaluating]


# The text


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


def test_other_tokenizer_reads_the_unchanged_text(book):
    prepare(book)
    assert text_of(open_or_prepare(book, tokenizer="byte")) == TEXT
    assert open_or_prepare(book).tokenizer.vocab_size == 256
    assert open_or_prepare(book, tokenizer="char").tokenizer.vocab_size == len(set(TEXT))


@pytest.mark.parametrize("version", ["0.1", "now"])
def test_char_tokenizer_with_more_characters_than_the_text_is_not_taken_for_its_own(book, version):
    larger = CharTokenizer("".join(sorted(set(TEXT))) + "ß")
    folder = prepare(book, tokenizer=larger).path
    if version == "0.1":
        downgrade(folder)
    assert open_or_prepare(book, tokenizer=larger).tokenizer.vocab_size == larger.vocab_size
    for _ in range(2):
        assert open_or_prepare(book, tokenizer="char").tokenizer.vocab_size == larger.vocab_size - 1
        assert read_bins(folder) == nanogpt_bins(TEXT)


# The token ids


@pytest.mark.parametrize("name", BINS)
def test_token_ids_that_have_not_changed_are_not_read(checked, name):
    start_training()
    replace_unnoticed(checked / name, change_token((checked / name).read_bytes()))
    for start in STARTS:
        start()


def test_exported_token_ids_are_read_and_checked(checked):
    run = ng.train("book.txt", preset="cpu", max_iters=1, device="cpu", block_size=8, n_layer=1)
    replace_unnoticed(checked / "train.bin", change_token((checked / "train.bin").read_bytes()))
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        conversion.to_nanogpt(run, "there", dataset=True)
    assert not Path("there").exists()


@pytest.mark.parametrize("start", STARTS)
def test_token_ids_that_seem_unchanged_are_read_on_request(checked, start):
    start_training()
    for name in BINS:
        content = (checked / name).read_bytes()
        replace_unnoticed(checked / name, change_token(content))
        with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
            start(verify=True)
        for dataset in ("book.txt", "data/book"):
            with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
                ng.prepare(dataset)
            assert main(["prepare", "--dataset", dataset]) == 2
        replace_unnoticed(checked / name, content)
    start(verify=True)


def test_each_command_has_the_switch(checked, capsys):
    options = "--block_size 8 --n_layer 1 --n_head 1 --n_embd 8 --ngram 1 --batch_size 2 --max_iters 1 --device cpu"
    assert main(f"train --dataset book.txt --out_dir run {options} --verify".split()) == 0
    path = checked / "train.bin"
    replace_unnoticed(path, change_token(path.read_bytes()))
    for words in (
        f"train --dataset book.txt --out_dir other {options}",
        "train --out_dir run --init_from resume --max_iters 2",
        "eval --out_dir run",
        f"run --dataset book.txt --out_dir third --max_new_tokens 3 {options}",
    ):
        capsys.readouterr()
        assert main([*words.split(), "--verify"]) == 2, words
        assert NOT_THE_TEXT in capsys.readouterr().err
        assert main(words.split()) == 0, words


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("modified_at", [LONG_AGO - 1, LONG_AGO + 1])
def test_token_ids_with_another_time_are_read(checked, start, modified_at):
    start_training()
    for name in BINS:
        path = checked / name
        content = path.read_bytes()
        path.write_bytes(change_token(content))
        set_time(path, ns=modified_at)
        with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
            start()
        path.write_bytes(content)
        set_time(path, ns=modified_at)
    start()


def test_token_ids_changed_right_after_they_were_written_are_read(book):
    for number in range(20):
        folder = book.parent / f"data-{number}"
        path = prepare(book, out_dir=folder).path / BINS[number % 2]
        path.write_bytes(change_token(path.read_bytes()))
        with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
            open_or_prepare(book, out_dir=folder)


@pytest.mark.parametrize("copy_function", [shutil.copy2, shutil.copyfile], ids=["with the times", "without"])
def test_copied_folder_is_checked_once(checked, copy_function):
    copy = Path("copy")
    shutil.copytree(checked, copy, copy_function=copy_function)
    path = copy / "train.bin"
    content = path.read_bytes()
    replace_unnoticed(path, change_token(content))
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare(copy)
    replace_unnoticed(path, content)
    set_time(*(copy / name for name in BINS))
    assert text_of(open_or_prepare(copy)) == TEXT
    replace_unnoticed(path, change_token(content))
    open_or_prepare(copy)  # no error: it is not read again


@pytest.mark.parametrize("change", ["chars", "missing"])
def test_changed_tokenizer_is_noticed_without_reading_the_token_ids(checked, change):
    path = checked / "tokenizer.json"
    content = json.loads(path.read_text())
    content["chars"] = content["chars"][::-1] if change == "chars" else content["chars"][:-1]
    replaced = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(replaced)
    set_time(path)
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare(checked)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", "0" * 64), ("distinct_characters", 3), ("source", "x"), ("checksums", {"train.bin": ""})],
)
def test_changed_manifest_is_refused(checked, key, value):
    path = checked / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ng.UserError, match="is incomplete or damaged"):
        open_or_prepare(checked)


@pytest.mark.parametrize("id_", [len(set(TEXT)), 65535])
@pytest.mark.parametrize("start", STARTS)
def test_ids_outside_the_vocabulary_are_an_error_in_files_that_seem_unchanged(checked, id_, start):
    start_training()
    for name in BINS:
        replace_unnoticed(checked / name, np.full((checked / name).stat().st_size // 2, id_, "<u2").tobytes())
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        start()


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_data_of_version_0_1_is_checked_once(book, tokenizer):
    folder = prepare(book, tokenizer=tokenizer).path
    downgrade(folder)
    manifest, path = (folder / "manifest.json").read_bytes(), folder / "train.bin"
    content = path.read_bytes()
    path.write_bytes(change_token(content))
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare(book, tokenizer=tokenizer)
    path.write_bytes(content)
    set_time(*(folder / name for name in BINS))
    assert text_of(open_or_prepare(book, tokenizer=tokenizer)) == TEXT
    replace_unnoticed(path, change_token(content))
    open_or_prepare(book, tokenizer=tokenizer)  # no error: nothing is read again
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        prepare(folder)
    assert (folder / "manifest.json").read_bytes() == manifest


# The cache


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b"\xff\xfe",
        b'{"version": 1}',
        b'{"version": 1, "tokens": true, "text": [1, 2]}',
        b'{"version": 1, "tokens": {"train.bin": 1, "val.bin": null, "sha256": [], "tokenizer": {}}}',
        b'{"version": 2}',
        b'{"version": {}}',
        b"[" * 50_000,
        b'{"version": 1, "tokens": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        b'{"version": 1, "x": "' + b"x" * 2**22 + b'"}',
        b'{"version": 1, "x": ' + b"9" * 5000 + b"}",
        None,
    ],
)
def test_damaged_cache_is_as_if_absent(checked, book, content):
    cache = checked / CACHE_NAME
    cache.unlink()
    if content is not None:
        cache.write_bytes(content)
    for name in BINS:
        right = (checked / name).read_bytes()
        replace_unnoticed(checked / name, change_token(right))
        with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
            open_or_prepare(book)
        replace_unnoticed(checked / name, right)
    assert text_of(open_or_prepare(book)) == TEXT
    replace_unnoticed(checked / "train.bin", change_token((checked / "train.bin").read_bytes()))
    open_or_prepare(book)  # no error: the cache is whole again


def test_cache_that_cannot_be_written_is_no_error(checked, book):
    cache = checked / CACHE_NAME
    cache.unlink()
    (cache / "not empty").mkdir(
        parents=True
    )  # a folder of that name; the tests may run as root, who may write anywhere
    before = sorted(checked.rglob("*"))
    for call in (open_or_prepare, prepare):
        assert text_of(call(book)) == TEXT
    start_training()
    assert sorted(checked.rglob("*")) == before
    replace_unnoticed(checked / "train.bin", change_token((checked / "train.bin").read_bytes()))
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare(book)


def test_cache_of_an_earlier_text_says_nothing_about_the_new_one(checked, book):
    """A kill after the manifest was written, and before the cache was."""
    cache = (checked / CACHE_NAME).read_bytes()
    book.write_bytes(REVERSED.encode())
    set_time(book, ns=LONG_AGO + 1)
    prepare(book)
    (checked / CACHE_NAME).write_bytes(cache)
    set_time(book, *(checked / name for name in BINS))  # even with the old times
    assert text_of(open_or_prepare("data/book")) == REVERSED
    replace_unnoticed(checked / "train.bin", change_token((checked / "train.bin").read_bytes()))
    open_or_prepare("data/book")  # no error: checked above
    (checked / CACHE_NAME).write_bytes(cache)
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare("data/book")


def open_often(texts: list[str]) -> None:
    """Open the book, whose text and times others change, and see one text."""
    for number in range(30):
        if number % 5 == 0:
            set_time(Path("book.txt"), ns=LONG_AGO + number)
        assert text_of(open_or_prepare("book.txt")) in texts


def test_processes_that_open_a_dataset_at_once_all_get_it(checked):
    assert forked_ranks.run(3, open_often, [TEXT]) == [0, 0, 0]
    assert json.loads((checked / CACHE_NAME).read_text())["version"] == 1
    assert text_of(open_or_prepare("book.txt")) == TEXT


# What is read


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that Linux has read")
def test_bytes_read_at_a_start_do_not_grow_with_the_text(tmp_path, monkeypatch):
    def bytes_read(call: Callable[[], object]) -> int:
        before = Path("/proc/self/io").read_text(encoding="utf-8")
        call()
        after = Path("/proc/self/io").read_text(encoding="utf-8")
        return int(after.split()[1]) - int(before.split()[1])

    monkeypatch.chdir(tmp_path)
    options = {**TINY, "eval_iters": 1, "max_iters": 1}  # all evaluations read a few random windows
    counts = {}
    for name, repeats in (("warm-up", 10), ("short", 1000), ("long", 20_000)):
        path = Path(f"{name}.txt")
        path.write_bytes(TEXT.encode() * repeats)
        set_time(path)
        ng.prepare(path)
        set_time(*(Path("data", name, file) for file in BINS))
        open_or_prepare(path)
        run = f"runs/{name}"
        counts[name] = [
            bytes_read(lambda path=path, run=run: ng.train(path, out_dir=run, **options)),
            bytes_read(lambda run=run: ng.train(out_dir=run, init_from="resume", max_iters=2, eval_iters=1)),
            bytes_read(lambda path=path: open_or_prepare(path)),
        ]
    assert Path("long.txt").stat().st_size > 4e6
    for short, long in zip(counts["short"], counts["long"], strict=True):
        assert abs(long - short) < 20_000


def test_checksum_of_a_dataset_of_either_version_is_that_of_its_text(checked, book, monkeypatch):
    """The two ways to check agree: by the files, and of version 0.1 by the decoded text."""
    verification.verify_checksum(open_or_prepare(book))
    monkeypatch.setattr(sources, "CHUNK_BYTES", 7)
    downgrade(checked)
    verification.verify_checksum(open_or_prepare(book))
