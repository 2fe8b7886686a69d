"""What a container compiled is there for the next one, and nothing of it decides whether a training succeeds."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import modal
import pytest
from shared_volume import FolderVolume

from nanogpt_lite.cloud import compiled_files, container
from nanogpt_lite.cloud.storage import MOUNT_VARIABLE


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a container: it has an empty folder of its own, and a copy of the Volume. Its Volume and the archive."""
    monkeypatch.setenv(compiled_files.CACHE_VARIABLE, "replaced")

    def start(name):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        volume = FolderVolume(tmp_path / name / "mount", tmp_path / "shared")
        return volume, volume.mount / "compiled.tar"

    return start


def write(path, text):
    """A file in the folder where PyTorch keeps what it compiled."""
    path = Path(os.environ[compiled_files.CACHE_VARIABLE], path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def compiled_now():
    folder = Path(os.environ[compiled_files.CACHE_VARIABLE])
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_next_container_has_what_was_compiled(start):
    volume, archive = start("first")
    with compiled_files.keep(volume, archive):
        assert compiled_now() == {}
        write("ab/kernel.so", "code")
        write("locks/kernel.lock", "")
    volume, archive = start("second")
    with compiled_files.keep(volume, archive):
        assert compiled_now() == {"ab/kernel.so": "code"}
        write("cd/other.so", "more")
    assert volume.commits == 1
    volume, archive = start("third")
    with compiled_files.keep(volume, archive):
        assert compiled_now() == {"ab/kernel.so": "code", "cd/other.so": "more"}
    assert volume.commits == 0, "nothing was compiled"


def test_what_a_failed_training_compiled_is_kept(start):
    volume, archive = start("first")
    with pytest.raises(KeyboardInterrupt), compiled_files.keep(volume, archive):
        write("ab/kernel.so", "code")
        raise KeyboardInterrupt
    volume, archive = start("second")
    with compiled_files.keep(volume, archive):
        assert compiled_now() == {"ab/kernel.so": "code"}


def test_an_archive_does_not_grow_without_end(start, monkeypatch):
    monkeypatch.setattr(compiled_files, "MAX_BYTES", 10)
    for name in ("first", "second", "third"):
        volume, archive = start(name)
        with compiled_files.keep(volume, archive):
            write(f"{name}/kernel.so", "4 KB")
    with tarfile.open(archive) as stored:
        assert stored.getnames() == ["third/kernel.so"], "the first two were 8 bytes, with the third 12"


@pytest.mark.parametrize("damage", [b"no archive", b"", None])
def test_a_damaged_archive_is_a_warning(start, damage):
    volume, archive = start("first")
    with compiled_files.keep(volume, archive):
        write("ab/kernel.so", "code" * 5000)
    (volume.shared / archive.name).write_bytes(
        (volume.shared / archive.name).read_bytes()[:9000] if damage is None else damage
    )
    volume, archive = start("second")
    warned = pytest.warns(UserWarning, match=r"compiled\.tar cannot be read \(.+\); compiling anew")
    with warned, compiled_files.keep(volume, archive):
        assert compiled_now() == {}, "no part of it is used"
        write("cd/other.so", "new")
    with tarfile.open(volume.shared / archive.name) as stored:
        assert stored.getnames() == ["cd/other.so"]


def test_files_outside_of_the_folder_are_not_written(start, tmp_path):
    volume, archive = start("first")
    Path("evil").write_text("evil", encoding="utf-8")
    with tarfile.open(volume.shared / archive.name, "w") as stored:
        stored.add("evil", "ab/kernel.so")  # so that the folder is there
        stored.add("evil", "../../evil")
    volume, archive = start("second")
    with pytest.warns(UserWarning, match="cannot be read"), compiled_files.keep(volume, archive):
        pass
    assert not (tmp_path / "evil").exists()


def test_a_volume_that_cannot_be_written_is_a_warning(start, monkeypatch):
    def fail():
        raise modal.exception.Error("no such Volume")

    volume, archive = start("first")
    monkeypatch.setattr(volume, "commit", fail)
    with pytest.warns(UserWarning, match=r"compiled\.tar cannot be stored \(no such Volume\)"):
        with compiled_files.keep(volume, archive):
            write("ab/kernel.so", "code")


def test_the_archive_is_beside_the_mounted_texts_and_runs(start, monkeypatch):
    volume, _ = start("first")
    monkeypatch.setattr(modal, "is_local", lambda: False)
    monkeypatch.setenv(MOUNT_VARIABLE, str(volume.mount.parent / "data"))
    monkeypatch.setattr(compiled_files, "VOLUME_DIR", volume.mount.name)
    with container.keep_compiled(volume, {"compile": True}):
        write("ab/kernel.so", "code")
    (archive,) = volume.shared.iterdir()
    assert archive.name.startswith("torch-2.")


@pytest.mark.parametrize(
    ("options", "is_read"),
    [({}, False), ({"compile": False}, False), ({"compile_whole": True}, True), ({"init_from": "resume"}, True)],
)
def test_the_archive_is_read_for_a_training_that_may_compile(start, monkeypatch, options, is_read):
    volume, _ = start("first")
    monkeypatch.setattr(modal, "is_local", lambda: False)
    with container.keep_compiled(volume, options):
        assert (os.environ[compiled_files.CACHE_VARIABLE] != "replaced") == is_read


def test_without_a_container_pytorch_keeps_it_where_it_always_does(start):
    volume, _ = start("first")
    with container.keep_compiled(volume, {"compile": True}):
        assert os.environ[compiled_files.CACHE_VARIABLE] == "replaced"
    assert volume.commits == 0


TRAIN = """
import warnings
from pathlib import Path
import torch
from shared_volume import FolderVolume
from nanogpt_lite.api import pipeline
from nanogpt_lite.cloud import compiled_files

warnings.simplefilter("ignore")
volume = FolderVolume(Path("mount"), Path("../stored"))
with compiled_files.keep(volume, volume.mount / "compiled.tar"):
    options = {"max_iters": 2, "block_size": 8, "batch_size": 2, "n_layer": 2, "n_head": 2, "n_embd": 8}
    pipeline.train("../text.txt", preset="cpu", device="cpu", compile=True, **options)
counters = torch._dynamo.utils.counters["inductor"]
print(counters["fxgraph_cache_miss"], counters["fxgraph_cache_hit"])
"""


@pytest.mark.slow  # PyTorch compiles a network
def test_pytorch_takes_what_another_container_compiled(tmp_path):
    (tmp_path / "text.txt").write_text("Ten green bottles, hanging on the wall.\n" * 30, encoding="utf-8")
    counts = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        result = subprocess.run(
            [sys.executable, "-c", TRAIN], cwd=tmp_path / name, env=env, capture_output=True, text=True, check=True
        )
        counts.append([int(count) for count in result.stdout.split()[-2:]])
    (misses, hits), (later_misses, later_hits) = counts
    assert misses > 0
    assert hits == 0
    assert later_misses == 0
    assert later_hits == misses
