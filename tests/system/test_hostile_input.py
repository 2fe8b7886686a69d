"""Malicious or meaningless files and command lines give a `UserError`, and no code in them is executed.

Every case runs with a memory limit. `pytest --slow` tries many more cases; its last lines count them. What the inputs
are is in tests/fuzzing/.
"""

import contextlib
import dataclasses
import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import forked_ranks
import pytest
import torch
from fuzzing.mutations import EXECUTED, MaliciousPickle
from fuzzing.registry import TARGETS
from fuzzing.target import make_input, try_input
from fuzzing.worker import MEMORY_LIMIT, limited_memory
from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.config.config_file import read_config_file
from nanogpt_lite.device import memory
from nanogpt_lite.tracking import metrics_file

OPTIONS: dict[str, Any] = {
    **TINY_GPT,
    "preset": "modern-cpu",
    "ngram": 2,
    "max_iters": 3,
    "eval_interval": 2,
    "warmup_iters": 1,
}
OUT = Path("runs/bottles-1")


@pytest.fixture
def trained(text_file):
    return ng.train("bottles.txt", **OPTIONS)


@pytest.fixture(autouse=True)
def memory_limit():
    with limited_memory():
        yield


@pytest.mark.parametrize("factor", [1, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.name)
def test_any_input_is_accepted_or_refused_with_a_clear_error(kind, factor, tmp_path, monkeypatch, case_counts):
    """The first inputs of each fuzz target. tests/fuzz.py tries more of them, and finds crashes and hangs too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "sync_to_disk", lambda path: None)
    target = kind()
    for number in range(factor * kind.share):
        try:
            try_input(target, make_input(target, 0, number))
        except BaseException as error:
            error.add_note(f"input {number} of {kind.name}")
            raise
    case_counts[f"inputs fuzzed: {kind.name}"] += factor * kind.share


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors"])
def test_pickle_as_a_checkpoint_is_refused_and_not_executed(trained, name, case_counts):
    for content in (pickle.dumps(MaliciousPickle()), pickle.dumps({"model": MaliciousPickle()}, protocol=0)):
        (OUT / name).write_bytes(content)
        with pytest.raises(ng.UserError, match="damaged"):
            ng.load(OUT, checkpoint=Path(name).stem)
    torch.save({"model": MaliciousPickle()}, OUT / name)
    with pytest.raises(ng.UserError, match="damaged"):
        ng.train(out_dir=OUT, init_from="resume" if name.startswith("last") else str(OUT / name))
    assert not EXECUTED.exists()
    case_counts["pickles refused"] += 3


@pytest.mark.parametrize("name", ["train.bin", "tokenizer.json", "manifest.json", "meta.pkl"])
def test_pickle_in_the_data_folder_is_not_executed(text_file, name, case_counts):
    dataset = ng.prepare("bottles.txt")
    (dataset.path / name).write_bytes(pickle.dumps(MaliciousPickle()))
    with contextlib.suppress(ng.UserError):
        ng.train(ng.prepare("bottles.txt"), **OPTIONS)
    with contextlib.suppress(ng.UserError):
        ng.train(ng.prepare(dataset.path), **OPTIONS)
    assert not EXECUTED.exists()
    case_counts["pickles refused"] += 1


def test_pickle_as_a_text_is_text_or_refused(text_file, case_counts):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        Path("text.pkl").write_bytes(pickle.dumps(MaliciousPickle(), protocol) * 9)
        with contextlib.suppress(ng.UserError):
            ng.prepare("text.pkl")
        case_counts["pickles refused"] += 1
    assert not EXECUTED.exists()


@pytest.mark.parametrize("claimed_size", [2**50, 2**63, 2**64 - 1, 100 * 2**20])
def test_header_that_claims_a_petabyte_is_refused_without_allocating(tmp_path, claimed_size):
    path = tmp_path / "last.safetensors"
    path.write_bytes(struct.pack("<Q", claimed_size) + b"{}")
    with pytest.raises(ng.UserError, match="damaged"):
        checkpoint_file.read_checkpoint(path)
    huge = {"a": {"dtype": "F32", "shape": [2**48], "data_offsets": [0, 2**50]}, "__metadata__": {"nanogpt_lite": "{}"}}
    header = json.dumps(huge).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ng.UserError, match="damaged"):
        checkpoint_file.read_checkpoint(path)


@pytest.mark.parametrize(
    "options",
    [
        {"n_layer": 10**9},
        {"n_embd": 10**9},
        {"n_embd": 2**62},
        {"n_head": 10**9},
        {"block_size": 10**15},
        {"ngram": 10**6},
        {"ngram_rows": 2**40},
        {"threads": 10**9},
        {"seed": 10**40},
        {"batch_size": 10**18},
    ],
)
def test_impossibly_large_network_is_refused_before_it_is_built(trained, options):
    path = OUT / "last.safetensors"
    saved = checkpoint_file.read_checkpoint(path)
    content = saved.metadata.to_json()
    checkpoint_file.write_tensors_and_json(path, saved.tensors, {**content, "config": {**content["config"], **options}})
    for call in (
        lambda: ng.train(out_dir=OUT, init_from="resume", max_iters=4),
        lambda: ng.load(path),
        lambda: ng.train("bottles.txt", init_from=str(path), **{**OPTIONS, "out_dir": "runs/new"}),
    ):
        with pytest.raises(ng.UserError):
            call()


def test_vocabulary_that_does_not_fit_the_weights_is_refused(trained):
    path = OUT / "last.safetensors"
    saved = checkpoint_file.read_checkpoint(path)
    chars = "".join(map(chr, range(0x20, 0xD000)))
    checkpoint_file.write_checkpoint(
        path, saved.tensors, dataclasses.replace(saved.metadata, tokenizer={"type": "char", "chars": chars})
    )
    with pytest.raises(ng.UserError, match="do not fit"):
        ng.load(path)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deeply_nested_json_is_an_error(trained, opening):
    deep = (opening * 100_000).encode()
    for path in (Path("data/bottles/manifest.json"), Path("data/bottles/tokenizer.json"), OUT / "config.json"):
        before = path.read_bytes()
        path.write_bytes(deep)
        with pytest.raises(ng.UserError):
            read_config_file(path) if path.parent == OUT else ng.prepare("data/bottles")
        path.write_bytes(before)
    (OUT / "metrics.jsonl").write_bytes(deep)
    assert metrics_file.read_metrics(OUT / "metrics.jsonl") == []


@pytest.mark.parametrize("id_", [65535, 60])
def test_token_ids_outside_the_vocabulary_are_an_error(text_file, id_):
    dataset = ng.prepare("bottles.txt")
    content = bytearray((dataset.path / "train.bin").read_bytes())
    content[100:102] = struct.pack("<H", id_)
    (dataset.path / "train.bin").write_bytes(content)
    with pytest.raises(ng.UserError, match="not those of the text that was prepared"):
        ng.train(dataset, **OPTIONS)


@pytest.mark.linux("RLIMIT_AS limits the memory on Linux only")
def test_memory_limit_is_in_force(trained):
    """Without the limit the cases above would not show a huge allocation."""
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        bytearray(2 * MEMORY_LIMIT)
    assert memory.is_out_of_memory(caught.value)
    forked_ranks.kill_all()


def peak_memory() -> int:
    """The most memory that this process has had so far, in kB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match
    return int(match[1])


def test_largest_allowed_block_size_allocates_no_memory_in_advance(text_file, tmp_path):
    options = {**OPTIONS, "n_layer": 100, "n_embd": 2, "n_head": 1, "ngram": 1}
    ng.train("bottles.txt", **options, eval_iters=1)
    saved = checkpoint_file.read_checkpoint(OUT / "last.safetensors")
    path = tmp_path / "large.safetensors"
    config = saved.metadata.config.replace({"block_size": 2**20})
    checkpoint_file.write_checkpoint(path, saved.tensors, dataclasses.replace(saved.metadata, config=config))
    before = peak_memory()
    assert ng.sample(path, max_new_tokens=2, device="cpu")
    assert peak_memory() - before < 100_000
