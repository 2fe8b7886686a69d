"""The network against Hugging Face's GPT-2, which is not ours, and against itself in other ways of calling it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.block import make_norm
from nanogpt_lite.model.gpt import GPT, NgramEmbedding
from nanogpt_lite.model.kv_cache import KVCache

SMALL = NetworkConfig(block_size=16, n_layer=3, n_head=2, n_embd=32, bias=True, dropout=0.0)
LATER = {"position": "rotary", "norm": "rms", "qk_norm": True, "activation": "relu2", "tied": False}
LATER |= {"ngram": 4, "ngram_rows": 50}  # of 29, 841, 24389 n-grams: the bigrams share vectors too
EACH = [{}, LATER, *({name: value} for name, value in LATER.items() if name != "ngram_rows")]
VOCAB = 29


def network(config=SMALL, seed=0):
    torch.manual_seed(seed)
    model = GPT(config, VOCAB)
    for parameter in model.parameters():  # away from zero biases and unit gains, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def tokens(rows, length, seed=1):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def huggingface_twin(model):
    """`transformers`' GPT-2 with the same weights. Its linear layers store the transposed matrix."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu",
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    weights = {name: p.T if p.dim() == 2 and ".h." in name else p for name, p in model.named_parameters()}
    missing = twin.load_state_dict({k: v.detach().clone() for k, v in weights.items()}, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    twin.tie_weights()
    return twin


@pytest.fixture(scope="module")
def twins():
    model = network()
    return model, huggingface_twin(model)


def test_logits_and_loss_equal_huggingface(twins):
    model, twin = twins
    x = tokens(4, 16)
    logits, loss = model(x, tokens(4, 16, seed=2))
    expected = twin(x).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, F.cross_entropy(expected.flatten(0, 1), tokens(4, 16, seed=2).flatten()))


def test_dropout_falls_where_huggingfaces_does():
    """Both draw their masks in the order of the network, so the same seed gives the same ones."""
    model = network(dataclasses.replace(SMALL, dropout=0.3))
    twin, x = huggingface_twin(model), tokens(4, 16)
    dropped = []
    for network_in_training in (model.train(), twin.train()):
        torch.manual_seed(3)
        out = network_in_training(x)
        dropped.append(out[0] if isinstance(out, tuple) else out.logits)
    torch.testing.assert_close(*dropped, rtol=1e-5, atol=1e-5)
    torch.manual_seed(4)
    assert not torch.allclose(model(x)[0], dropped[0], atol=0.1)


def test_gradient_of_every_parameter_equals_huggingface(twins):
    model, twin = twins
    x, y = tokens(4, 16), tokens(4, 16, seed=2)
    model.zero_grad()
    twin.zero_grad()
    model(x, y)[1].backward()
    F.cross_entropy(twin(x).logits.flatten(0, 1), y.flatten()).backward()
    expected = dict(twin.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == 2 + 12 * SMALL.n_layer + 2
    for name, parameter in model.named_parameters():
        gradient = expected[name].grad
        gradient = gradient.T if parameter.dim() == 2 and ".h." in name else gradient
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_greedy_text_equals_huggingface_up_to_block_size(twins):
    from nanogpt_lite.config.options import SampleConfig
    from nanogpt_lite.generation.generate import generate

    model, twin = twins
    prompt = tokens(2, 3)
    ours = torch.stack(list(generate(model, prompt, SampleConfig(temperature=0.0, max_new_tokens=13))), dim=1)
    theirs = twin.generate(
        prompt, max_new_tokens=13, do_sample=False, attention_mask=torch.ones_like(prompt), pad_token_id=0
    )
    assert torch.equal(ours, theirs[:, 3:])


@pytest.mark.parametrize("bias", [True, False])
def test_shapes_and_names_are_nanogpts(bias):
    config = NetworkConfig(block_size=8, n_layer=1, n_head=2, n_embd=4, bias=bias)
    shapes = {name: tuple(p.shape) for name, p in GPT(config, VOCAB).named_parameters()}
    block = "transformer.h.0"
    matrices = {
        "transformer.wte.weight": (VOCAB, 4),
        "transformer.wpe.weight": (8, 4),
        f"{block}.ln_1.weight": (4,),
        f"{block}.attn.c_attn.weight": (12, 4),
        f"{block}.attn.c_proj.weight": (4, 4),
        f"{block}.ln_2.weight": (4,),
        f"{block}.mlp.c_fc.weight": (16, 4),
        f"{block}.mlp.c_proj.weight": (4, 16),
        "transformer.ln_f.weight": (4,),
    }
    biases = {n.replace("weight", "bias"): (s[0],) for n, s in matrices.items() if ".w" not in n.replace(".weight", "")}
    assert shapes == matrices | (biases if bias else {})


def test_initialisation_is_gpt2s():
    config = NetworkConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, bias=True)
    for name, parameter in GPT(config, 65).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(8) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < std / 10, name


def test_parameter_counts_are_nanogpts():
    # the numbers that nanoGPT prints for these networks (10.65M and 0.80M), without the positions
    shakespeare = GPT(NetworkConfig(), 65)
    cpu = GPT(NetworkConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0), 65)
    assert f"{shakespeare.num_parameters(positions=False) / 1e6:.2f}" == "10.65"
    assert f"{cpu.num_parameters(positions=False) / 1e6:.2f}" == "0.80"
    assert shakespeare.num_parameters() - shakespeare.num_parameters(positions=False) == 256 * 384


def test_flops_are_those_of_the_formula():
    # nanoGPT's estimate_mfu: 6 N + 12 L H Q T
    model = GPT(NetworkConfig(), 65)
    assert model.flops_per_token() == 6 * model.num_parameters(positions=False) + 12 * 6 * 6 * 64 * 256


def test_the_output_matrix_is_the_embedding():
    model = network()
    assert model.lm_head.weight is model.transformer.wte.weight


def with_options(options):
    return network(dataclasses.replace(SMALL, **options))


@pytest.mark.parametrize("options", EACH, ids=lambda options: ",".join(options))
def test_no_token_sees_a_later_one(options):
    model = with_options(options)
    x = tokens(1, 16)
    before = model(x)[0]
    for position in range(1, 16):
        changed = x.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCAB
        after = model(changed)[0]
        assert torch.equal(before[0, :position], after[0, :position])
        assert not torch.equal(before[0, position], after[0, position])


@pytest.mark.parametrize("options", EACH, ids=lambda options: ",".join(options))
@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda parts: sum(parts) <= 16))
def test_logits_with_cache_equal_those_without(options, parts):
    model = with_options(options)
    x = tokens(3, sum(parts))
    with torch.inference_mode():
        whole = model(x)[0]
        cache = KVCache(model, 3)
        pieces = [model(part, cache=cache)[0] for part in x.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert cache.length == sum(parts)


@pytest.mark.parametrize("options", [{}, LATER], ids=["nanoGPT", "later"])
def test_a_cache_that_counts_on_the_device_gives_the_same_logits(options):
    model = with_options(options)
    x, place = tokens(3, 16), torch.empty(1, dtype=torch.int64)
    with torch.inference_mode():
        whole = model(x)[0]
        cache = KVCache(model, 3)
        for start in (5, 9):  # a cleared cache begins anew
            cache.clear()
            model(x[:, :start], cache=cache)
            cache.keep_on_device(place)
            steps = [model(x[:, number : number + 1], cache=cache)[0] for number in range(start, 16)]
            torch.testing.assert_close(torch.cat(steps, dim=1), whole[:, start:], rtol=1e-4, atol=1e-5)
            assert cache.length == place.item() == 16


@pytest.mark.parametrize("options", [{}, LATER], ids=["nanoGPT", "later"])
def test_a_batch_equals_its_rows_alone(options):
    model = with_options(options)
    x = tokens(5, 12)
    together = model(x)[0]
    for row in range(5):
        torch.testing.assert_close(model(x[row : row + 1])[0][0], together[row], rtol=1e-5, atol=1e-5)


def test_rms_norm_has_nothing_to_train_and_the_root_mean_square_one():
    layer = make_norm(dataclasses.replace(SMALL, norm="rms"))
    assert not list(layer.parameters())
    x = torch.randn(5, 32) * 7
    torch.testing.assert_close(layer(x), x / (x * x).mean(dim=1, keepdim=True).sqrt(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_with_qk_norm_the_size_of_queries_and_keys_does_not_count(norm):
    model = with_options({"qk_norm": True, "bias": False, "norm": norm})
    x = tokens(2, 9)
    before = model(x)[0]
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:64] *= 3
    torch.testing.assert_close(model(x)[0], before, atol=1e-4, rtol=1e-4)


def test_relu2_is_the_square_of_relu_and_so_is_its_gradient():
    mlp = with_options({"activation": "relu2"}).transformer.h[0].mlp
    x = torch.randn(3, 4, 32, requires_grad=True)
    inside = (x @ mlp.c_fc.weight.T + mlp.c_fc.bias).clamp(min=0) ** 2
    expected = inside @ mlp.c_proj.weight.T + mlp.c_proj.bias
    torch.testing.assert_close(mlp(x), expected, atol=1e-4, rtol=1e-4)
    ours, theirs = (torch.autograd.grad(y.sin().sum(), [x, mlp.c_fc.weight]) for y in (mlp(x), expected))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_an_untied_output_is_a_matrix_of_its_own():
    model = with_options({"tied": False})
    assert model.num_parameters() == network().num_parameters() + VOCAB * 32
    assert model.flops_per_token() == network().flops_per_token()  # the embedding is looked up


def test_ngrams_are_what_a_table_of_texts_would_give():
    """As many vectors as there are bigrams: one for each. Fewer than trigrams: the same one for the same trigram."""
    config = dataclasses.replace(SMALL, ngram=3, ngram_rows=VOCAB**2)
    embedding = NgramEmbedding(config, VOCAB)
    bigrams, trigrams = embedding.tables
    assert (bigrams.num_embeddings, trigrams.num_embeddings) == (VOCAB**2, VOCAB**2)
    ids = tokens(1, 12)[0].tolist()
    got = embedding(torch.tensor([ids]), torch.zeros(1, 2, dtype=torch.int64))[0]
    spelled = [0, 0, *ids]
    seen = {}
    for place, vector in enumerate(got):
        gram = tuple(spelled[place : place + 3])
        rest = vector - bigrams.weight[gram[2] * VOCAB + gram[1]]
        assert any(torch.allclose(rest, row, atol=1e-5) for row in trigrams.weight)
        seen.setdefault(gram, vector)
        assert torch.equal(seen[gram], vector)
    again = embedding(torch.tensor([ids[:3] * 4]), torch.zeros(1, 2, dtype=torch.int64))[0]
    assert torch.equal(again[3:6], again[6:9])
    assert not torch.equal(again[0], again[3])  # other tokens stand before it


def test_ngram_dropout_leaves_out_all_of_a_tokens_in_training_only():
    config = dataclasses.replace(SMALL, ngram=3, ngram_dropout=0.25)
    embedding, x, before = NgramEmbedding(config, VOCAB), tokens(64, 64), torch.zeros(64, 2, dtype=torch.int64)
    whole = embedding.eval()(x, before)
    torch.manual_seed(5)
    shares = embedding.train()(x, before) / whole
    torch.testing.assert_close(shares, shares[..., :1].expand_as(shares), atol=1e-4, rtol=1e-4)
    kept = shares[..., 0] != 0
    torch.testing.assert_close(shares[kept], torch.full_like(shares[kept], 1 / 0.75), atol=1e-4, rtol=1e-4)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_with_zero_init_the_first_loss_is_that_of_a_guess():
    model = GPT(dataclasses.replace(SMALL, zero_init=True, **LATER), VOCAB)
    assert model(tokens(2, 9), tokens(2, 9, seed=2))[1].item() == pytest.approx(math.log(VOCAB), abs=1e-6)
    tied = GPT(dataclasses.replace(SMALL, zero_init=True), VOCAB)
    x = tokens(2, 9)
    embedded = tied.transformer.wte(x) + tied.transformer.wpe(torch.arange(9))
    assert torch.equal(tied.transformer(x, None), tied.transformer.ln_f(embedded))


def test_more_than_the_context_is_a_bug_of_the_caller():
    model = network()
    with pytest.raises(AssertionError, match="context"):
        model(tokens(1, 17))


def test_dropout_acts_in_training_only():
    config = NetworkConfig(block_size=16, n_layer=1, n_head=2, n_embd=32, dropout=0.5)
    model = network(config)
    x = tokens(1, 8)
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])
