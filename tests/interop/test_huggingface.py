"""GPT-2 in the format of Hugging Face, from a folder and from the hub, compared with transformers itself."""

import hashlib
import json
import shutil
from pathlib import Path

import gpt2_folder
import pytest
import torch
from gpt2_folder import SHORT, logits_of, start_from
from safetensors.torch import load_file, save_file

import nanogpt_lite as ng
from nanogpt_lite.cloud import jobs
from nanogpt_lite.cloud.calls import Call, LocalDict
from nanogpt_lite.cloud.storage import LocalStorage
from nanogpt_lite.tokenizers import bpe
from nanogpt_lite.tokenizers.bpe import END_OF_TEXT

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
gpt2 = gpt2_folder.gpt2  # a fixture


@pytest.mark.parametrize("block_size", [32, 8])
def test_gpt2_from_a_folder_has_the_logits_of_transformers(gpt2, block_size):
    run = start_from("theirs", **({"block_size": block_size} if block_size < 32 else {}))
    model, tokenizer = ng.load(run)
    assert model.config.block_size == block_size
    ids = tokenizer.encode("7 green bottles hanging")[:block_size].tolist()
    torch.testing.assert_close(logits_of(model, ids), logits_of(gpt2, ids), atol=1e-5, rtol=1e-5)
    theirs = transformers.AutoTokenizer.from_pretrained("theirs")
    assert theirs("7 green bottles hanging")["input_ids"][:block_size] == ids


def test_old_files_without_prefix_and_with_masks_have_the_same_logits(gpt2):
    """Those of GPT-2 itself: names without a prefix, and the masks of attention among the weights."""
    path = Path("theirs/model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    assert "wte.weight" in tensors
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, path)
    model, tokenizer = ng.load(start_from("theirs"))
    ids = tokenizer.encode("7 green bottles hanging").tolist()
    torch.testing.assert_close(logits_of(model, ids), logits_of(gpt2, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wte.weight", (10**9, 0)),
        ("wte.weight", (3, 2, 16)),
        ("h.0.attn.c_attn.weight", (16, 3, 16)),
        ("wpe.weight", ()),
    ],
)
def test_weights_of_a_wrong_shape_are_refused(gpt2, name, shape):
    path = Path("theirs/model.safetensors")
    save_file({**load_file(path), f"transformer.{name}": torch.zeros(shape)}, path)
    with pytest.raises(ng.UserError, match="holds no GPT-2|do not fit"):
        start_from("theirs")


def test_finetuning_takes_nanogpts_options_and_resumes(gpt2):
    run = ng.train("bottles.txt", init_from="theirs", out_dir="runs/tuned", **{**SHORT, "block_size": 16})
    config = json.loads((run.out_dir / "config.json").read_text())["config"]
    assert (config["learning_rate"], config["decay_lr"], config["gradient_accumulation_steps"]) == (3e-5, False, 32)
    assert (config["tokenizer"], config["activation"], config["bias"]) == ("bpe-301", "gelu_tanh", True)
    assert (config["beta2"], config["dropout"], config["batch_size"]) == (0.95, 0.0, 4)
    assert ng.prepare("bottles.txt", tokenizer="bpe-301").tokenizer.to_json()["special"] == []  # made of this text
    losses = [record["val_loss"] for record in run.metrics if record["kind"] == "eval"]
    assert losses[-1] < losses[0]
    ng.train(out_dir="runs/tuned", init_from="resume", max_iters=6)
    assert ng.prepare("bottles.txt").tokenizer.to_json()["type"] == "char"  # GPT-2's tokens are chosen for no other run
    assert "green" in "".join(ng.sample(run, start="7 green", max_new_tokens=5, device="cpu"))


def test_config_json_repeats_a_run_with_a_shorter_block_size(gpt2):
    first = start_from("theirs", block_size=16)
    assert ng.load(ng.train(config=str(first.out_dir / "config.json"), device="cpu"))[0].config.block_size == 16


def test_a_tokenizer_with_other_ids_or_splitting_is_refused(gpt2):
    """Most tokenizers that people train have their special texts first."""
    text = Path("bottles.txt").read_text(encoding="utf-8")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([text], vocab_size=301, special_tokens=[END_OF_TEXT])
    for name in ("merges.txt", "vocab.json"):
        Path("theirs", name).unlink()
    made.save("theirs/tokenizer.json")
    with pytest.raises(ng.UserError, match="assigns its ids in another order"):
        start_from("theirs")
    form = json.loads(Path("theirs/tokenizer.json").read_text(encoding="utf-8"))
    before, pairs = form["pre_tokenizer"], form["model"]
    for changes in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {**before, "add_prefix_space": True}},
        {"pre_tokenizer": {**before, "use_regex": False}},
        {"model": {**pairs, "continuing_subword_prefix": "##"}},
        {"model": {**pairs, "end_of_word_suffix": "</w>"}},
    ):
        Path("theirs/tokenizer.json").write_text(json.dumps({**form, **changes}), encoding="utf-8")
        with pytest.raises(ng.UserError, match="no tokenizer like GPT-2's"):
            start_from("theirs")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "merges.txt", "vocab.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"a b c\n", b"\xff", b"[" * 100_000])
def test_a_folder_with_a_missing_or_invalid_file_is_refused(gpt2, file, content):
    path = Path("theirs") / file
    path.unlink() if content is None else path.write_bytes(content)
    message = "theirs holds no GPT-2|no tokenizer like|assigns its ids in another order|invalid BPE merge|no checkpoint"
    message += "|model_type=None"
    with pytest.raises(ng.UserError, match=message):
        start_from("theirs")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "silu"),
        ("layer_norm_epsilon", 1e-6),
        ("n_inner", 50),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("tie_word_embeddings", False),
    ],
)
def test_an_unsupported_network_is_refused_with_its_option(gpt2, name, value):
    path = Path("theirs/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), name: value}), encoding="utf-8")
    with pytest.raises(ng.UserError, match=f"no network with {name}={value!r}"):
        start_from("theirs")


def test_message_about_an_unsupported_network_is_short(gpt2):
    """Found by fuzzing."""
    path = Path("theirs/config.json")
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "activation_function": "a" * 5000}),
        encoding="utf-8",
    )
    with pytest.raises(ng.UserError, match="no network with activation_function='aaa") as caught:
        start_from("theirs")
    assert len(str(caught.value)) < 500


@pytest.fixture
def cached(text_file, monkeypatch):
    """The folder where the hub's files of gpt2 are kept, without any, and a hub that is not reached."""
    import huggingface_hub

    def unreachable(*_names):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(text_file.parent / "hub"))
    model = text_file.parent / "hub/models--openai-community--gpt2"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0123abc")
    return model / "snapshots/0123abc"


def test_an_unreachable_hub_is_an_external_error(cached):
    for call in (lambda: start_from("gpt2"), lambda: ng.prepare("bottles.txt", tokenizer="gpt2")):
        with pytest.raises(
            ng.ExternalError, match=r"openai-community/gpt2 cannot be fetched \(no route to host\); check"
        ):
            call()
    assert not list(Path("data").rglob("*.bin"))


def accept_merges_as_gpt2(monkeypatch):
    """Let the merges of `theirs` be those of the real one."""
    merges = [line for line in Path("theirs/merges.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    monkeypatch.setattr(bpe, "GPT2_MERGES_SHA256", hashlib.sha256("\n".join(merges).encode()).hexdigest())


def test_files_in_the_hub_cache_need_no_connection(gpt2, cached, monkeypatch):
    cached.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "merges.txt"):
        shutil.copy(Path("theirs") / name, cached)
    with pytest.raises(ng.ExternalError, match=r"merges.txt of openai-community/gpt2 in .* is not GPT-2"):
        start_from("gpt2")
    accept_merges_as_gpt2(monkeypatch)
    assert start_from("gpt2").metrics[-1]["step"] == SHORT["max_iters"]


def test_a_missing_huggingface_hub_is_a_user_error_that_names_the_extra(text_file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ng.UserError, match=r"pip install 'nanogpt-lite\[hf\]'"):
        start_from("gpt2")


def test_gpt2_medium_is_downloaded_from_the_hub(gpt2, cached, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(Path("theirs") / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    accept_merges_as_gpt2(monkeypatch)
    run = start_from("gpt2-medium")
    assert asked == [
        ("openai-community/gpt2-medium", "config.json"),
        ("openai-community/gpt2-medium", "model.safetensors"),
        ("openai-community/gpt2", "merges.txt"),
    ]
    model, tokenizer = ng.load(run)
    ids = tokenizer.encode("7 green").tolist()
    torch.testing.assert_close(logits_of(model, ids), logits_of(gpt2, ids), atol=1e-5, rtol=1e-5)
    # as on Modal, where another call resumes the run
    options = {**SHORT, "init_from": "gpt2-medium", "dataset": "bottles.txt", "block_size": 16, "out_dir": "tuned"}
    call = Call("a call", LocalDict())
    assert jobs.train_job(LocalStorage(), call, **options)["run"] == "tuned"
    run = ng.Run(Path("runs/tuned"))
    assert run.data_folder == Path("data/bottles-gpt2")
    assert json.loads((run.out_dir / "config.json").read_text())["config"]["learning_rate"] == 3e-5
    assert jobs.train_job(LocalStorage(), call, **{**options, "init_from": "resume", "max_iters": 6})["step"] == 6


def test_pytorch_model_bin_is_refused(gpt2):
    Path("theirs/model.safetensors").rename("theirs/pytorch_model.bin")
    with pytest.raises(ng.UserError, match=r"or a folder with config.json, model.safetensors and tokenizer.json"):
        start_from("theirs")
