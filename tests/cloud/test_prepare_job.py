"""A text is prepared, and a sweep runs, with the packages of the small image alone: no PyTorch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from book_data import SET_NAMES
from modal_alone import only_installed
from shared_volume import Machines

import nanogpt_lite as ng
from nanogpt_lite.cloud.prepare_job import prepare_and_push
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.byte import ByteTokenizer

ROOT = Path(__file__).parents[2]


def packages_of(image):
    """The packages, with their versions, that an image of modal_app.py installs."""
    tree = ast.parse((ROOT / "modal_app.py").read_text(encoding="utf-8"))
    (value,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == image
    ]
    (call,) = [
        node
        for node in ast.walk(value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "uv_pip_install"
    ]
    return dict(ast.literal_eval(argument).split("==") for argument in call.args)


def test_small_image_has_versions_of_the_gpu_image_and_no_pytorch():
    small, gpu = packages_of("small_image"), packages_of("gpu_packages")
    assert small.items() < gpu.items()
    assert not {"torch", "safetensors", "tqdm", "matplotlib"} & small.keys()


CODE = """
import importlib.util
import sys

installed = [name for name in ("torch", "safetensors", "matplotlib") if importlib.util.find_spec(name)]
assert not installed, installed
sys.modules["tqdm"] = None  # it is installed, because tokenizers needs it for downloads, but is not needed here
import modal_app
from nanogpt_lite.cloud import container, prepare_job, sweeps
from nanogpt_lite.cloud.storage import LocalStorage

for tokenizer in ("char", "byte", "bpe-300"):
    prepare_job.prepare_and_push(LocalStorage(), f"{tokenizer}.txt", tokenizer=tokenizer)
trials = sweeps.make_trials({"n_layer": "1,2"}, name="s")
print(sweeps.format_table(trials, [1.5, 1.4]))
"""


def test_text_is_prepared_with_the_packages_of_the_small_image_alone(tmp_path, text_file):
    for tokenizer in ("char", "byte", "bpe-300"):
        Path(f"{tokenizer}.txt").write_bytes(text_file.read_bytes())
        ng.prepare(f"{tokenizer}.txt", tokenizer=tokenizer, out_dir=f"expected/{tokenizer}")
    environment = only_installed(tmp_path / "site", "modal", *packages_of("small_image"))
    path = os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| s-2 | 2 | 1.4000 |" in done.stdout
    for tokenizer in ("char", "byte", "bpe-300"):
        name = tokenizer if tokenizer == "char" else f"{tokenizer}-{tokenizer}"  # of the text, and of its tokenizer
        prepared, expected = Path("data", name), Path("expected", tokenizer)
        for name in SET_NAMES[1:]:  # the manifest also names the source
            assert (prepared / name).read_bytes() == (expected / name).read_bytes()


def test_stored_text_is_not_prepared_again_unless_overwrite_says_so(tmp_path, monkeypatch):
    machines = Machines(tmp_path, monkeypatch)
    stored = machines.shared / "datasets/text"
    prepare_and_push(machines.start(), machines.text)
    before = {path.name: path.stat().st_mtime_ns for path in stored.iterdir()}
    assert sorted(before) == SET_NAMES
    dataset = prepare_and_push(machines.start(), machines.text, verify=True)
    assert dataset.path == Path("data/text")
    assert {path.name: path.stat().st_mtime_ns for path in stored.iterdir()} == before
    prepare_and_push(machines.start(), machines.text, overwrite=True)
    assert {path.name: path.stat().st_mtime_ns for path in stored.iterdir()} != before


def test_each_tokenizer_is_stored_beside_the_others_and_none_is_prepared_twice(tmp_path, monkeypatch):
    machines = Machines(tmp_path, monkeypatch)
    for tokenizer in ("byte", "auto"):
        prepare_and_push(machines.start(), machines.text, tokenizer=tokenizer)
    stored = {path: path.stat().st_mtime_ns for path in (machines.shared / "datasets").glob("*/*")}
    assert {path.parent.name for path in stored} == {"text", "text-byte"}
    requests: list[tuple[str | Tokenizer, str]] = [
        ("byte", "text-byte"),
        (ByteTokenizer(), "text-byte"),
        ("auto", "text"),
    ]
    for requested, name in requests:
        assert prepare_and_push(machines.start(), machines.text, tokenizer=requested).path == Path("data", name)
    assert {path: path.stat().st_mtime_ns for path in (machines.shared / "datasets").glob("*/*")} == stored
    machines.start()
    assert ng.prepare(machines.shared / "datasets/text").tokenizer.to_json()["type"] == "char"
