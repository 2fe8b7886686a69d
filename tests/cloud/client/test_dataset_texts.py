"""Texts of this machine and of the Volume: what is known of them is what the prepared dataset has."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from fake_volume import FakeVolume

import nanogpt_lite as ng
from nanogpt_lite.cloud.client import dataset_texts
from nanogpt_lite.cloud.client.dataset_texts import Text, find_text, upload_texts
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.data import batching, download, sources

GOLDEN = Path(__file__).parents[2] / "golden" / "v0.1"
TEXT = "to be, or not to be: ünïcode, ☃ and 𝄞\n" * 20


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """An empty Volume. The current folder has the folder poems with two texts."""
    (tmp_path / "here" / "poems").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    Path("poems/a.txt").write_text("first, ünïcode\n", encoding="utf-8")
    Path("poems/b.txt").write_text("second\n", encoding="utf-8")
    return FakeVolume(tmp_path / "volume")


def find(volume, dataset, tokenizer="auto"):
    return find_text(StoredFiles(volume), dataset, tokenizer)


def uploaded(volume):
    """The content of each file on the Volume."""
    return {
        path.relative_to(volume.folder).as_posix(): path.read_text(encoding="utf-8")
        for path in volume.folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("dataset", "remote_path", "text"),
    [
        ("poems/a.txt", "texts/a.txt", "first, ünïcode\n"),
        ("poems", "texts/poems.txt", "first, ünïcode\n\nsecond\n"),
        ("poems/*.txt", "texts/poems.txt", "first, ünïcode\n\nsecond\n"),
    ],
)
def test_file_folder_and_glob_are_uploaded_as_one_file(volume, dataset, remote_path, text, monkeypatch, capsys):
    # files are joined with a newline, as when they are prepared on this machine
    found = find(volume, dataset)
    assert uploaded(volume) == {}, "nothing is uploaded before all checks have passed"
    upload_texts(volume, [found])
    assert uploaded(volume) == {remote_path: text}
    name = Path(remote_path).stem
    assert found.dataset == name
    assert f"({len(text.encode())} bytes); --dataset {name} names this text" in capsys.readouterr().out
    monkeypatch.chdir(volume.folder)  # where no local text has this name
    assert find(volume, name) == Text(name)


def test_upload_replaces_a_text_of_the_same_name(volume):
    for content in ("one text\n" * 9, "another text\n" * 9):
        Path("mine.txt").write_text(content, encoding="utf-8")
        upload_texts(volume, [find(volume, "mine.txt")])
        assert uploaded(volume) == {"texts/mine.txt": content}


@pytest.mark.parametrize("dataset", ["shakespeare_char", "python_docs", "https://example.com/a.txt"])
def test_text_that_containers_fetch_is_not_uploaded(volume, dataset):
    text = find(volume, dataset)
    assert (text.dataset, text.local_path) == (dataset, "")
    upload_texts(volume, [text])
    assert uploaded(volume) == {}


def test_built_in_name_wins_over_a_local_file(volume):
    Path("python_docs").write_text("mine", encoding="utf-8")
    assert find(volume, "python_docs") == Text("python_docs")


def test_text_whose_name_is_too_long_for_a_folder_is_refused(volume):
    Path(f"{'a' * 101}.txt").write_text("text", encoding="utf-8")
    with pytest.raises(ng.UserError, match="invalid dataset name"):
        find(volume, f"{'a' * 101}.txt")


def test_unknown_text_is_refused_with_the_known_ones(volume):
    shutil.copytree(GOLDEN / "data", volume.folder / "datasets")
    (volume.folder / "texts").mkdir()
    (volume.folder / "texts/mine.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ng.UserError, match="no text 'typo.txt' .* shakespeare_char, python_docs, bpe, byte, mine, sea"):
        find(volume, "typo.txt")


def test_text_that_is_not_utf8_is_refused(volume):
    Path("latin.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(ng.UserError, match="is not UTF-8"):
        find(volume, "latin.txt")


@pytest.mark.parametrize("length", [*range(1, 32)])
def test_text_is_too_short_where_it_cannot_be_prepared(volume, length):
    Path("short.txt").write_text(("abc\n" * 8)[:length], encoding="utf-8")
    try:
        ng.prepare("short.txt")
    except ng.UserError:
        with pytest.raises(ng.UserError, match="too few to train on"):
            find(volume, "short.txt")
    else:
        assert find(volume, "short.txt").local_path == "short.txt"


@pytest.mark.parametrize("text", [TEXT, "é" * 20 + "abc" * 5, "a\r\nb\n" * 7, "\ufeffwith a mark\n" * 3])
def test_facts_of_a_local_text_are_those_of_the_dataset_prepared_from_it(volume, text):
    Path("mine.txt").write_text(text, encoding="utf-8", newline="")
    as_char, as_byte = ng.prepare("mine.txt", out_dir="c"), ng.prepare("mine.txt", tokenizer="byte", out_dir="b")
    for tokenizer in ("auto", "char"):
        found = find(volume, "mine.txt", tokenizer)
        assert found.train_tokens == len(as_char.train)
        assert found.characters == as_char.tokenizer.to_json()["chars"]
    found = find(volume, "mine.txt", "byte")
    assert found.characters is None, "any text can be encoded"
    assert found.train_tokens is not None
    assert found.train_tokens >= len(as_byte.train), "no text is refused that is long enough"
    assert find(volume, "mine.txt", "bpe-300") == Text("mine", "mine.txt", sha256=as_char.sha256)


@pytest.mark.parametrize(("name", "tokenizer"), [("sea", "char"), ("byte", "byte"), ("bpe", "bpe-280")])
def test_prepared_dataset_of_version_0_1_is_found_with_its_facts(volume, name, tokenizer):
    shutil.copytree(GOLDEN / "data", volume.folder / "datasets")
    dataset = ng.prepare(volume.folder / "datasets" / name)
    characters = dataset.tokenizer.to_json()["chars"] if tokenizer == "char" else None
    expected = Text(name, is_prepared=True, train_tokens=len(dataset.train), characters=characters)
    assert find(volume, name) == find(volume, name, tokenizer) == expected
    assert find(volume, f"https://example.com/{name}.txt", tokenizer).is_prepared
    other = "char" if tokenizer != "char" else "byte"
    assert find(volume, name, other) == Text(name), "with another tokenizer, it is prepared again"


def test_prepared_dataset_is_that_of_the_tokenizer(volume):
    (volume.folder / "texts").mkdir()
    shutil.copy(GOLDEN / "sea.txt", volume.folder / "texts/sea.txt")
    for name, stored_as in (("byte", "sea-byte"), ("bpe", "sea")):  # the latter as version 0.2 would have it
        shutil.copytree(GOLDEN / "data" / name, volume.folder / "datasets" / stored_as)
    for stored_as, tokenizer in (("sea-byte", "byte"), ("sea", "bpe-280")):
        dataset = ng.prepare(volume.folder / "datasets" / stored_as)
        assert find(volume, "sea", tokenizer) == Text("sea", is_prepared=True, train_tokens=len(dataset.train))
    assert find(volume, "sea") == find(volume, "sea", "char") == Text("sea"), "auto is char"
    assert find(volume, "sea-byte").is_prepared, "the name of the prepared folder"


@pytest.mark.parametrize("tokenizer", ["auto", "char"])
def test_length_is_refused_where_training_would_refuse_it(volume, tokenizer):
    Path("mine.txt").write_text(TEXT, encoding="utf-8")
    dataset, text = ng.prepare("mine.txt"), find(volume, "mine.txt", tokenizer)
    refused = {"client": set(), "training": set()}
    sizes = range(len(dataset.train) - 5, len(dataset.train) + 5)
    for block_size in sizes:
        try:
            text.require_length(block_size)
        except ng.UserError as error:
            assert f"block_size={block_size}" in str(error)  # noqa: PT017
            refused["client"].add(block_size)
        try:
            batching.require_length(dataset.train, dataset.val, block_size=block_size, sampled_val=False)
        except ng.UserError:
            refused["training"].add(block_size)
    assert refused["client"] == refused["training"]
    assert set() < refused["client"] < {*sizes}
    Text("unknown").require_length(10**9)  # of which nothing is known


@pytest.mark.parametrize("prompt", ["to be", "ünïcode ☃𝄞\n", "Z", "to be?", ""])
def test_prompt_is_refused_where_the_tokenizer_would_refuse_it(volume, prompt):
    Path("mine.txt").write_text(TEXT, encoding="utf-8")
    tokenizer, text = ng.prepare("mine.txt").tokenizer, find(volume, "mine.txt")
    try:
        tokenizer.encode(prompt)
    except ng.UserError:
        with pytest.raises(ng.UserError, match=r"the prompt has '.' \(U\+00[0-9A-F]{2}\), .* of the text mine"):
            text.require_prompt(prompt)
    else:
        text.require_prompt(prompt)
    find(volume, "mine.txt", "byte").require_prompt(prompt)


def test_shakespeare_is_checked_before_it_is_downloaded(volume):
    text = find(volume, "shakespeare_char")
    with pytest.raises(ng.UserError, match=r"the prompt has 'é' .* 65 characters of the text shakespeare_char"):
        text.require_prompt("Roméo")
    text.require_prompt("ROMEO:\nWhat's here?")
    with pytest.raises(ng.UserError, match="too short"):
        text.require_length(2_000_000)
    assert find(volume, "shakespeare_char", "byte") == Text("shakespeare_char")


def test_characters_and_length_of_shakespeare_are_facts():
    """Of the text that `sources.RESOURCES` names by its SHA-256, where this machine has it."""
    assert (
        len(dataset_texts.SHAKESPEARE_CHARACTERS) == len(set(dataset_texts.SHAKESPEARE_CHARACTERS)) == 65
    )  # as nanoGPT says
    resource = sources.RESOURCES["shakespeare_char"]
    path = Path(os.environ.get("NANOGPT_SHAKESPEARE") or download.cache_dir() / resource.cache_name)
    if not path.is_file():
        pytest.skip("the text is neither in the cache nor at $NANOGPT_SHAKESPEARE")
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == resource.sha256
    text = content.decode()
    assert "".join(sorted(set(text))) == dataset_texts.SHAKESPEARE_CHARACTERS
    assert len(text) == dataset_texts.SHAKESPEARE_LENGTH
