"""Texts of this machine, as they arrive on the Volume."""

from contextlib import contextmanager

import pytest

import nanogpt_lite as ng
from nanogpt_lite.cloud.client.uploads import upload_text


class RecordingVolume:
    """Notes what is uploaded, instead of a Volume."""

    def __init__(self):
        self.uploads = {}

    @contextmanager
    def batch_upload(self, force=False):
        assert force, "a text of the same name is to be replaced"
        yield self

    def put_file(self, local_file, remote_path):
        self.uploads[remote_path] = local_file.read()


@pytest.fixture
def volume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "a.txt").write_text("first, ünïcode\n")
    (tmp_path / "poems" / "b.txt").write_text("second\n")
    return RecordingVolume()


@pytest.mark.parametrize(
    ("dataset", "remote_path", "text"),
    [
        ("poems/a.txt", "texts/a.txt", "first, ünïcode\n"),
        ("poems", "texts/poems.txt", "first, ünïcode\n\nsecond\n"),
        ("poems/*.txt", "texts/poems.txt", "first, ünïcode\n\nsecond\n"),
    ],
)
def test_file_folder_and_glob_are_uploaded_as_one_file(volume, dataset, remote_path, text):
    # files are joined with a newline, as when they are prepared on this machine
    assert upload_text(volume, dataset) == remote_path
    assert {path: content.decode() for path, content in volume.uploads.items()} == {remote_path: text}


@pytest.mark.parametrize("dataset", ["shakespeare_char", "https://example.com/a.txt", "prepared-before"])
def test_dataset_that_is_no_local_path_is_not_uploaded(volume, dataset):
    assert upload_text(volume, dataset) == dataset
    assert volume.uploads == {}


def test_built_in_name_wins_over_a_local_file(volume, tmp_path):
    (tmp_path / "python_docs").write_text("mine")
    assert upload_text(volume, "python_docs") == "python_docs"
    assert volume.uploads == {}


def test_text_whose_name_is_too_long_for_a_folder_is_refused(volume, tmp_path):
    (tmp_path / f"{'a' * 101}.txt").write_text("text")
    with pytest.raises(ng.UserError, match="invalid dataset name"):
        upload_text(volume, f"{'a' * 101}.txt")
    assert volume.uploads == {}
