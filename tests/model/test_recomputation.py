"""What a network computes again in the backward pass gives the same loss and gradients, bit for bit."""

from unittest import mock

import forked_ranks
import pytest
import rank_training
import tiny_training
import torch
from random_gpt import MODERN, SMALL, VOCAB, random_gpt, random_ids
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt_lite.device import seeding
from nanogpt_lite.model import recomputation
from nanogpt_lite.model.block import Block
from nanogpt_lite.model.compilation import compile_network

CPU = torch.device("cpu")
X, Y = random_ids(4, 16), random_ids(4, 16, seed=2)
BACKEND = "aot_eager_decomp_partition"  # which divides a graph between forward and backward pass as Inductor does
DROPOUT = {"dropout": 0.2, "ngram_dropout": 0.3}


def loss_and_gradients(options, dtype=torch.float32, *, std=0.2, prepare=lambda model: model):
    """Of a network with random weights; also the state of the random numbers at the end."""
    model = random_gpt(SMALL.replace(options), std=std).train()
    forward = prepare(model)
    with seeding.seeded(CPU, 5):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = forward(X, Y)[1]
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [{}, DROPOUT, {**DROPOUT, "fast_dropout": False}], ids=["", "fast", "pytorch"])
@pytest.mark.parametrize("network", [{}, MODERN], ids=["GPT-2", "modern"])
def test_loss_and_gradients_are_the_same_bit_for_bit(network, dropout, dtype):
    kept = loss_and_gradients({**network, **dropout}, dtype)
    again = loss_and_gradients({**network, **dropout, "checkpoint_activations": True}, dtype)
    assert kept[0].equal(again[0])
    assert all(gradient.any() for gradient in kept[1])
    assert all(one.equal(other) for one, other in zip(kept[1], again[1], strict=True))
    assert kept[2].equal(again[2])


@pytest.mark.parametrize("recomputes", [False, True])
def test_each_block_is_computed_again_in_a_training_alone(recomputes):
    model = random_gpt(SMALL.replace({"checkpoint_activations": recomputes})).train()
    with mock.patch.object(Block, "forward", autospec=True, side_effect=Block.forward) as forward:
        loss = model(X, Y)[1]
        assert forward.call_count == SMALL.n_layer
        loss.backward()
        assert forward.call_count == SMALL.n_layer * (2 if recomputes else 1)
        model.eval()(X, Y)[1].backward()
        assert forward.call_count == SMALL.n_layer * (3 if recomputes else 2)


def test_logits_are_there_but_in_a_training_with_targets():
    model = random_gpt(SMALL.replace({"checkpoint_activations": True}))
    logits, loss = model(X, Y)
    model.train()
    assert model(X)[0].equal(logits)
    assert model(X, Y)[0].shape == (4, 0, VOCAB)
    assert model(X, Y)[1].equal(loss)


class LargestLogits(TorchDispatchMode):
    """The largest number of elements of a tensor (tokens, VOCAB); those of 8 tokens are transposed weights."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        shapes = [value.shape for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        sizes = [shape.numel() for shape in shapes if shape[-1:] == (VOCAB,) and shape[0] != 8]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.parametrize("tokens", [1, 7, 13, 32, 63, 64, 1000])
def test_loss_in_parts(tokens, monkeypatch):
    """No more logits than asked for are there at a time, and none are kept; loss and gradients are those of all."""
    monkeypatch.setattr(recomputation, "MAX_LOGITS", tokens * VOCAB)
    hidden = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    kept: list[torch.Size] = []
    with LargestLogits() as log:
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (kept.append(tensor.shape), tensor)[1], lambda x: x
        ):
            loss = recomputation.linear_cross_entropy(hidden, weight, Y)
        gradients = torch.autograd.grad(loss, (hidden, weight))
    assert log.largest <= min(tokens, Y.numel()) * VOCAB
    assert (torch.Size([Y.numel(), VOCAB]) in kept) == (tokens >= Y.numel())
    assert not [shape for shape in kept if shape[-1:] == (VOCAB,) and shape[0] not in (8, Y.numel())]
    x, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = F.cross_entropy((x @ w.T).flatten(0, 1), Y.flatten())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, (x, w)), strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-7)


def test_loss_in_parts_is_as_exact_in_16_bits_as_in_one(monkeypatch):
    exact = loss_and_gradients({})[1]

    def error(options):
        gradients = loss_and_gradients(options, torch.bfloat16)[1]
        return torch.stack([(one - other).norm() / other.norm() for one, other in zip(gradients, exact, strict=True)])

    in_one = error({})
    monkeypatch.setattr(recomputation, "MAX_LOGITS", 3 * VOCAB)
    in_parts = error({"checkpoint_activations": True})
    assert not in_parts.equal(in_one)
    assert in_parts.max() <= 1.1 * in_one.max()


def test_training_and_its_checkpoint_are_the_same_bit_for_bit(tmp_path):
    states = [
        tiny_training.train(
            tmp_path / str(recomputes),
            tiny_training.small_config(dropout=0.2, checkpoint_activations=recomputes, gradient_accumulation_steps=2),
        )[0]
        for recomputes in (False, True)
    ]
    kept, again = (dict(state.model.named_parameters()) for state in states)
    assert all(kept[name].equal(again[name]) for name in kept)


def test_random_numbers_of_apples_gpu_are_drawn_again_and_then_continue(monkeypatch):
    """PyTorch's own generator stands in for that of the GPU, which PyTorch's checkpoints do not know."""
    monkeypatch.setattr(torch.mps, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", torch.set_rng_state)
    with torch.random.fork_rng([]):
        forward, again = seeding.replay_mps()
        with forward:
            drawn = torch.rand(3)
        torch.rand(2)
        state = torch.get_rng_state()
        with again:
            assert torch.rand(3).equal(drawn)
        assert torch.get_rng_state().equal(state)
        with pytest.raises(KeyError), again_from(torch.get_rng_state()):
            raise KeyError
        assert torch.get_rng_state().equal(state)


def again_from(state):
    """The second context of a computation that began with this state."""
    torch.set_rng_state(state)
    return seeding.replay_mps()[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # which it looks at
@pytest.mark.parametrize(
    "prepare",
    [
        lambda model: compile_network(model, whole=True, backend=BACKEND),
        lambda model: compile_network(model, backend=BACKEND),
    ],
    ids=["network", "blocks"],
)
def test_a_compiled_network_has_the_same_gradients(prepare, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(recomputation, "MAX_LOGITS", 20 * VOCAB)
    kept = loss_and_gradients(DROPOUT, prepare=prepare)
    again = loss_and_gradients({**DROPOUT, "checkpoint_activations": True}, prepare=prepare)
    torch.testing.assert_close(again[0], kept[0], rtol=1e-6, atol=0)
    for one, other in zip(again[1], kept[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.posix("forks ranks")
def test_ranks_have_the_same_losses(text_file):
    options = {"dropout": 0.0, "gradient_accumulation_steps": 2, "checkpoint_activations": True}
    assert forked_ranks.run(2, rank_training.train, {**options, "out_dir": "runs/ranks"}) == [0, 0]
    rank_training.train({**options, "checkpoint_activations": False, "out_dir": "runs/alone"})
    rank_training.require_same_losses("runs/ranks", "runs/alone")
