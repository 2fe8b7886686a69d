"""Prepared folders hold, byte for byte, what nanoGPT's prepare.py writes, and are never seen half."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite import files
from nanogpt_lite.data import preparation, sources
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.preparation import prepare
from nanogpt_lite.data.sources import TextSource
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer

TEXT = "Now is the winter of our discontent – made glorious summer ☀ by this sun of York.\r\n" * 3
OTHER = TEXT.upper()
NAMES = ["manifest.json", "tokenizer.json", "train.bin", "val.bin"]


def nanogpt(text: str, dtype: type = np.uint16) -> dict[str, bytes]:
    """data/shakespeare_char/prepare.py, as it stands there."""
    chars = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(chars)}
    n = len(text)
    splits = {"train.bin": text[: int(n * 0.9)], "val.bin": text[int(n * 0.9) :]}
    return {name: np.array([stoi[c] for c in split], dtype=dtype).tobytes() for name, split in splits.items()}


def bins(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("train.bin", "val.bin")}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files these are, and when they were written."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def serve(monkeypatch: pytest.MonkeyPatch, *readings: Callable[[], Iterator[str]]) -> None:
    """Make `dataset` a text that reads differently each time."""
    passes = iter(readings)
    monkeypatch.setattr(sources, "find_source", lambda *_, **__: TextSource("text", "the text", lambda: next(passes)()))


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text in a folder of its own, which is the current folder too."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    return path


@settings(deadline=None, max_examples=50)
@example("\ufeff" + "a" * 11, 1)
@example("é" * 12, 3)  # the border between two splits inside a chunk, and characters on the borders of chunks
@example("".join(map(chr, range(300))), 7)  # ids above 255
@given(st.text(min_size=12), st.integers(1, 9))
def test_bins_equal_nanogpt_s(tmp_path_factory, text, chunk):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_bytes(text.encode())
    text = text.removeprefix("\ufeff")
    border = int(0.9 * len(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK_BYTES", chunk)
        dataset = prepare(folder / "text.txt", tokenizer="char", out_dir=folder / "char")
        octets = prepare(folder / "text.txt", tokenizer="byte", out_dir=folder / "byte")
    assert bins(folder / "char") == nanogpt(text)
    assert dataset.tokenizer.to_json() == {"type": "char", "chars": "".join(sorted(set(text)))}
    assert dataset.tokenizer.decode(dataset.train) == text[:border]
    assert dataset.tokenizer.decode(dataset.val) == text[border:]
    # bytes are split at the same character
    assert octets.train.astype(np.uint8).tobytes() == text[:border].encode()
    assert octets.val.astype(np.uint8).tobytes() == text[border:].encode()
    assert {octets.train.dtype.name, octets.val.dtype.name} == {"uint16"}


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_the_manifest_tells_what_is_there(book, tokenizer):
    dataset = prepare(book, tokenizer=tokenizer)
    size = 2  # bytes of a uint16
    octets = bins(dataset.path)
    assert names(dataset.path) == NAMES
    assert json.loads((dataset.path / "manifest.json").read_text()) == {
        "complete": True,
        "tokenizer": tokenizer,
        "source": str(book),
        "sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
        "characters": len(TEXT),
        "train_share": 0.9,
        "vocab_size": len(set(TEXT)) if tokenizer == "char" else 256,
        "dtype": "uint16",
        "train_tokens": len(octets["train.bin"]) // size,
        "val_tokens": len(octets["val.bin"]) // size,
    }
    assert dataset.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert dataset.name == "book"
    assert f"{len(dataset.train)} train and {len(dataset.val)} val tokens" in repr(dataset)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0] = 0


def test_more_than_65536_symbols_are_written_as_uint32(tmp_path):
    points = [*range(0x20, 0xD800), *range(0xE000, 0x11000)]
    for count, dtype in ((65536, np.uint16), (65537, np.uint32)):
        text = "".join(map(chr, points[:count])) + "again"
        path = tmp_path / f"{count}.txt"
        path.write_bytes(text.encode())
        dataset = prepare(path, out_dir=tmp_path / f"data-{count}")
        assert bins(dataset.path) == nanogpt(text, dtype)
        assert dataset.train.dtype == dataset.val.dtype == dtype
        assert dataset.tokenizer.decode(dataset.val) == text[int(0.9 * len(text)) :]


def test_a_second_time_nothing_is_written(book):
    first = prepare(book)
    before = stamps(first.path)
    for again in (prepare(book), prepare(book, tokenizer="char"), prepare(first.path), prepare("book")):
        assert stamps(first.path) == before
        assert repr(again) == repr(first).replace(str(first.path), str(again.path))
        assert np.array_equal(again.train, first.train)


def test_another_text_or_tokenizer_is_written_anew(book):
    folder = prepare(book).path
    for text in (TEXT[::-1], OTHER):  # with the same characters, and with others
        book.write_bytes(text.encode())
        assert prepare(book).path == folder
        assert bins(folder) == nanogpt(text)
    assert prepare(book, tokenizer="byte").tokenizer.vocab_size == 256
    assert (folder / "val.bin").stat().st_size == 2 * len(OTHER[int(0.9 * len(OTHER)) :].encode())
    book.write_bytes(TEXT.encode())
    assert prepare(book, tokenizer="auto").tokenizer.vocab_size == 256  # as it was prepared
    assert prepare(book, tokenizer="char").tokenizer.vocab_size == len(set(TEXT))
    assert bins(folder) == nanogpt(TEXT)


def test_overwrite_writes_again_what_seems_unchanged(book):
    folder = prepare(book).path
    damaged = np.frombuffer(nanogpt(TEXT)["train.bin"], "<u2")[::-1].tobytes()  # every symbol is still there
    (folder / "train.bin").write_bytes(damaged)
    prepare(book)
    assert bins(folder)["train.bin"] == damaged
    prepare(book, overwrite=True)
    assert bins(folder) == nanogpt(TEXT)


@pytest.mark.parametrize("name", ["book", "data/book", Path("data/book")])
def test_a_prepared_folder_needs_no_text(book, name):
    prepare(book)
    book.unlink()
    opened = prepare(name)
    assert opened.tokenizer.decode([*opened.train, *opened.val]) == TEXT
    assert prepare(name, tokenizer="char").path == prepare(name, tokenizer=opened.tokenizer).path == opened.path
    for other in ("byte", ByteTokenizer(), CharTokenizer("ab")):
        with pytest.raises(UserError, match="prepared with another tokenizer") as caught:
            prepare(name, tokenizer=other)
        assert "give the text itself" in str(caught.value)


def test_a_given_tokenizer_is_used_as_it_is(book):
    chars = "".join(sorted(set(TEXT), reverse=True)) + "ß"
    dataset = prepare(book, tokenizer=CharTokenizer(chars))
    assert dataset.train.tolist() == [chars.index(c) for c in TEXT[: int(0.9 * len(TEXT))]]
    with pytest.raises(UserError, match="tokenizer='chars' is an invalid value: .* auto, char, byte, gpt2, or bpe-"):
        prepare(book, tokenizer="chars")


def test_another_text_than_was_trained_on_is_refused(book):
    right, wrong = hashlib.sha256(TEXT.encode()).hexdigest(), hashlib.sha256(OTHER.encode()).hexdigest()
    for dataset in (book, "data/book"):  # the text, and the folder prepared from it
        assert prepare(dataset, sha256=right).sha256 == right
        before = stamps(book.parent / "data" / "book")
        with pytest.raises(UserError, match="is another text than the one that was trained on"):
            prepare(dataset, sha256=wrong)
        assert stamps(book.parent / "data" / "book") == before


@pytest.mark.parametrize("chunk", [1, 5, 2**22])
@pytest.mark.parametrize("unknown", ["Y", "☀", "\n"])  # in the train split; in both; in the val split
def test_a_character_that_a_given_tokenizer_lacks_is_found_in_the_text(book, monkeypatch, chunk, unknown):
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk)
    text = TEXT.replace("\n", "") + "\nend"
    book.write_bytes(text.encode())
    with pytest.raises(UserError, match=rf"book\.txt has .* at position {text.index(unknown)}, "):
        prepare(book, tokenizer=CharTokenizer("".join(set(text) - {unknown})))
    assert names(book.parent / "data" / "book") == []


@pytest.mark.parametrize("length", range(13))
def test_a_text_is_long_enough_from_11_characters_on(book, length):
    book.write_bytes(("é" * length).encode())
    if length >= 11:
        dataset = prepare(book)
        assert len(dataset.train) == int(0.9 * length)
        assert len(dataset.val) >= 2  # one token and its target
        return
    with pytest.raises(UserError, match=f"has {length} characters; at least 11 are needed"):
        prepare(book)
    assert names(book.parent) == ["book.txt"]


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_somebody_else_s_data_is_left_untouched(book, name):
    folder = book.parent / "data" / "book"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"precious")
    before = stamps(folder)
    with pytest.raises(UserError, match=f"{name} holds other data, which this program did not write"):
        prepare(book)
    assert stamps(folder) == before
    assert (folder / name).read_bytes() == b"precious"
    assert prepare(book, out_dir="elsewhere").path == Path("elsewhere")  # the remedy


def test_nanogpt_s_own_data_is_adopted(book):
    folder = book.parent / "data" / "book"
    folder.mkdir(parents=True)
    for name, octets in nanogpt(TEXT).items():
        (folder / name).write_bytes(octets)
    (folder / "meta.pkl").write_bytes(b"nanoGPT's")
    dataset = prepare(book)
    assert bins(folder) == nanogpt(TEXT)
    assert dataset.tokenizer.decode(dataset.val) == TEXT[int(0.9 * len(TEXT)) :]
    assert names(folder) == sorted([*NAMES, "meta.pkl"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("old", [False, True])
def test_an_end_in_the_middle_of_the_text_leaves_what_was_there(book, monkeypatch, error, old):
    folder = book.parent / "data" / "text"
    if old:
        prepare(book, out_dir=folder)
    before = stamps(folder) if old else {}

    def broken() -> Iterator[str]:
        yield OTHER[:200]
        raise error

    serve(monkeypatch, lambda: iter([OTHER]), broken)
    with pytest.raises(error):
        prepare(book, out_dir=folder)
    assert (stamps(folder) if old else {}) == before
    assert names(folder) == (NAMES if old else [])


@pytest.mark.parametrize("old", [False, True])
def test_an_end_at_any_step_of_the_writing_is_never_seen_as_prepared(book, monkeypatch, old):
    """Killed at the n-th flush or rename, for every n: the folder reads as the old or the new text, or as neither."""
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

    seen = set()
    for number in range(1, 100):
        folder = book.parent / f"data-{number}"
        if old:
            prepare(book, out_dir=folder)
        book.write_bytes(OTHER.encode())
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
        assert set(names(folder)) <= set(NAMES)  # no temporary files
        try:
            opened = prepare(folder)
            text = opened.tokenizer.decode([*opened.train, *opened.val])
        except UserError:
            text = "none"
        seen.add(text)
        assert text in ({TEXT, OTHER, "none"} if old else {OTHER, "none"})
        assert bins(prepare(book, out_dir=folder).path) == nanogpt(OTHER)  # the next call mends it
        book.write_bytes(TEXT.encode())
        if finished:
            assert text == OTHER
            break
    assert number > 8
    assert seen == ({TEXT, OTHER, "none"} if old else {OTHER, "none"})


def test_a_folder_that_is_not_complete_is_refused_and_prepared_again(book):
    folder = prepare(book).path
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (folder / "val.bin").write_bytes(b"half")
    with pytest.raises(UserError, match="was not prepared to the end"):
        prepare(folder)
    prepare(book)
    assert bins(folder) == nanogpt(TEXT)
    assert prepare(folder).sha256 == manifest["sha256"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lost", [1, 2, 10, None])
def test_a_damaged_folder_is_noticed(book, name, lost):
    """A file cut short by some bytes, or lost."""
    path = prepare(book).path / name
    octets = path.read_bytes()
    path.unlink()
    if lost:
        path.write_bytes(octets[:-lost])
    if name.endswith(".json") and lost == 1:
        assert prepare(path.parent).path == path.parent  # that was the newline at the end
        return
    with pytest.raises(UserError):
        prepare(path.parent)
    if name != "manifest.json" or lost:  # without any manifest it could be somebody else's, but it is equal
        assert bins(prepare(book).path) == nanogpt(TEXT)


@pytest.mark.parametrize("second", [TEXT + "!", TEXT[:-1], TEXT.replace("sun", "son"), TEXT[::-1]])
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_text_that_changes_while_it_is_read_is_a_fault_of_the_world(book, monkeypatch, second, tokenizer):
    serve(monkeypatch, lambda: iter([TEXT]), lambda: iter([second]))
    with pytest.raises(ExternalError, match="the text changed while it was read"):
        prepare("text", tokenizer=tokenizer)
    assert names(book.parent / "data" / "text") == []


def test_reports_add_up(book, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 16)
    reports: list[tuple[str, int, int | None]] = []
    prepare(book, report=lambda *report: reports.append(report))
    octets = len(TEXT.encode())
    for step, total in (("read", None), ("encode", octets)):
        done = [(done, all_) for what, done, all_ in reports if what == step]
        assert len(done) > octets // 16
        assert done == sorted(done)
        assert done[-1] == (octets, total)
    assert [what for what, *_ in reports] == sorted((what for what, *_ in reports), reverse=True)  # read, then encode


def test_a_file_whose_name_is_not_utf8(book):
    path = os.fsdecode(os.fsencode(book.parent) + b"/caf\xe9.txt")
    try:
        Path(path).write_text(TEXT, newline="")
    except OSError:
        pytest.skip("this file system has no such names")
    assert bins(prepare(path, out_dir="out").path) == nanogpt(TEXT)


def test_python_docs_need_nothing(book):
    from pydoc_data.topics import topics

    dataset = prepare("python_docs")
    assert bins(dataset.path) == nanogpt("\n".join(topics[name] for name in sorted(topics)))
    assert isinstance(dataset, Dataset)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's high-water mark of memory")
def test_memory_is_bounded_however_long_the_text(tmp_path):
    (tmp_path / "long.txt").write_bytes(("Ach – ein Ärgernis! 麻煩 " * 64 + "\n").encode() * 21_000)
    code = """
import pathlib, re
from nanogpt_lite.data import preparation
from nanogpt_lite.data import verification
def most(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
before = most()
verification.verify_checksum(preparation.prepare("long.txt"))
verification.verify_checksum(preparation.prepare("long.txt"))
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert (tmp_path / "long.txt").stat().st_size > 40e6
    assert float(done.stdout) < 60  # MiB; the text as str is about as large, its ids and code points each are


def test_a_file_is_no_end_of_a_token(tmp_path):
    """The tokens of a folder are those of its files as one text."""
    tokenizers = pytest.importorskip("nanogpt_lite.tokenizers.bpe")
    pytest.importorskip("tokenizers")
    (tmp_path / "texts").mkdir()
    for number in range(8):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"\n  \n {number} green bottles\n\n" * 9)
    whole = "\n".join(path.read_text() for path in sorted((tmp_path / "texts").iterdir()))
    tokenizer = tokenizers.train_bpe("bpe-290", [whole], 290)
    data = prepare(tmp_path / "texts", tokenizer=tokenizer, out_dir=tmp_path / "data")
    border = int(len(whole) * 0.9)
    assert data.train.tolist() == tokenizer.encode(whole[:border]).tolist()
    assert data.val.tolist() == tokenizer.encode(whole[border:]).tolist()


def test_data_that_another_program_changes_meanwhile_is_told_of(text_file, monkeypatch):
    write = preparation.write_dataset

    def disturbed(folder, *arguments):
        write(folder, *arguments)
        (folder / "train.bin").write_bytes(b"")

    monkeypatch.setattr(preparation, "write_dataset", disturbed)
    with pytest.raises(ExternalError, match="changed while it was written"):
        preparation.prepare("bottles.txt")


def test_what_a_killed_preparation_left_behind_goes_with_the_next(text_file):
    Path("data/bottles").mkdir(parents=True)
    for name in ("train.bin", "val.bin", "tokenizer.json", "manifest.json"):
        Path(f"data/bottles/.{name}.123.tmp").write_bytes(b"half")
    prepare("bottles.txt")
    assert sorted(path.name for path in Path("data/bottles").iterdir()) == [
        "manifest.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]
