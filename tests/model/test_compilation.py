"""The network with compiled blocks: one graph for all of them, and for all steps."""

import pytest
import torch
from random_gpt import SMALL, VARIANTS, random_gpt, random_ids

from nanogpt_lite.model.compilation import compile_blocks


class CountingBackend:
    """A compiler that runs a graph as it is, and counts the graphs."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, example_inputs):
        self.graphs.append(graph)
        return graph.forward


def losses(model, steps=3):
    """Losses of a few steps of gradient descent with a changing learning rate."""
    found = []
    for step in range(steps):
        ids = random_ids(2, 17, seed=step)
        loss = model(ids[:, :-1], ids[:, 1:])[1]
        loss.backward()
        for parameter in model.parameters():
            parameter.data.sub_(parameter.grad, alpha=0.1 / (step + 1))
            parameter.grad = None
        found.append(loss.item())
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")  # of PyTorch's compiler itself
@pytest.mark.parametrize("options", VARIANTS[:2], ids=["GPT-2", "modern"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_one_graph_serves_all_blocks_and_all_steps(options, dropout):
    torch.compiler.reset()
    backend = CountingBackend()
    config = SMALL.replace({**options, "dropout": dropout})
    plain, model = random_gpt(config), random_gpt(config)
    compiled = compile_blocks(model, backend=backend)
    for network in (plain, compiled):
        network.train(bool(dropout))
    results = losses(compiled)
    if not dropout:
        assert results == pytest.approx(losses(plain), abs=1e-5)
    assert len(backend.graphs) == 1
    assert "attn" in str(backend.graphs[0].graph), "it holds the whole block"
    with torch.no_grad():
        model.eval()(random_ids(3, 9))
        model(random_ids(1, 16), random_ids(1, 16))
    assert len(backend.graphs) == 1, "the network itself is not compiled, so an evaluation compiles nothing"
