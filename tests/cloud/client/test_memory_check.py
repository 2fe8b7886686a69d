"""A training that does not fit into the memory of a GPU is found before the GPU is rented."""

import json
import re

import pytest
from fake_volume import FakeVolume, volume_of_version_0_1

import nanogpt_lite as ng
from nanogpt_lite.cloud.client import memory_check, plans, rental
from nanogpt_lite.cloud.client.dataset_texts import Text
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.device.gpus import GPUS

LARGE = {"dataset": "sea", "block_size": 1024, "n_layer": 24, "n_head": 16, "n_embd": 1024, "batch_size": 32}
XL = {"dataset": "sea", "init_from": "gpt2-xl"}


@pytest.fixture
def volume(tmp_path, monkeypatch) -> FakeVolume:
    monkeypatch.chdir(tmp_path)
    volume = volume_of_version_0_1(tmp_path / "volume")
    (volume.folder / "texts").mkdir(exist_ok=True)
    (volume.folder / "texts/sea.txt").write_text("The ship sails over the sea.\n" * 400, encoding="utf-8")
    manifest = volume.folder / "datasets/sea/manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "train_tokens": 100_000}), encoding="utf-8")
    return volume


def notes(volume, gpu="L4", **flags):
    return plans.plan_training(StoredFiles(volume), flags, gpu=gpu).notes


@pytest.mark.parametrize("preset", ["tutorial", "shakespeare_char", "cpu", "modern", "modern-cpu"])
def test_presets_fit_into_the_smallest_gpu(volume, preset):
    assert min(gpu.memory for gpu in GPUS if gpu.memory) == rental.parse_gpu("T4").memory
    assert notes(volume, "T4", dataset="sea", preset=preset) == ()


def test_step_that_does_not_fit_is_a_warning_with_the_remedies(volume):
    (note,) = notes(volume, **LARGE)
    assert re.fullmatch(
        r"warning: by an estimate, a step with 32 sequences at a time takes [\d.]+ GB, and of the 24 GB of one L4 it "
        r"can use 90%; it will take fewer: 8\. Give --checkpoint-activations True, with which it takes [\d.]+ GB, a "
        r"smaller --batch-size, or a larger --gpu",
        note,
    ), note
    for remedy in ({"checkpoint_activations": True}, {"batch_size": 8}, {"gpu": "A100-80GB"}, {"device": "cpu"}):
        assert notes(volume, **{**LARGE, **remedy}) == (), remedy


def test_single_sequence_that_does_not_fit_is_a_warning(volume):
    long = {**LARGE, "block_size": 15_000, "n_embd": 2048, "n_layer": 12, "batch_size": 1}
    (note,) = notes(volume, **long)
    assert "even one does not fit. Give --checkpoint-activations True" in note
    assert "a smaller --block-size, or a larger --gpu" in note
    (note,) = notes(volume, **{**long, "checkpoint_activations": True, "n_layer": 20, "block_size": 50_000})
    assert note.endswith("even one does not fit. Give a smaller --block-size, or a larger --gpu")


def test_network_that_is_too_large_by_itself_is_an_error(volume):
    with pytest.raises(ng.UserError, match=r"take 24\.9 GB on each GPU, and one L4 has 24 GB; give a larger --gpu"):
        notes(volume, **XL)
    for gpu in ("A100-40GB", "L40S", "A100-80GB", "H100"):
        assert notes(volume, gpu, **XL) == ()


def test_each_gpu_that_the_call_may_get_is_checked(volume):
    assert len(notes(volume, "T4,L4,H200", **LARGE)) == 2
    with pytest.raises(ng.UserError, match="and one T4 has 16 GB"):
        notes(volume, "H100,T4", **XL)


def test_several_gpus_share_the_sequences_of_a_step_but_not_the_network(volume):
    options = {**LARGE, "batch_size": 64}
    assert len(notes(volume, "A100-40GB", **options)) == 1
    assert notes(volume, "A100-40GB:4", **options) == ()
    with pytest.raises(ng.UserError, match="31.2 GB on each GPU"):  # with the buckets of the gradients
        notes(volume, "L4:2", **XL, gradient_accumulation_steps=2)


def test_smaller_block_size_crops_the_context_of_gpt2(volume):
    xl = {**XL, "batch_size": 16}
    assert len(notes(volume, "A100-40GB", **xl)) == 1
    assert notes(volume, "A100-40GB", **xl, block_size=64) == ()
    assert notes(volume, "A100-40GB", **xl, block_size=4096) == notes(volume, "A100-40GB", **xl)


def test_run_that_is_resumed_or_that_gives_its_weights_has_its_network_and_vocabulary(volume):
    config = volume.folder / "runs/plain/config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    network = {"n_layer": 30, "n_head": 16, "n_embd": 2048, "block_size": 32}
    content["config"] |= network
    config.write_text(json.dumps(content), encoding="utf-8")
    for flags in (
        {"init_from": "resume", "out_dir": "plain", "max_iters": 40},
        {"init_from": "plain", "optimizer": "adamw"},
    ):
        with pytest.raises(ng.UserError, match=r"take 24\.\d GB on each GPU, and one L4 has 24 GB"):
            notes(volume, dataset="sea", **flags)
    content["dataset"]["vocab_size"] = 500_000
    config.write_text(json.dumps(content), encoding="utf-8")
    assert StoredFiles(volume).run_vocab_size("plain") == 500_000
    assert StoredFiles(volume).run_vocab_size("typo") == 0
    with pytest.raises(ng.UserError, match=r"take 40\.\d GB on each GPU"):
        notes(volume, dataset="sea", init_from="plain", optimizer="adamw")


def test_sweep_warns_once(volume):
    grid = {name: str(value) for name, value in LARGE.items()}
    sweep = plans.plan_sweep(StoredFiles(volume), {**grid, "learning_rate": "1e-3,1e-2"}, gpu="L4")
    assert len(sweep.notes) == 1
    assert sweep.notes[0].startswith("warning: by an estimate")


@pytest.mark.parametrize(
    ("tokenizer", "text", "vocab_size"),
    [
        ("byte", Text("sea"), 256),
        ("bpe-4096", Text("sea"), 4096),
        ("gpt2", Text("sea"), 50257),
        ("char", Text("sea", characters="abc"), 3),
        ("auto", Text("https://example.com/sea.txt"), 256),
    ],
)
def test_vocabulary_of_a_text(tokenizer, text, vocab_size):
    assert memory_check.guess_vocab_size(tokenizer, text) == vocab_size


def test_logits_of_a_large_vocabulary_count(volume):
    options = {"dataset": "sea", "preset": "shakespeare_char", "batch_size": 256}
    assert notes(volume, **options) == ()
    assert len(notes(volume, **options, tokenizer="gpt2")) == 1
    assert notes(volume, **options, tokenizer="gpt2", checkpoint_activations=True) == ()


def test_config_with_the_network_of_gpt2():
    config = memory_check.with_gpt2_network(TrainConfig(), "gpt2-large", 0)
    assert (config.n_layer, config.n_embd, config.block_size, config.tokenizer) == (36, 1280, 1024, "gpt2")
