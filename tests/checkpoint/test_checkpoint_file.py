"""The checkpoint file: reproducible bit for bit, written atomically, verified when read; no code in it is executed."""

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
from nanogpt_lite.checkpoint.checkpoint_file import TensorFile, read_tensors_and_json, write_tensors_and_json
from nanogpt_lite.errors import UserError

TENSORS = {f"t{n}": torch.randn(3, n + 1) for n in range(5)} | {"step": torch.tensor(3.0)}
CONTENT = {"step": 3, "loss": 0.1 + 0.2, "config": {"z": 1, "a": "é\n"}, "best": None}


def test_write_and_read_give_the_same_tensors_and_json(tmp_path):
    write_tensors_and_json(tmp_path / "a.safetensors", TENSORS, CONTENT)
    tensors, content = read_tensors_and_json(tmp_path / "a.safetensors")
    assert content == CONTENT
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    tensors, _ = read_tensors_and_json(tmp_path / "a.safetensors", prefix="t")
    assert TensorFile(tmp_path / "a.safetensors", tensors).with_prefix("t").keys() == set("01234")


def test_safetensors_reads_the_file_and_the_metadata_is_json_under_one_key(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors_and_json(path, TENSORS, CONTENT)
    assert safetensors.torch.load_file(path).keys() == TENSORS.keys()
    header_length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + header_length])
    stored = json.loads(header["__metadata__"]["nanogpt_lite"])["about"]
    assert {name: stored[name] for name in CONTENT} == CONTENT
    assert stored["format"] == 3
    assert len(header["__metadata__"]) == 1


def test_the_same_content_in_any_order_gives_the_same_bytes(tmp_path):
    contents = set()
    for number in range(5):
        shuffled = dict(sorted(TENSORS.items(), key=lambda item: hash((item[0], number))))
        content = dict(reversed(CONTENT.items())) if number % 2 else CONTENT
        write_tensors_and_json(tmp_path / "a.safetensors", shuffled, content)
        contents.add((tmp_path / "a.safetensors").read_bytes())
    assert len(contents) == 1


def test_the_file_has_the_permissions_of_other_new_files(tmp_path):
    write_tensors_and_json(tmp_path / "a.safetensors", TENSORS, CONTENT)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("when", ["write", "flush", "rename"])
def test_a_failed_write_leaves_the_old_file_unchanged_and_no_temporary_file(tmp_path, monkeypatch, when):
    path = tmp_path / "a.safetensors"
    write_tensors_and_json(path, TENSORS, CONTENT)
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
        write_tensors_and_json(path, TENSORS, {**CONTENT, "step": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.posix("limits the size of a file with setrlimit")
def test_a_file_over_the_size_limit_leaves_the_old_file_unchanged(tmp_path):
    """In a process that may write 100 kB per file: the operating system refuses the write, not a mock."""
    script = """if True:
        import resource, signal, torch
        from pathlib import Path
        from nanogpt_lite.checkpoint.checkpoint_file import write_tensors_and_json
        path = Path("last.safetensors")
        write_tensors_and_json(path, {"a": torch.zeros(10)}, {"step": 1})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_tensors_and_json(path, {"a": torch.zeros(100_000)}, {"step": 2})
        except OSError as error:
            print("refused:", error)
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")
    assert "last.safetensors" in done.stdout
    assert read_tensors_and_json(tmp_path / "last.safetensors")[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


class FailsWhenUnpickled:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"not a checkpoint at all", "damaged"),
        (pickle.dumps(FailsWhenUnpickled()), "damaged"),
        (safetensors.torch.save(TENSORS), "not written by this program"),
        (safetensors.torch.save(TENSORS, metadata={"nanogpt_lite": "[1]"}), "of another format than 3"),
        (safetensors.torch.save(TENSORS, metadata={"nanogpt_lite": "{"}), "damaged"),
        (safetensors.torch.save(TENSORS, metadata={"nanogpt_lite": '{"format": 1}'}), "of another format than 3"),
        (struct.pack("<Q", 2**60) + b"{}", "damaged"),
    ],
)
def test_a_damaged_or_unknown_file_is_a_user_error(tmp_path, content, message):
    path = tmp_path / "last.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tensors_and_json(path)


def test_every_truncated_file_is_a_user_error(tmp_path):
    path = tmp_path / "last.safetensors"
    write_tensors_and_json(path, TENSORS, CONTENT)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            read_tensors_and_json(path)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*nothing\.safetensors.*`out_dir`"):
        read_tensors_and_json(tmp_path / "nothing.safetensors")


def test_a_file_without_read_permission_is_an_os_error(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    write_tensors_and_json(path, TENSORS, {})

    def deny(self, *_arguments, **_options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", deny)  # not chmod: root may read a file of mode 0
    with pytest.raises(PermissionError, match="last.safetensors"):
        read_tensors_and_json(path)


@pytest.mark.parametrize("text", ["F\na\nb\n", "a" * 5000])
def test_message_about_a_damaged_header_is_short(tmp_path, text):
    """Found by fuzzing: the library quotes a dtype that it does not understand, and this program names of tensors."""
    path = tmp_path / "last.safetensors"
    write_tensors_and_json(path, {text: torch.zeros(1)}, {})
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file({"other": torch.zeros(1)}, path, metadata)
    assert_message_is_short(path)

    header = json.dumps({"a": {"dtype": text, "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert_message_is_short(path)


def assert_message_is_short(path):
    with pytest.raises(UserError, match="damaged") as caught:
        read_tensors_and_json(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")]
)
def test_too_little_memory_is_not_reported_as_damage(tmp_path, monkeypatch, error):
    path = tmp_path / "a.safetensors"
    write_tensors_and_json(path, TENSORS, CONTENT)

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(safetensors, "safe_open", fail)
    with pytest.raises(type(error)) as raised:
        read_tensors_and_json(path)
    assert raised.value is error
