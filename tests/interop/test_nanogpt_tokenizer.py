"""The tokenizer of a nanoGPT checkpoint: meta.pkl, or GPT-2's merges."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from nanogpt_files import make_nanogpt_ckpt, save_ckpt

import nanogpt_lite as ng
from nanogpt_lite.interop import conversion
from nanogpt_lite.tokenizers import bpe, gpt2


@pytest.fixture
def nanogpt_ckpt(text_file):
    return make_nanogpt_ckpt(text_file)


def test_meta_pkl_is_not_searched_outside_the_data_folder(nanogpt_ckpt):
    content, *_ = nanogpt_ckpt
    Path("data/bottles").rename("bottles")
    for dataset in ("../bottles", Path("bottles").absolute()):
        save_ckpt(content, config={**content["config"], "dataset": str(dataset)})
        with pytest.raises(ng.UserError, match=r"there is no data/.*/meta.pkl, neither here"):
            conversion.from_nanogpt("out/ckpt.pt")


def test_meta_pkl_is_found_from_inside_the_checkpoint_folder(nanogpt_ckpt, monkeypatch):
    monkeypatch.chdir("out")
    assert conversion.from_nanogpt("ckpt.pt").out_dir == Path("runs/bottles-1")


def test_gpt2_merges_that_cannot_be_fetched_are_an_external_error(nanogpt_ckpt, monkeypatch):
    def unreachable():
        raise ng.ExternalError("no route to host")

    content, *_ = nanogpt_ckpt
    Path("data/bottles/meta.pkl").unlink()
    save_ckpt(content, model_args={**content["model_args"], "vocab_size": 50257})
    monkeypatch.setattr(gpt2, "fetch_gpt2_merges", unreachable)
    with pytest.raises(ng.ExternalError, match="no route"):
        conversion.from_nanogpt("out/ckpt.pt")


def gpt2_merges():
    """As many as GPT-2 has: every pair of two bytes, as far as they go."""
    content = list(bpe.unicode_to_bytes())
    return [f"{one} {other}" for one in content for other in content][:50000]


@pytest.mark.parametrize("size", [50257, 50304])
def test_without_meta_pkl_the_tokenizer_is_that_of_gpt2(nanogpt_ckpt, monkeypatch, size):
    """With and without the rows that fill nanoGPT's vocabulary up."""
    content, *_ = nanogpt_ckpt
    Path("data/bottles/meta.pkl").unlink()
    wte = torch.randn(size, 16)
    args = {**content["model_args"], "vocab_size": size}
    weights = {**content["model"], "transformer.wte.weight": wte, "lm_head.weight": wte}
    save_ckpt(content, model=weights, model_args=args, optimizer={"state": {}})
    with pytest.raises(ng.UserError, match="give its merges.txt"):
        Path("merges.txt").write_text("a b\n", encoding="utf-8")
        conversion.from_nanogpt("out/ckpt.pt", meta="merges.txt")
    monkeypatch.setattr(bpe, "GPT2_MERGES_SHA256", hashlib.sha256("\n".join(gpt2_merges()).encode()).hexdigest())
    Path("merges.txt").write_text("#version: 0.2\n" + "\n".join(gpt2_merges()) + "\n", encoding="utf-8")
    run = conversion.from_nanogpt("out/ckpt.pt", meta="merges.txt")
    model, tokenizer = ng.load(run, device="cpu")
    assert model.transformer.wte.weight.shape == (size, 16)
    assert tokenizer.vocab_size == size
    assert tokenizer.encode("<|endoftext|>").tolist() == [50256]
    monkeypatch.setattr(gpt2, "fetch_gpt2_merges", gpt2_merges)
    assert ng.load(conversion.from_nanogpt("out/ckpt.pt"))[1].to_json() == tokenizer.to_json()
    # nanoGPT's format is torch.save's; weights_only executes no code
    back = torch.load(conversion.to_nanogpt(run, "again"), weights_only=True)
    assert back["model_args"] == args
    assert torch.equal(back["model"]["lm_head.weight"], wte)
    assert not Path("again/data").exists()  # nanoGPT takes GPT-2's tokens where there is no meta.pkl
    if size == 50304:
        nanogpt_ckpt = conversion.to_huggingface(run, "folder") / "config.json"
        assert json.loads(nanogpt_ckpt.read_text())["eos_token_id"] == 50256
        assert (
            ng.load(ng.train("bottles.txt", init_from="folder", max_iters=1, device="cpu"))[1].to_json()
            == tokenizer.to_json()
        )
    for content in ("{}", "[" * 100_000, "é é é"):
        Path("merges.json").write_text(content, encoding="utf-8")
        with pytest.raises(ng.UserError, match=r"merges.json has no tokenizer like GPT-2's"):
            conversion.from_nanogpt("out/ckpt.pt", meta="merges.json")


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {"itos": {0: "a"}, "stoi": {"a": 1}},
        {"itos": {0: "ab"}},
        {"itos": {1: "a"}},
        {"itos": []},
        {},
        [],
        {"itos": {0: 7}},
    ],
)
def test_a_missing_or_invalid_meta_pkl_is_refused(nanogpt_ckpt, meta):
    Path("data/bottles/meta.pkl").unlink() if meta is None else Path("data/bottles/meta.pkl").write_bytes(
        pickle.dumps(meta)
    )
    with pytest.raises(ng.UserError, match="`meta`"):
        conversion.from_nanogpt("out/ckpt.pt")
