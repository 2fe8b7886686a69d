"""The forward pass that keeps what it computes, against the network's own, for every option and preset."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from random_gpt import EXPERT, MODERN, SMALL, VARIANTS, VOCAB, random_gpt, random_ids, random_variant

import nanogpt_lite as ng
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.model.block import Block
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.readout.plain_forward import forward_pass, logit_lens
from nanogpt_lite.tokenizers.bpe import END_OF_TEXT, BPETokenizer

SMALL_SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24}  # the other options are the preset's
OPTIONS = [*VARIANTS, {"n_head": 1}, {"n_layer": 1}, {"n_head": 16, "position": "rotary"}, {"activation": "gelu_tanh"}]


def of_preset(name):
    config = TrainConfig.from_dict({**PRESETS[name], **SMALL_SHAPE}).subset(NetworkConfig)
    return random_gpt(config, VOCAB)


def network_logits(model, idx):
    """The logits (T, V) of the network alone."""
    with torch.inference_mode():
        return model.without_expert()(idx[None])[0][0]


def require_identities(model, idx):
    forward = forward_pass(model, idx)
    logits = network_logits(model, idx)
    torch.testing.assert_close(forward.logits, logits, atol=1e-5 * max(1, logits.abs().max().item()), rtol=0)
    config, T = model.config, len(idx)
    assert forward.attention.shape == (config.n_layer, config.n_head, T, T)
    torch.testing.assert_close(forward.attention.sum(-1), torch.ones(config.n_layer, config.n_head, T))
    assert not forward.attention.triu(1).any(), "no token attends to a later one"
    assert forward.residuals.shape == (config.n_layer + 1, T, config.n_embd)
    lens = logit_lens(model, forward.residuals, top=5)
    assert lens.ids.shape == lens.probabilities.shape == (config.n_layer + 1, T, 5)
    expected = logits.softmax(-1).topk(5)
    torch.testing.assert_close(lens.probabilities[-1], expected.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits.softmax(-1).gather(1, lens.ids[-1]), expected.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("length", [1, 16])
def test_logits_attention_and_lens_are_those_of_the_network(options, length):
    require_identities(random_variant(options), random_ids(1, length)[0])


@pytest.mark.parametrize("name", PRESETS)
def test_the_network_of_each_preset_is_read_as_it_computes(name):
    require_identities(of_preset(name), random_ids(1, 24)[0])


def gpt2_tokenizer(text):
    """GPT-2's tokenizer, but with few merges."""
    merges = ng.prepare(text, tokenizer="bpe-300", out_dir="merges").tokenizer.to_json()["merges"]
    return BPETokenizer("gpt2", merges, [END_OF_TEXT])


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe-300", "gpt2"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_trained_network_of_each_preset_and_tokenizer_is_read_as_it_computes(
    preset, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text = "9 green bottles, 十 grüne Flaschen 🍾\n"
    Path("bottles.txt").write_text(100 * text, encoding="utf-8")
    kind = gpt2_tokenizer("bottles.txt") if tokenizer == "gpt2" else tokenizer
    data = ng.prepare("bottles.txt", tokenizer=kind, out_dir="prepared")
    options: dict[str, Any] = {**SMALL_SHAPE, "block_size": 64, "batch_size": 8, "max_iters": 8, "eval_interval": 8}
    options |= {"device": "cpu", "threads": 1}
    run = ng.train(data, preset=preset, out_dir="run", **options)
    model, tokenizer_of_run = ng.load(run, device="cpu", threads=1)
    ids = torch.from_numpy(tokenizer_of_run.encode(text).astype("int64"))
    require_identities(model, ids)
    reading = ng.inspect(run, text, device="cpu", threads=1)
    assert reading.text == text
    with torch.inference_mode():
        loss = model(ids[None, :-1], ids[None, 1:])[1]
    assert reading.mean_surprise == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("options", [{}, MODERN], ids=["gpt2", "modern"])
def test_a_network_in_training_mode_is_read_without_dropout_and_stays_in_it(options):
    model = random_variant({**options, "dropout": 0.5, "ngram_dropout": 0.5})
    idx = random_ids(1, 16)[0]
    expected = forward_pass(model, idx).logits
    model.train()
    assert torch.equal(forward_pass(model, idx).logits, expected)
    assert all(module.training for module in model.modules())


def test_the_first_residual_is_the_embedding_and_each_block_adds_to_it():
    model, idx = random_variant({}), random_ids(1, 16)[0]
    residuals, wpe = forward_pass(model, idx).residuals, model.transformer.wpe
    assert wpe is not None
    torch.testing.assert_close(residuals[0], model.transformer.wte(idx) + wpe.weight)
    for layer, block in enumerate(model.transformer.h):
        torch.testing.assert_close(block(residuals[layer][None], None, None, layer)[0], residuals[layer + 1])


def test_a_head_that_looks_at_the_token_before_is_seen_to_do_so():
    """Keys are positions, and queries are the positions before them: such a head is built by hand."""
    config = NetworkConfig(block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.0)
    model = GPT(config, VOCAB).eval()
    (block,), wpe = model.transformer.h, model.transformer.wpe
    assert isinstance(block, Block)
    assert wpe is not None
    attn = block.attn
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        wpe.weight.copy_(torch.eye(8) * 10)
        attn.c_attn.weight.zero_()
        attn.c_attn.weight[:8] = torch.roll(torch.eye(8), -1, dims=0) * 20  # query of position t: t - 1
        attn.c_attn.weight[8:16] = torch.eye(8) * 20
    weights = forward_pass(model, random_ids(1, 8)[0]).attention[0, 0]
    assert weights.argmax(-1)[1:].tolist() == list(range(7))
    assert weights.diagonal(-1).min() > 0.9


def test_the_share_of_n_gram_embeddings_is_their_length_beside_that_of_the_rest():
    model, idx = random_variant(MODERN), random_ids(1, 16)[0]
    share = forward_pass(model, idx).ngram_share
    alone, ngrams = model.transformer.wte(idx), model.transformer.ngrams
    whole = forward_pass(model, idx).residuals[0]
    lengths, rest = (whole - alone).norm(dim=-1), alone.norm(dim=-1)
    torch.testing.assert_close(share, lengths / (lengths + rest), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        for table in ngrams.tables:
            table.weight.zero_()
    share = forward_pass(model, idx).ngram_share
    assert share is not None
    assert share.tolist() == [0.0] * 16
    assert forward_pass(random_variant({}), idx).ngram_share is None


def test_the_lens_of_earlier_layers_skips_the_blocks_after_them():
    model, idx = random_variant(MODERN), random_ids(1, 16)[0]
    lens = logit_lens(model, forward_pass(model, idx).residuals, top=VOCAB)
    shorter = random_gpt(SMALL.replace({**MODERN, "n_layer": 1}))
    state = {name: tensor for name, tensor in model.state_dict().items() if name in shorter.state_dict()}
    shorter.load_state_dict(state)
    expected = network_logits(shorter, idx).softmax(-1)
    torch.testing.assert_close(expected.gather(1, lens.ids[1]), lens.probabilities[1], atol=1e-5, rtol=1e-4)


def test_weights_in_bfloat16_are_read_about_as_the_network_computes():
    model, idx = random_variant(EXPERT).bfloat16(), random_ids(1, 16)[0]
    difference = forward_pass(model, idx).logits - network_logits(model, idx).float()
    assert difference.abs().max() < 0.05 * network_logits(model, idx).float().abs().max()
    assert math.isfinite(difference.sum())
