"""Encoded splits against nanoGPT's prepare.py, and in bounded memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from book_data import TEXT, file_names, nanogpt_bins, read_bins, replace_source, write_book
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite.data import sources
from nanogpt_lite.data.preparation import prepare
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers import bpe
from nanogpt_lite.tokenizers.char import CharTokenizer


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_book(tmp_path, monkeypatch)


@settings(deadline=None, max_examples=50)
@example("\ufeff" + "a" * 11, 1)
@example("é" * 12, 3)  # the split point lies inside a chunk, and characters cross the ends of chunks
@example("".join(map(chr, range(300))), 7)  # ids above 255
@given(st.text(min_size=12), st.integers(1, 9))
def test_bins_equal_those_of_nanogpt_bins(tmp_path_factory, text, chunk):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_bytes(text.encode())
    text = text.removeprefix("\ufeff")
    split_at = int(0.9 * len(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK_BYTES", chunk)
        dataset = prepare(folder / "text.txt", tokenizer="char", out_dir=folder / "char")
        as_bytes = prepare(folder / "text.txt", tokenizer="byte", out_dir=folder / "byte")
    assert read_bins(folder / "char") == nanogpt_bins(text)
    assert dataset.tokenizer.to_json() == {"type": "char", "chars": "".join(sorted(set(text)))}
    assert dataset.tokenizer.decode(dataset.train) == text[:split_at]
    assert dataset.tokenizer.decode(dataset.val) == text[split_at:]
    for prepared in (dataset, as_bytes):
        assert (prepared.val_characters, prepared.val_bytes) == (len(text[split_at:]), len(text[split_at:].encode()))
    # the byte tokenizer splits the text at the same character
    assert as_bytes.train.astype(np.uint8).tobytes() == text[:split_at].encode()
    assert as_bytes.val.astype(np.uint8).tobytes() == text[split_at:].encode()
    assert {as_bytes.train.dtype.name, as_bytes.val.dtype.name} == {"uint16"}


def test_more_than_65536_tokens_are_written_as_uint32(tmp_path):
    points = [*range(0x20, 0xD800), *range(0xE000, 0x11000)]
    for count, dtype in ((65536, np.uint16), (65537, np.uint32)):
        text = "".join(map(chr, points[:count])) + "again"
        path = tmp_path / f"{count}.txt"
        path.write_bytes(text.encode())
        dataset = prepare(path, out_dir=tmp_path / f"data-{count}")
        assert read_bins(dataset.path) == nanogpt_bins(text, dtype)
        assert dataset.train.dtype == dataset.val.dtype == dtype
        assert dataset.tokenizer.decode(dataset.val) == text[int(0.9 * len(text)) :]


@pytest.mark.parametrize("chunk", [1, 5, 2**22])
@pytest.mark.parametrize("unknown", ["Y", "☀", "\n"])  # in the train split; in both; in the val split
def test_unknown_character_error_gives_its_position_in_the_text(book, monkeypatch, chunk, unknown):
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk)
    text = TEXT.replace("\n", "") + "\nend"
    book.write_bytes(text.encode())
    with pytest.raises(UserError, match=rf"book\.txt has .* at position {text.index(unknown)}, "):
        prepare(book, tokenizer=CharTokenizer("".join(set(text) - {unknown})))
    assert file_names(book.parent / "data" / "book") == []


@pytest.mark.parametrize("length", range(13))
def test_text_needs_at_least_11_characters(book, length):
    book.write_bytes(("é" * length).encode())
    if length >= 11:
        dataset = prepare(book)
        assert len(dataset.train) == int(0.9 * length)
        assert len(dataset.val) >= 2  # one token and its target
        return
    with pytest.raises(UserError, match=f"has {length} characters; at least 11 are needed"):
        prepare(book)
    assert file_names(book.parent) == ["book.txt"]


@pytest.mark.parametrize("second", [TEXT + "!", TEXT[:-1], TEXT.replace("sun", "son"), TEXT[::-1]])
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_text_that_changes_while_it_is_read_is_an_external_error(book, monkeypatch, second, tokenizer):
    replace_source(monkeypatch, lambda: iter([TEXT]), lambda: iter([second]))
    with pytest.raises(ExternalError, match="the text changed while it was read"):
        prepare("text", tokenizer=tokenizer)
    assert file_names(book.parent / "data" / "text") == []


def test_progress_is_reported_in_bytes(book, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 16)
    reports: list[tuple[str, int, int | None]] = []
    prepare(book, report=lambda *report: reports.append(report))
    n_bytes = len(TEXT.encode())
    for task, total in (("read", None), ("encode", n_bytes)):
        done = [(done, all_) for what, done, all_ in reports if what == task]
        assert len(done) > n_bytes // 16
        assert done == sorted(done)
        assert done[-1] == (n_bytes, total)
    assert [what for what, *_ in reports] == sorted((what for what, *_ in reports), reverse=True)  # read, then encode


def test_bpe_tokens_span_the_files_of_a_folder(tmp_path):
    """The tokens of a folder are those of its files joined to one text."""
    pytest.importorskip("tokenizers")
    (tmp_path / "texts").mkdir()
    for number in range(8):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"\n  \n {number} green bottles\n\n" * 9)
    whole = "\n".join(path.read_text() for path in sorted((tmp_path / "texts").iterdir()))
    tokenizer = bpe.train_bpe("bpe-290", [whole], 290)
    data = prepare(tmp_path / "texts", tokenizer=tokenizer, out_dir=tmp_path / "data")
    split_at = int(len(whole) * 0.9)
    assert data.train.tolist() == tokenizer.encode(whole[:split_at]).tolist()
    assert data.val.tolist() == tokenizer.encode(whole[split_at:]).tolist()


@pytest.mark.linux("reads the peak memory in /proc/self/status")
def test_memory_does_not_grow_with_the_length_of_the_text(tmp_path):
    (tmp_path / "long.txt").write_bytes(("Ach – ein Ärgernis! 麻煩 " * 64 + "\n").encode() * 21_000)
    code = """
import pathlib, re
from nanogpt_lite.data import preparation
from nanogpt_lite.data import verification
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
preparation.prepare("long.txt")
verification.verify_checksum(preparation.prepare("long.txt"))
manifest = pathlib.Path("data/long/manifest.json")
manifest.write_text(re.sub(r',\\s*"checksums": {.*?}', "", manifest.read_text(), flags=re.DOTALL))  # as of version 0.1
assert "checksums" not in manifest.read_text()
verification.verify_checksum(preparation.prepare("long.txt"))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert (tmp_path / "long.txt").stat().st_size > 40e6
    assert float(done.stdout) < 60  # MiB; the text as str, its ids and its code points would each take about as much
