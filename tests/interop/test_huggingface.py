"""GPT-2 in the format of Hugging Face, imported and exported, compared with transformers itself."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nanogpt_lite as ng
from nanogpt_lite.cloud import jobs
from nanogpt_lite.cloud.storage import LocalStorage
from nanogpt_lite.interop import conversion
from nanogpt_lite.tokenizers import bpe
from nanogpt_lite.tokenizers.bpe import END_OF_TEXT

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
SHORT: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "max_iters": 4,
    "eval_interval": 2,
    "batch_size": 4,
    "warmup_iters": 1,
}
SHAPE: dict[str, Any] = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
NANOGPTS = {**SHORT, **SHAPE, "preset": "cpu", "dropout": 0.0}


@pytest.fixture
def gpt2(text_file):
    """A small GPT-2 with random weights, as transformers and its tokenizers write it."""
    torch.manual_seed(0)
    merges = bpe.train_bpe("bpe-300", [text_file.read_text()], 300).to_json()["merges"]
    symbols = [*dict.fromkeys([*bpe.unicode_to_bytes(), *(merge.replace(" ", "") for merge in merges)]), END_OF_TEXT]
    form = transformers.GPT2Config(vocab_size=len(symbols), n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(form).eval()
    for parameter in model.parameters():  # biases and gains too
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained("theirs")
    Path("theirs/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    Path("theirs/vocab.json").write_text(
        json.dumps({symbol: number for number, symbol in enumerate(symbols)}), encoding="utf-8"
    )
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]))[0] if isinstance(model, ng.GPT) else model(torch.tensor([ids])).logits


def start_from(init_from, **options):
    """A run from these weights, whose learning rate is too small to change them."""
    still = {"learning_rate": 1e-12, "decay_lr": False, "weight_decay": 0.0}
    return ng.train("bottles.txt", init_from=init_from, **{**SHORT, **still, **options})


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
    # as on Modal, where the data has a folder of its own, and a call that is started again goes on
    options = {**SHORT, "owner": "a call", "init_from": "gpt2-medium", "dataset": "bottles.txt", "block_size": 16}
    run = jobs.train_job(LocalStorage(), out_dir="tuned", **options)
    assert run.data_folder == Path("data/bottles-for-gpt2-medium")
    assert json.loads((run.out_dir / "config.json").read_text())["config"]["learning_rate"] == 3e-5
    assert jobs.train_job(LocalStorage(), out_dir="tuned", **{**options, "max_iters": 6}).metrics[-1]["step"] == 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"tied": False},
        {"tokenizer": "byte"},
        {"tokenizer": "bpe-300"},
        {"activation": "gelu_tanh", "optimizer": "muon"},
    ],
)
def test_transformers_loads_an_exported_model_with_equal_logits_and_ids(text_file, options):
    text_file.write_text(text_file.read_text() + "ä 天\t🙂  \r\n" * 20, encoding="utf-8")
    run = ng.train("bottles.txt", **{**NANOGPTS, "dropout": 0.1, **options})
    folder = conversion.to_huggingface(run, "exported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, tokenizer = ng.load(run, device="cpu")
    prompt = "9 green  ä天\t🙂\n"
    ids = tokenizer.encode(prompt).tolist()
    assert their_tokenizer(prompt)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == prompt
    ids = tokenizer.encode("9 green").tolist()[:9]
    torch.testing.assert_close(logits_of(model, ids), logits_of(theirs, ids), atol=1e-5, rtol=1e-5)
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text).tolist() == ids
    drawn = theirs.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False, pad_token_id=0)[0].tolist()
    ours = ng.sample((model, tokenizer), start=text, temperature=0.0, max_new_tokens=7, threads=1)[0]
    assert tokenizer.decode(drawn) == ours
    assert (theirs.config.resid_pdrop, theirs.config.attn_pdrop, theirs.config.embd_pdrop) == (0.1, 0.1, 0.1)
    card = (folder / "README.md").read_text()
    assert json.loads((run.out_dir / "config.json").read_text())["dataset"]["sha256"] in card
    assert (folder / "loss.png").stat().st_size > 1000
    assert "![loss curves](loss.png)" in card


def test_a_network_that_transformers_lacks_is_not_exported(text_file):
    run = ng.train("bottles.txt", preset="modern-cpu", **SHORT, **SHAPE)
    with pytest.raises(ng.UserError, match=r"position=rotary, qk_norm=True, ngram=4, activation=relu2; .* `preset="):
        conversion.to_huggingface(run, "exported")
    assert not Path("exported").exists()


def test_a_tokenizer_that_transformers_lacks_is_not_exported(text_file, monkeypatch):
    run = ng.train("bottles.txt", **NANOGPTS, tokenizer="byte")
    monkeypatch.setattr("nanogpt_lite.interop.huggingface.ByteTokenizer", ng.CharTokenizer)  # as if it were a new one
    with pytest.raises(ng.UserError, match="transformers has no tokenizer like byte; train with `tokenizer='char'`"):
        conversion.to_huggingface(run, "exported")
    assert not Path("exported").exists()


def test_an_exported_character_tokenizer_is_refused_on_import(text_file):
    folder = conversion.to_huggingface(ng.train("bottles.txt", **NANOGPTS), "exported")
    with pytest.raises(ng.UserError, match="its model is not BPE"):
        start_from(str(folder))


def test_pytorch_model_bin_is_refused(gpt2):
    Path("theirs/model.safetensors").rename("theirs/pytorch_model.bin")
    with pytest.raises(ng.UserError, match=r"or a folder with config.json, model.safetensors and tokenizer.json"):
        start_from("theirs")


def test_export_then_import_gives_the_same_weights(text_file):
    run = ng.train("bottles.txt", **{**NANOGPTS, "bias": True, "tokenizer": "bpe-300"})
    folder = conversion.to_huggingface(run, "exported")
    back = start_from(str(folder))
    before, after = (load_file(conversion.export_weights(one)) for one in (run, back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], atol=1e-6, rtol=0)
