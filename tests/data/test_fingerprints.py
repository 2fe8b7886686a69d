"""fingerprints.json: it is only a cache, and with it the bytes that are read at a start do not grow with the text."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import book_starts
import forked_ranks
import pytest
from book_data import (
    CACHE_NAME,
    LONG_AGO,
    TEXT,
    change_token,
    downgrade,
    replace_unnoticed,
    set_time,
)
from book_starts import BINS, NOT_THE_TEXT, REVERSED, start_training, text_of
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.data import sources, verification
from nanogpt_lite.data.preparation import open_or_prepare, prepare

book, checked = book_starts.book, book_starts.checked  # fixtures


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


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that Linux has read")
def test_bytes_read_at_a_start_do_not_grow_with_the_text(tmp_path, monkeypatch):
    def bytes_read(call: Callable[[], object]) -> int:
        before = Path("/proc/self/io").read_text(encoding="utf-8")
        call()
        after = Path("/proc/self/io").read_text(encoding="utf-8")
        return int(after.split()[1]) - int(before.split()[1])

    monkeypatch.chdir(tmp_path)

    def start(*args, **options):
        with closing(ng.training(*args, **options)) as records:
            next(records)

    options = {**TINY, "eval_iters": 1, "max_iters": 1}
    counts = {}
    for name, repeats in (("warm-up", 10), ("short", 1000), ("long", 20_000)):
        path = Path(f"{name}.txt")
        path.write_bytes(TEXT.encode() * repeats)
        set_time(path)
        ng.prepare(path)
        set_time(*(Path("data", name, file) for file in BINS))
        open_or_prepare(path)
        run = ng.train(path, out_dir=f"runs/{name}", **options).out_dir
        counts[name] = [
            bytes_read(lambda path=path: start(path, **options)),
            bytes_read(lambda run=run: start(out_dir=run, init_from="resume", max_iters=2)),
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
