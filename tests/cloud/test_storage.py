"""What a machine sees of a shared Volume, and what is on the Volume while training replaces the files."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from shared_volume import Machines

from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.cloud import storage as storage_module
from nanogpt_lite.cloud.prepare_job import prepare_and_push
from nanogpt_lite.cloud.storage import LocalStorage


@pytest.fixture
def machines(tmp_path, monkeypatch):
    return Machines(tmp_path, monkeypatch)


def test_pull_sees_what_another_machine_pushed_since(machines):
    waiting = machines.start()
    first_machine = Path.cwd()
    prepare_and_push(machines.start(), machines.text)
    os.chdir(first_machine)
    waiting.pull(Path("data/text"))
    assert Path("data/text/manifest.json").is_file()


def test_has_run_sees_folders_of_other_machines_also_without_a_checkpoint(machines):
    waiting = machines.start()
    other = machines.start()
    other.claim(Path("runs/begun"), "me", delete_files=True)
    assert [waiting.has_run(name) for name in ("begun", "never")] == [True, False]
    assert waiting.run_names() == []


def test_pull_of_named_files_leaves_the_others(machines):
    storage, folder = machines.start(), Path("runs/x")
    folder.mkdir(parents=True)
    for name in ("config.json", "best.safetensors", "last.safetensors"):
        (folder / name).write_text("stored")
    storage.push(folder)
    other = machines.start()
    other.pull(folder, ("config.json", "best.safetensors", "missing"))
    assert sorted(path.name for path in folder.iterdir()) == ["best.safetensors", "config.json"]


def test_pushed_last_is_never_newer_than_best(machines, monkeypatch):
    """Training replaces all files after each file that is copied."""
    storage, folder = machines.start(), Path("runs/x")
    folder.mkdir(parents=True)
    (storage.root / "runs").mkdir()

    def write_all(version):
        for name in ("best", "last"):
            (folder / f"{name}{SUFFIX}").write_text(version)
        (folder / "metrics.jsonl").write_text(version)

    write_all("1")
    copyfile = shutil.copyfile
    slow = SimpleNamespace(copyfile=lambda source, target: (copyfile(source, target), write_all("2")))
    monkeypatch.setattr(storage_module, "shutil", slow)
    storage.push(folder)
    stored = machines.shared / "runs" / "x"
    assert (stored / f"last{SUFFIX}").read_text() == "1"
    assert (stored / f"best{SUFFIX}").read_text() == "2"
    assert (stored / "metrics.jsonl").read_text() == "2"


def test_push_copies_a_file_again_that_was_replaced_during_the_copy(machines, monkeypatch):
    """Training replaces a checkpoint by one of the same size while it is copied, and then ends."""
    storage, folder = machines.start(), Path("runs/x")
    folder.mkdir(parents=True)
    (folder / f"last{SUFFIX}").write_text("old")
    copyfile = shutil.copyfile

    def copy_then_replace(source, target):
        copyfile(source, target)
        Path(source).write_text("new", encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "shutil", SimpleNamespace(copyfile=copy_then_replace))
        storage.push(folder)
    storage.push(folder)
    assert (machines.shared / "runs" / "x" / f"last{SUFFIX}").read_text() == "new"


def test_local_storage_has_the_runs_of_the_current_folder_and_stores_nothing(trained):
    storage = LocalStorage()
    before = sorted(Path().rglob("*"))
    assert storage.run_names() == ["bottles-1"]
    assert [storage.has_run(name) for name in ("bottles-1", "bottles-2")] == [True, False]
    assert storage.text_source("bottles.txt") == "bottles.txt"
    storage.claim(trained.out_dir, "me", delete_files=True)
    assert not storage.is_owner(trained.out_dir, "me")
    storage.push(trained.out_dir, "me")
    storage.pull(trained.out_dir)
    storage.write_text("sweeps/a.json", "[]")
    assert storage.read_text("sweeps/a.json") == ""  # so that a sweep here trains its trials again
    assert sorted(Path().rglob("*")) == before
