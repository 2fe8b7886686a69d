"""Texts are found by name, file, folder or glob, and read in pieces: the same as Python reads them whole."""

import codecs
import os
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite.data import sources
from nanogpt_lite.errors import UserError

BOM = codecs.BOM_UTF8


def read(path) -> str:
    return "".join(sources.find_source(str(path)).pieces())


def test_newlines_are_kept_and_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(BOM + b"one\r\ntwo\rthree\n\n" + BOM + b"four")
    assert read(path) == "one\r\ntwo\rthree\n\n\ufefffour"  # only at the beginning is it a mark


@settings(deadline=None)
@example("\ufeff", 1, b"")
@example("é" * 3, 1, b"")
@example("abc\ufeff", 3, b"")  # no mark, though it begins a chunk
@example("\U0001f600", 3, b"\xf0\x9f\x98")
@given(st.text(), st.integers(1, 7), st.binary(max_size=6))
def test_any_bytes_in_any_chunks_are_read_as_python_reads_them_whole(tmp_path_factory, text, chunk, tail):
    """Or refused at the offset that Python's decoder names, wherever the borders of the chunks fall."""
    path = tmp_path_factory.getbasetemp() / "any.txt"
    data = text.encode() + tail
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK_BYTES", chunk)
        try:
            whole = data.decode("utf-8")
        except UnicodeDecodeError as error:
            with pytest.raises(UserError) as caught:
                read(path)
            place = f"byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})"
            assert str(caught.value).startswith(f"{path} is not UTF-8: {place}; convert it, ")
        else:
            assert read(path) == whole.removeprefix("\ufeff")


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe9 ", b"\xf0\x9f\x98", b"\xed\xa0\x80"])
def test_a_bad_byte_beyond_the_first_chunk(tmp_path, monkeypatch, start, bad):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 64)
    path = tmp_path / "a.txt"
    good = start + "äöü ".encode() * 50  # no divisor of the chunk: characters lie on its borders
    path.write_bytes(good + bad + b"end")
    with pytest.raises(UserError, match=rf"0x{bad[0]:02x} at offset {len(good)} "):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin1"])
def test_the_remedy_names_the_likely_encoding(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("café\n".encode(encoding))
    with pytest.raises(UserError, match=re.escape(f"iconv -f {encoding} -t utf-8 {path} > converted.txt")):
        read(path)


@pytest.fixture
def folder(tmp_path):
    """A folder with files in folders, hidden ones, and one that begins with a byte order mark."""
    contents = {"b.txt": b"B\n", "a.txt": BOM + b"A", "sub/c.txt": b"C", "sub/deep/d.md": b"", "z": "ž".encode()}
    hidden = {".hidden.txt": b"no", ".git/config": b"no", "sub/.cache/x.txt": b"no"}
    for name, content in {**contents, **hidden}.items():
        path = tmp_path / "My Books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "My Books"


def test_files_of_a_folder_are_joined_in_sorted_order(folder):
    assert read(folder) == "\n".join(["A", "B\n", "C", "", "ž"])
    assert sources.find_source(str(folder)).name == "My_Books"
    assert sources.find_source(str(folder)).label == f"{folder / 'a.txt'} and 4 more files"


@pytest.mark.parametrize("mark", ["metrics.jsonl", "last.safetensors", "train.bin"])
def test_what_this_program_wrote_below_a_folder_is_no_text_of_it(folder, mark):
    before = read(folder)
    (folder / "runs" / "mine" / "hf").mkdir(parents=True)
    (folder / "runs" / "mine" / mark).write_bytes(b"\xff")
    (folder / "runs" / "mine" / "hf" / "loss.png").write_bytes(b"\x89PNG")
    assert read(folder) == before


@pytest.mark.parametrize(
    ("pattern", "joined"),
    [("*.txt", "A\nB\n"), ("**/*.txt", "A\nB\n\nC"), ("[b-z]*", "B\n\nž"), ("sub/*", "C"), ("a.tx?", "A")],
)
def test_globs(folder, pattern, joined, monkeypatch):
    assert read(folder / pattern) == joined
    monkeypatch.chdir(folder)
    assert read(pattern) == joined


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("this")
    (tmp_path / "a1.txt").write_text("not this")
    assert read(tmp_path / "a[1].txt") == "this"


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_a_folder_without_files_is_refused(tmp_path, pattern):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").touch()
    with pytest.raises(UserError, match="no files to read"):
        sources.find_source(str(tmp_path / pattern))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("shakespear_char", "did you mean shakespeare_char?"),
        ("pythondocs", "did you mean python_docs?"),
        ("books/missing.txt", "give one of shakespeare_char, python_docs, or the path or URL of a text"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path, monkeypatch, name, remedy):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"no dataset, file or folder {name!r}; {remedy}")):
        sources.find_source(name)


def test_a_file_that_is_gone_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    text = sources.find_source(str(path))
    path.unlink()
    with pytest.raises(UserError, match=r"a\.txt cannot be read"):
        list(text.pieces())


def test_a_text_can_be_read_again(folder):
    text = sources.find_source(str(folder))
    assert list(text.pieces()) == list(text.pieces())


@pytest.mark.parametrize(
    ("file", "name"), [("plain.txt", "plain"), ("My Book (1).txt", "My_Book_1"), ("源.txt", "源"), ("$.txt", "text")]
)
def test_names_are_plain(tmp_path, file, name):
    (tmp_path / file).touch()
    assert sources.find_source(str(tmp_path / file)).name == name


def test_python_docs_are_the_topics_of_this_python(monkeypatch):
    from pydoc_data.topics import topics

    assert read("python_docs") == "\n".join(text for _, text in sorted(topics.items()))
    monkeypatch.setattr("pydoc_data.topics.topics", {"b": "B", "a": "A"})
    assert read("python_docs") == "A\nB"


@pytest.mark.parametrize("dataset", ["a" * 254 + "/b" * 3000, "bad\0name", "~nobody_of_this_name/text.txt"])
def test_a_path_that_can_be_none_is_an_error(tmp_path, dataset):
    with pytest.raises(UserError, match="cannot be read|is no name"):
        sources.find_source(dataset)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
def test_what_can_be_read_once_only_is_no_text(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="no ordinary file, .* copy it"):
        sources.find_source(str(tmp_path / "pipe.txt"))
