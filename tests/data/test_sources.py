"""Finding texts by name, file, folder or glob, and reading them in chunks, against Python's own decoder."""

import codecs
import os
import re

import pytest
from documentation import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite.config.options import DataConfig
from nanogpt_lite.data import download, sources
from nanogpt_lite.errors import UserError

BOM = codecs.BOM_UTF8


def read(path) -> str:
    return "".join(sources.find_source(str(path)).read_chunks())


def test_newlines_are_kept_and_byte_order_mark_is_removed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(BOM + b"one\r\ntwo\rthree\n\n" + BOM + b"four")
    assert read(path) == "one\r\ntwo\rthree\n\n\ufefffour"  # it is a mark only at the start of a file


@settings(deadline=None)
@example("\ufeff", 1, b"")
@example("é" * 3, 1, b"")
@example("abc\ufeff", 3, b"")  # not a mark: it starts a chunk, not the file
@example("\U0001f600", 3, b"\xf0\x9f\x98")
@given(st.text(), st.integers(1, 7), st.binary(max_size=6))
def test_any_bytes_in_chunks_of_any_size_are_decoded_as_by_python(tmp_path_factory, text, chunk, tail):
    """Invalid UTF-8 is refused at the offset that Python's decoder names, for every size of the chunks."""
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
            problem = f"byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})"
            assert str(caught.value).startswith(f"{path} is not UTF-8: {problem}; convert it, ")
        else:
            assert read(path) == whole.removeprefix("\ufeff")


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe9 ", b"\xf0\x9f\x98", b"\xed\xa0\x80"])
def test_invalid_byte_after_the_first_chunk_is_reported(tmp_path, monkeypatch, start, bad):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 64)
    path = tmp_path / "a.txt"
    good = start + "äöü ".encode() * 50  # 7 bytes each: characters cross the ends of chunks
    path.write_bytes(good + bad + b"end")
    with pytest.raises(UserError, match=rf"0x{bad[0]:02x} at offset {len(good)} "):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin1"])
def test_not_utf8_error_names_the_likely_encoding(tmp_path, encoding):
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


def test_folder_files_are_joined_in_sorted_order(folder):
    assert read(folder) == "\n".join(["A", "B\n", "C", "", "ž"])
    assert sources.find_source(str(folder)).name == "My_Books"
    assert sources.find_source(str(folder)).label == f"{folder / 'a.txt'} and 4 more files"


@pytest.mark.parametrize("mark", ["metrics.jsonl", "last.safetensors", "train.bin"])
def test_outputs_of_this_program_in_a_folder_are_skipped(folder, mark):
    before = read(folder)
    (folder / "runs" / "mine" / "hf").mkdir(parents=True)
    (folder / "runs" / "mine" / mark).write_bytes(b"\xff")
    (folder / "runs" / "mine" / "hf" / "loss.png").write_bytes(b"\x89PNG")
    assert read(folder) == before


@pytest.mark.parametrize(
    ("pattern", "joined"),
    [("*.txt", "A\nB\n"), ("**/*.txt", "A\nB\n\nC"), ("[b-z]*", "B\n\nž"), ("sub/*", "C"), ("a.tx?", "A")],
)
def test_glob_matches_files_and_joins_them(folder, pattern, joined, monkeypatch):
    assert read(folder / pattern) == joined
    monkeypatch.chdir(folder)
    assert read(pattern) == joined


def test_existing_file_with_glob_characters_is_read_as_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("this")
    (tmp_path / "a1.txt").write_text("not this")
    assert read(tmp_path / "a[1].txt") == "this"


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_folder_without_files_is_refused(tmp_path, pattern):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").touch()
    with pytest.raises(UserError, match="no files to read"):
        sources.find_source(str(tmp_path / pattern))


@pytest.mark.parametrize("name", sources.DATASET_NAMES)
def test_every_name_is_that_of_a_text_and_is_in_the_help(name, tmp_path, monkeypatch):
    cached = tmp_path / "text.txt"
    cached.write_text("text\n" * 9)
    monkeypatch.setattr(download, "fetch", lambda resource, **options: cached)
    monkeypatch.chdir(tmp_path)
    source = sources.find_source(name)
    assert source.name == sources.dataset_name(name) == name
    assert len("".join(source.read_chunks())) > 11
    help_text = DataConfig.__dataclass_fields__["dataset"].metadata["help"]
    assert name in help_text
    assert f"- `{name}`: " in (ROOT / "docs/your-text.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("shakespear_char", "did you mean shakespeare_char?"),
        ("pythondocs", "did you mean python_docs?"),
        ("books/missing.txt", f"give one of {', '.join(sources.DATASET_NAMES)}, or the path or URL of a text"),
    ],
)
def test_unknown_name_is_refused_with_nearest_name(tmp_path, monkeypatch, name, remedy):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"no dataset, file or folder {name!r}; {remedy}")):
        sources.find_source(name)


def test_deleted_file_is_named_in_the_error(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    source = sources.find_source(str(path))
    path.unlink()
    with pytest.raises(UserError, match=r"a\.txt cannot be read"):
        list(source.read_chunks())


def test_source_can_be_read_twice(folder):
    source = sources.find_source(str(folder))
    assert list(source.read_chunks()) == list(source.read_chunks())


@pytest.mark.parametrize(
    ("file", "name"), [("plain.txt", "plain"), ("My Book (1).txt", "My_Book_1"), ("源.txt", "源"), ("$.txt", "text")]
)
def test_source_name_has_only_safe_characters(tmp_path, file, name):
    (tmp_path / file).touch()
    assert sources.find_source(str(tmp_path / file)).name == name


def test_python_docs_are_the_sorted_pydoc_topics(monkeypatch):
    from pydoc_data.topics import topics

    assert read("python_docs") == "\n".join(text for _, text in sorted(topics.items()))
    monkeypatch.setattr("pydoc_data.topics.topics", {"b": "B", "a": "A"})
    assert read("python_docs") == "A\nB"


@pytest.mark.parametrize("dataset", ["a" * 254 + "/b" * 3000, "bad\0name", "~nobody_of_this_name/text.txt"])
def test_invalid_path_is_refused(tmp_path, dataset):
    with pytest.raises(UserError, match="cannot be read|is not a name or path"):
        sources.find_source(dataset)


@pytest.mark.posix("makes a named pipe with os.mkfifo")
def test_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="not a regular file, .* copy it"):
        sources.find_source(str(tmp_path / "pipe.txt"))
