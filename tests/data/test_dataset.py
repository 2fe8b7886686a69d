"""Dataset folders: their files, what is never replaced, and what a crash or damage leaves."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from book_data import (
    FILE_NAMES,
    OTHER_TEXT,
    SET_NAMES,
    TEXT,
    change_token,
    file_names,
    fingerprints,
    nanogpt_bins,
    read_bins,
    replace_source,
    replace_unnoticed,
    set_time,
    write_book,
)

from nanogpt_lite import files
from nanogpt_lite.data import dataset, preparation
from nanogpt_lite.data.dataset import write_dataset
from nanogpt_lite.data.preparation import open_or_prepare, prepare
from nanogpt_lite.errors import ExternalError, UserError


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_book(tmp_path, monkeypatch)


def json_sha256(value: object) -> str:
    """Of the JSON with sorted keys, ASCII only and without spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_manifest_describes_the_dataset(book, tokenizer):
    dataset = prepare(book, tokenizer=tokenizer)
    size = 2  # bytes of a uint16
    contents = read_bins(dataset.path)
    assert file_names(dataset.path) == FILE_NAMES
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    assert manifest == {
        "complete": True,
        "tokenizer": tokenizer,
        "source": str(book),
        "sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
        "characters": len(TEXT),
        "train_share": 0.9,
        "vocab_size": len(set(TEXT)) if tokenizer == "char" else 256,
        "dtype": "uint16",
        "train_tokens": len(contents["train.bin"]) // size,
        "val_tokens": len(contents["val.bin"]) // size,
        "distinct_characters": len(set(TEXT)),
        "val_bytes": len(TEXT[int(0.9 * len(TEXT)) :].encode()),
        "checksums": {
            **{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            "tokenizer": json_sha256(json.loads((dataset.path / "tokenizer.json").read_text())),
            "manifest": json_sha256({k: v for k, v in manifest.items() if k not in ("complete", "checksums")}),
        },
    }
    assert dataset.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert dataset.name == ("book" if tokenizer == "char" else "book-byte")
    assert f"{len(dataset.train)} train and {len(dataset.val)} val tokens" in repr(dataset)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0] = 0


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("version", ["0.1", "0.2", "now"])
def test_size_of_the_val_text_is_known_of_data_of_each_version(book, monkeypatch, tokenizer, version):
    """The ids of earlier versions are decoded: chunks of 2 tokens cut a character of 3 bytes."""
    monkeypatch.setattr(dataset, "CHUNK_TOKENS", 2)
    folder = prepare(book, tokenizer=tokenizer).path
    manifest = json.loads((folder / "manifest.json").read_text())
    if version != "now":
        del manifest["val_bytes"], manifest["checksums"]["manifest"]
        body = {k: v for k, v in manifest.items() if k not in ("complete", "checksums")}
        manifest["checksums"]["manifest"] = json_sha256(body)
    if version == "0.1":
        del manifest["distinct_characters"], manifest["checksums"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = prepare(folder)
    val_text = TEXT[int(0.9 * len(TEXT)) :]
    expected = len(val_text), len(val_text.encode())
    assert (opened.val_characters, opened.val_bytes) == (expected if version == "now" else (expected[0], None))
    assert dataset.val_text_size(opened) == expected
    assert expected[1] > expected[0]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_files_of_other_programs_are_not_replaced(book, name):
    content = b'{"precious": 1}' if name.endswith(".json") else b"precious"
    folder = book.parent / "data" / "book"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    before = fingerprints(folder)
    with pytest.raises(UserError, match=f"{name} holds other data, which this program did not write"):
        prepare(book)
    assert fingerprints(folder) == before
    assert (folder / name).read_bytes() == content
    assert prepare(book, out_dir="elsewhere").path == Path("elsewhere")  # the remedy


def test_equal_data_of_nanogpt_is_adopted(book):
    folder = book.parent / "data" / "book"
    folder.mkdir(parents=True)
    for name, content in nanogpt_bins(TEXT).items():
        (folder / name).write_bytes(content)
    (folder / "meta.pkl").write_bytes(b"nanoGPT's")
    dataset = prepare(book)
    assert read_bins(folder) == nanogpt_bins(TEXT)
    assert dataset.tokenizer.decode(dataset.val) == TEXT[int(0.9 * len(TEXT)) :]
    assert file_names(folder) == sorted([*FILE_NAMES, "meta.pkl"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("old", [False, True])
def test_error_while_reading_the_text_leaves_the_folder_unchanged(book, monkeypatch, error, old):
    folder = book.parent / "data" / "text"
    if old:
        prepare(book, out_dir=folder)
    before = fingerprints(folder) if old else {}

    def broken() -> Iterator[str]:
        yield OTHER_TEXT[:200]
        raise error

    replace_source(monkeypatch, lambda: iter([OTHER_TEXT]), broken)
    with pytest.raises(error):
        prepare(book, out_dir=folder)
    assert (fingerprints(folder) if old else {}) == before
    assert file_names(folder) == (FILE_NAMES if old else [])


@pytest.mark.parametrize("old", [False, True])
def test_kill_at_any_step_of_writing_never_leaves_a_mixed_dataset(book, monkeypatch, old):
    """For every n: killed at the n-th flush or rename, the folder holds the old dataset, the new one, or none."""
    flush, replace = files.sync_to_disk, Path.replace
    count = 0

    def killed(action: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object) -> object:
            nonlocal count
            count -= 1
            if count == 0:
                raise KeyboardInterrupt
            return action(*arguments)

        return step

    outcomes = set()
    for number in range(1, 100):
        folder = book.parent / f"data-{number}"
        if old:
            prepare(book, out_dir=folder)
        book.write_bytes(OTHER_TEXT.encode())
        count = number
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_to_disk", killed(flush))
            patch.setattr(Path, "replace", killed(replace))
            try:
                prepare(book, out_dir=folder)
            except KeyboardInterrupt:
                finished = False
            else:
                finished = True
        assert set(file_names(folder)) <= set(FILE_NAMES)  # no temporary files
        try:
            opened = open_or_prepare(folder)  # which reads only what it has to
            text = opened.tokenizer.decode([*opened.train, *opened.val])
        except UserError:
            text = "none"
        outcomes.add(text)
        assert text in ({TEXT, OTHER_TEXT, "none"} if old else {OTHER_TEXT, "none"})
        assert read_bins(prepare(book, out_dir=folder).path) == nanogpt_bins(OTHER_TEXT)  # the next call repairs it
        book.write_bytes(TEXT.encode())
        if finished:
            assert text == OTHER_TEXT
            break
    assert number > 8
    assert outcomes == ({TEXT, OTHER_TEXT, "none"} if old else {OTHER_TEXT, "none"})


def test_incomplete_dataset_is_refused_and_written_again(book):
    folder = prepare(book).path
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (folder / "val.bin").write_bytes(b"half")
    with pytest.raises(UserError, match="is incomplete or damaged"):
        prepare(folder)
    prepare(book)
    assert read_bins(folder) == nanogpt_bins(TEXT)
    assert prepare(folder).sha256 == manifest["sha256"]


def test_files_do_not_depend_on_place_and_time(book):
    """Except for the cache, and for the path of the text in the manifest."""
    first, second = (prepare(book, out_dir=book.parent / name).path for name in ("one", "two"))
    for name in SET_NAMES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("name", SET_NAMES)
@pytest.mark.parametrize("lost", [1, 2, 10, None])
def test_damaged_dataset_is_refused_and_written_again(book, name, lost):
    """One file has lost its last bytes, or is missing."""
    path = prepare(book).path / name
    content = path.read_bytes()
    path.unlink()
    if lost:
        path.write_bytes(content[:-lost])
    if name.endswith(".json") and lost == 1:
        assert prepare(path.parent).path == path.parent  # only the final newline is lost
        return
    with pytest.raises(UserError):
        prepare(path.parent)
    if name != "manifest.json" or lost:  # without a manifest, the equal files are adopted
        assert read_bins(prepare(book).path) == nanogpt_bins(TEXT)


def test_dataset_replaced_while_it_is_written_is_an_external_error(text_file, monkeypatch):
    def write_and_truncate(folder, **arguments):
        write_dataset(folder, **arguments)
        (folder / "train.bin").write_bytes(b"")

    monkeypatch.setattr(preparation, "write_dataset", write_and_truncate)
    with pytest.raises(ExternalError, match="changed while it was written"):
        preparation.prepare("bottles.txt")


def test_temporary_files_of_a_killed_process_are_removed(text_file):
    Path("data/bottles").mkdir(parents=True)
    for name in FILE_NAMES:
        Path(f"data/bottles/.{name}.123.tmp").write_bytes(b"half")
    prepare("bottles.txt")
    assert file_names(Path("data/bottles")) == FILE_NAMES


def test_a_bug_in_this_program_is_not_reported_as_damage(book, monkeypatch):
    prepared = prepare(book)

    def break_down(content):
        raise TypeError("a bug")

    monkeypatch.setattr(dataset, "tokenizer_from_json", break_down)
    for source in (book, prepared.path):
        with pytest.raises(TypeError, match="a bug"):
            prepare(source)


def test_data_that_may_not_be_read_is_an_os_error_and_not_prepared_again(book, monkeypatch):
    folder = prepare(book).path
    before = fingerprints(folder)

    def deny(self, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(type(folder), "read_text", deny)  # not chmod: root may read a file of mode 0
    for source in (book, folder):
        with pytest.raises(PermissionError, match=r"manifest\.json"):
            prepare(source)
    assert fingerprints(folder) == before


def test_token_ids_that_have_the_time_of_their_writing_are_read_again(book, monkeypatch):
    """If the clock has not gone on, a later change could have the same time."""
    write_json = files.write_json

    def write_within_the_same_tick(path, value):
        write_json(path, value)
        if path.name == "tokenizer.json":
            (temporary,) = path.parent.glob(".train.bin.*.tmp")
            set_time(path, ns=temporary.stat().st_mtime_ns)

    monkeypatch.setattr(files, "write_json", write_within_the_same_tick)
    path = prepare(book).path / "train.bin"
    replace_unnoticed(path, change_token(path.read_bytes()))
    with pytest.raises(UserError, match="are not those of the text"):
        open_or_prepare(book)
