"""The file: bit for bit the same for the same state, whole or not at all, and nothing of it executed."""

import errno
import json
import pickle
import struct
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from nanogpt_lite import files
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.errors import UserError

TENSORS = {f"t{n}": torch.randn(3, n + 1) for n in range(5)} | {"step": torch.tensor(3.0)}
ABOUT = {"step": 3, "loss": 0.1 + 0.2, "config": {"z": 1, "a": "é\n"}, "best": None}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint_file.write_checkpoint(tmp_path / "a.safetensors", TENSORS, ABOUT)
    saved = read_checkpoint(tmp_path / "a.safetensors")
    assert saved.metadata == ABOUT
    assert saved.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert read_checkpoint(tmp_path / "a.safetensors", prefix="t").with_prefix("t").keys() == set("01234")


def test_others_can_read_it(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint_file.write_checkpoint(path, TENSORS, ABOUT)
    assert safetensors.torch.load_file(path).keys() == TENSORS.keys()
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + length])
    held = json.loads(header["__metadata__"]["nanogpt_lite"])
    assert {name: held["about"][name] for name in ABOUT} == ABOUT
    assert held["about"]["format"] == 3
    assert len(header["__metadata__"]) == 1


def test_the_same_state_is_the_same_file(tmp_path):
    contents = set()
    for number in range(5):
        shuffled = dict(sorted(TENSORS.items(), key=lambda item: hash((item[0], number))))
        about = dict(reversed(ABOUT.items())) if number % 2 else ABOUT
        checkpoint_file.write_checkpoint(tmp_path / "a.safetensors", shuffled, about)
        contents.add((tmp_path / "a.safetensors").read_bytes())
    assert len(contents) == 1


def test_readable_by_whom_other_files_are(tmp_path):
    checkpoint_file.write_checkpoint(tmp_path / "a.safetensors", TENSORS, ABOUT)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("when", ["write", "flush", "rename"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, when):
    path = tmp_path / "a.safetensors"
    checkpoint_file.write_checkpoint(path, TENSORS, ABOUT)
    before = path.read_bytes()

    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {
        "write": (safetensors.torch, "save_file"),
        "flush": (files, "sync_to_disk"),
        "rename": (type(path), "replace"),
    }[when]
    monkeypatch.setattr(*target, fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint_file.write_checkpoint(path, TENSORS, {**ABOUT, "step": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path):
    """In a process that may write 100 kB a file at most: what the operating system refuses, not a stand-in."""
    script = """if True:
        import resource, signal, torch
        from pathlib import Path
        from nanogpt_lite.checkpoint import checkpoint_file
        path = Path("last.safetensors")
        checkpoint_file.write_checkpoint(path, {"a": torch.zeros(10)}, {"step": 1})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint_file.write_checkpoint(path, {"a": torch.zeros(100_000)}, {"step": 2})
        except OSError as error:
            print("refused:", error)
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")
    assert "last.safetensors" in done.stdout
    assert read_checkpoint(tmp_path / "last.safetensors").metadata == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"not a checkpoint at all", "damaged"),
        (pickle.dumps(Bomb()), "damaged"),
        (safetensors.torch.save(TENSORS), "not written by this program"),
        (safetensors.torch.save(TENSORS, metadata={"nanogpt_lite": "[1]"}), "of another format than 3"),
        (safetensors.torch.save(TENSORS, metadata={"nanogpt_lite": "{"}), "damaged"),
        (safetensors.torch.save(TENSORS, metadata={"nanogpt_lite": '{"format": 1}'}), "of another format than 3"),
        (struct.pack("<Q", 2**60) + b"{}", "damaged"),
    ],
)
def test_a_foreign_or_damaged_file_is_an_error(tmp_path, content, message):
    path = tmp_path / "last.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        checkpoint_file.read_checkpoint(path)


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint_file.write_checkpoint(path, TENSORS, ABOUT)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(path)


def test_a_missing_one_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*nothing\.safetensors.*--out_dir"):
        checkpoint_file.read_checkpoint(tmp_path / "nothing.safetensors")


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    checkpoint_file.write_checkpoint(path, TENSORS, {})

    def forbidden(self, *_arguments, **_options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", forbidden)  # root, too, may read a file of mode 0
    with pytest.raises(PermissionError, match="last.safetensors"):
        checkpoint_file.read_checkpoint(path)
