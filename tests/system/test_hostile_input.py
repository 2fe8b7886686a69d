"""Malicious or meaningless files and command lines give a `UserError`, and no code in them is executed.

Every case runs with a memory limit. `pytest --slow` tries many more cases; its last lines count them.
"""

import contextlib
import copy
import dataclasses
import importlib
import json
import pickle
import re
import struct
import sys
from pathlib import Path
from typing import Any

import forked_ranks
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite.api import pipeline, setup
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.cli import main
from nanogpt_lite.cli.commands import COMMANDS
from nanogpt_lite.config.options import RunConfig, TrainConfig, read_config_file
from nanogpt_lite.data import preparation
from nanogpt_lite.device import memory
from nanogpt_lite.interop import conversion, nanogpt_import
from nanogpt_lite.tokenizers.registry import tokenizer_from_json
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
EXECUTED = Path("executed")  # created by the pickles below if they are loaded
MEMORY_LIMIT = 2 * 2**30  # bytes, beyond what the process has already

few_and_many = pytest.mark.parametrize("cases", [1, pytest.param(25, marks=pytest.mark.slow)])
UNUSUAL = st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e308, "", "\0", "\ud800", "é" * 300, [], {}, None, True])
ANY_JSON = st.recursive(
    UNUSUAL | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class MaliciousPickle:
    def __reduce__(self):
        return (Path.touch, (EXECUTED.absolute(),))


@pytest.fixture
def trained(text_file):
    return ng.train("bottles.txt", **OPTIONS)


@pytest.fixture(autouse=True)
def memory_limit():
    """Limits the memory of the process, so that a huge allocation fails instead of exhausting the machine."""
    if sys.platform != "linux":
        yield
        return
    resource = importlib.import_module("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    (used,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
    resource.setrlimit(resource.RLIMIT_AS, (int(used) * 1024 + MEMORY_LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def try_cases(max_examples, strategy, case, case_counts, name):
    """Call `case` with examples of a strategy; the only errors allowed are `UserError` and `ExternalError`."""
    messages: list[str] = []
    tried, out_of_memory = [], []

    @settings(max_examples=max_examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attempt(example):
        tried.append(1)
        try:
            case(example)
        except ng.NanoGPTLiteError as error:
            messages.append(str(error))
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            out_of_memory.append(example)

    attempt()
    assert not out_of_memory, "an allocation beyond the memory limit"
    assert not EXECUTED.exists()
    assert max((message.count("\n") for message in messages), default=0) <= 1
    case_counts[f"inputs fuzzed: {name}"] += len(tried)


@st.composite
def damaged(draw, content):
    """The bytes with a part changed, missing, doubled, or inserted."""
    start = draw(st.integers(0, len(content)))
    end = min(start + draw(st.sampled_from([0, 1, 2, 8, 100])), len(content))
    new = draw(st.binary(max_size=12) | st.just(content[start:end] * 2) | st.just(pickle.dumps(MaliciousPickle())))
    return content[:start] + new + content[end:]


@st.composite
def changed_json(draw, value):
    """The JSON value with one part, at any depth, replaced, missing, or under another key."""
    changed = parent = copy.deepcopy(value)
    while True:
        key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
        child = parent[key]
        if not (isinstance(child, dict | list) and child) or draw(st.integers(0, 3)) == 0:
            break
        parent = child
    change = draw(st.sampled_from(["value", "value", "value", "missing", "name"]))
    if change == "value":
        parent[key] = draw(ANY_JSON)
    else:
        child = parent.pop(key)
        if change == "name" and isinstance(parent, dict):
            parent[draw(st.text(max_size=9))] = child
    return changed


def use_checkpoint(path):
    """Call everything that reads a checkpoint."""
    checkpoint_file.read_tensors_and_json(path)
    with contextlib.suppress(ng.UserError):
        ng.load(path, device="cpu")
    with contextlib.suppress(ng.UserError):
        "".join(ng.stream(path, max_new_tokens=2, device="cpu"))
    with contextlib.suppress(ng.UserError):
        ng.evaluate(path, device="cpu")
    quick: dict[str, Any] = {"max_iters": 4, "eval_iters": 1, "compile": False}
    ng.train(out_dir=path.parent, init_from="resume", **quick)


@few_and_many
def test_damaged_checkpoint_is_an_error(trained, cases, case_counts):
    path = OUT / "last.safetensors"
    content = path.read_bytes()

    def case(example):
        path.write_bytes(example)
        if example != content:
            checkpoint_file.read_tensors_and_json(path)
            raise AssertionError("the damage was not detected")

    try_cases(200 * cases, st.binary(max_size=200) | damaged(content), case, case_counts, "checkpoint files")


@few_and_many
def test_intact_checkpoint_with_meaningless_metadata_gives_only_user_errors(trained, cases, case_counts):
    path = OUT / "last.safetensors"
    saved = checkpoint_file.read_checkpoint(path)

    def case(metadata):
        checkpoint_file.write_tensors_and_json(path, saved.tensors, metadata)
        use_checkpoint(path)

    metadata = changed_json(saved.metadata.to_json()).filter(lambda value: isinstance(value, dict))
    try_cases(40 * cases, metadata, case, case_counts, "descriptions in checkpoints")


@few_and_many
def test_checkpoint_with_other_tensors_gives_only_user_errors(trained, cases, case_counts):
    path = OUT / "last.safetensors"
    saved = checkpoint_file.read_checkpoint(path)
    names = sorted(saved.tensors)

    def case(example):
        removed, replaced, source = example
        tensors = {**saved.tensors, replaced: saved.tensors[source].clone()}
        tensors.pop(removed, None)
        checkpoint_file.write_checkpoint(path, tensors, saved.metadata)
        use_checkpoint(path)

    any_name = st.sampled_from(names)
    try_cases(40 * cases, st.tuples(any_name, any_name, any_name), case, case_counts, "tensors in checkpoints")


@pytest.mark.parametrize("name", ["fingerprints.json", "manifest.json", "tokenizer.json", "train.bin", "val.bin"])
@few_and_many
def test_damaged_prepared_data_gives_only_user_errors(text_file, cases, case_counts, name):
    dataset = ng.prepare("bottles.txt")
    path = dataset.path / name
    content = path.read_bytes()
    examples = st.binary(max_size=200) | damaged(content)
    if name.endswith(".json"):
        examples |= changed_json(json.loads(content)).map(lambda value: json.dumps(value).encode())

    def case(example):
        path.write_bytes(example)
        try:
            for call in (preparation.open_or_prepare, preparation.prepare):
                opened = call(dataset.path)
                assert opened.sha256 == dataset.sha256
                assert opened.tokenizer.decode(opened.train).startswith("0 green bottles")
        except ng.UserError:
            assert name != "fingerprints.json"  # a damaged cache is no error
            raise
        finally:
            path.write_bytes(content)

    try_cases(50 * cases, examples, case, case_counts, "prepared data")


@few_and_many
def test_any_bytes_as_a_text_give_only_user_errors(text_file, cases, case_counts):
    def case(example):
        Path("any.txt").write_bytes(example)
        dataset = ng.prepare("any.txt", tokenizer="byte" if len(example) % 2 else "char")
        assert dataset.tokenizer.decode(dataset.train) + dataset.tokenizer.decode(dataset.val)

    texts = st.binary(min_size=9, max_size=60) | st.text(min_size=9, max_size=60).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
    try_cases(100 * cases, texts, case, case_counts, "texts")


@few_and_many
def test_any_metrics_file_can_be_read(text_file, cases, case_counts):
    path = Path("metrics.jsonl")
    lines = ANY_JSON.map(json.dumps) | st.text(max_size=30) | st.just('{"kind": "eval", "step": 3, "val_loss": 1.5')

    def case(example):
        path.write_bytes("\n".join(example).encode("utf-8", "surrogatepass"))
        assert all(isinstance(record["step"], int) for record in metrics_file.read_metrics(path))
        metrics_file.MetricsFile(path, keep_until=2).close()
        assert all(record["step"] <= 2 for record in metrics_file.read_metrics(path))

    try_cases(100 * cases, st.lists(lines, max_size=5), case, case_counts, "metrics files")


@few_and_many
def test_any_config_file_and_any_tokenizer_gives_only_user_errors(trained, cases, case_counts):
    path = OUT / "config.json"
    content = path.read_bytes()

    def case(example):
        path.write_bytes(example)
        options = read_config_file(path)
        TrainConfig.from_dict(options)

    forms = changed_json(json.loads(content)).map(lambda value: json.dumps(value).encode())
    try_cases(100 * cases, st.binary(max_size=99) | damaged(content) | forms, case, case_counts, "config files")
    form = {"type": "char", "chars": "abc"}
    pairs = {"type": "bpe-260", "merges": ["a b", "ab c", "c c"], "special": ["<end>"]}
    tokenizers = ANY_JSON | changed_json(form) | changed_json(pairs)
    try_cases(100 * cases, tokenizers, tokenizer_from_json, case_counts, "tokenizers")


@pytest.fixture
def plain(text_file):
    """A run whose network nanoGPT and transformers support too."""
    options = {name: value for name, value in OPTIONS.items() if name != "ngram"}
    return ng.train("bottles.txt", **options | {"preset": "cpu"})


@few_and_many
def test_any_checkpoint_of_nanogpt_gives_only_user_errors(plain, cases, case_counts):
    path, meta = conversion.to_nanogpt(plain, "theirs"), Path("theirs/data/bottles/meta.pkl")
    contents = path.read_bytes(), meta.read_bytes()

    def case(example):
        content, meta_content = example
        if isinstance(content, dict):
            torch.save(content, path)
        else:
            path.write_bytes(content or contents[0])
        meta.write_bytes(meta_content or contents[1])
        nanogpt_import.import_nanogpt_checkpoint(path, meta)

    # both files were just written by this test, and are read as nanoGPT reads them
    changed = changed_json(torch.load(path, weights_only=True))
    metas = damaged(contents[1]) | changed_json(pickle.loads(contents[1])).map(pickle.dumps)
    examples = st.tuples(changed | damaged(contents[0]), st.none()) | st.tuples(st.none(), metas)
    try_cases(80 * cases, examples, case, case_counts, "checkpoints of nanoGPT")


@few_and_many
def test_any_hugging_face_folder_gives_only_user_errors(text_file, cases, case_counts):
    pairs = ng.train("bottles.txt", **OPTIONS | {"preset": "cpu", "ngram": 1, "tokenizer": "bpe-260"})
    folder = conversion.to_huggingface(pairs, "theirs")
    contents = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json", "model.safetensors")}

    def case(example):
        for name, content in {**contents, **example}.items():
            (folder / name).write_bytes(content)
        setup.read_initial_weights("theirs", 4)

    forms = [
        changed_json(json.loads(contents[n])).map(lambda value: json.dumps(value).encode())
        for n in contents
        if "json" in n
    ]
    bytes_of = [damaged(content) for content in contents.values()]
    parts = zip([*contents, "config.json", "tokenizer.json"], [*bytes_of, *forms], strict=True)
    try_cases(
        80 * cases,
        st.one_of([st.tuples(st.just(n), c) for n, c in parts]).map(lambda pair: dict([pair])),
        case,
        case_counts,
        "folders of Hugging Face",
    )


WORDS = st.sampled_from([*COMMANDS, *(f"--{name}" for name in RunConfig.names()), "--json", "--overwrite", "--verify"])
VALUES = st.sampled_from(
    ["3", "0", "-1", "1e9", "nan", "inf", "true", "cpu", "bottles.txt", "FILE:x", "runs", "", "\0"]
)


@few_and_many
def test_any_command_line_gives_only_user_errors(trained, cases, case_counts, monkeypatch, capsys):
    def validate_only(kind):
        def validate(**arguments):
            switches = {"preset", "config", "overwrite", "verify", "console"}
            kind.from_dict({name: value for name, value in arguments.items() if name not in switches})
            raise ng.UserError("the arguments are valid, and the test stops here")

        return validate

    def offline(*_args, **_options):
        raise ng.ExternalError("no network in this test")

    monkeypatch.setattr(pipeline, "train", validate_only(TrainConfig))
    monkeypatch.setattr(pipeline, "run", validate_only(RunConfig))
    monkeypatch.setattr("nanogpt_lite.data.download.fetch", offline)

    def case(argv):
        try:
            status: object = main.main(argv)
        except SystemExit as ended:
            status = ended.code
        assert status in (0, 1, 2), argv
        assert "Traceback" not in capsys.readouterr().err

    words = st.lists(WORDS | VALUES | st.text(max_size=12), max_size=6)
    named = st.tuples(st.sampled_from(sorted(COMMANDS)), words).map(lambda parts: [parts[0], *parts[1]])
    try_cases(60 * cases, words | named, case, case_counts, "command lines")


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
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
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
