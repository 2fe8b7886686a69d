"""The compiled network: one graph for all blocks or for the whole network, and for all steps."""

import pytest
import torch
import torch.distributed as dist
from counting_backend import COMPILES, CountingBackend
from random_gpt import SMALL, VARIANTS, random_gpt, random_ids
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.model.compilation import compile_network


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


@COMPILES
@pytest.mark.parametrize("options", VARIANTS[:2], ids=["GPT-2", "modern"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole"])
def test_one_graph_serves_all_blocks_and_all_steps(whole, options, dropout):
    torch.compiler.reset()
    backend = CountingBackend()
    config = SMALL.replace({**options, "dropout": dropout})
    plain, model = random_gpt(config), random_gpt(config)
    compiled = compile_network(model, whole=whole, backend=backend)
    for network in (plain, compiled):
        network.train(bool(dropout))
    results = losses(compiled)
    if not dropout:
        assert results == pytest.approx(losses(plain), abs=1e-5)
    assert len(backend.graphs) == 1
    graph = str(backend.graphs[0].graph)
    assert "attn" in graph, "it holds the whole block"
    assert ("cross_entropy" in graph) == ("wte" in graph) == whole
    with torch.no_grad():
        model.eval()(random_ids(3, 9))
        model(random_ids(1, 16), random_ids(1, 16))
    assert len(backend.graphs) == 1, "an evaluation calls the plain network"


@pytest.fixture
def lone_rank():
    """PyTorch's process group with this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


@COMPILES
@pytest.mark.posix("Gloo")
@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")
@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole"])
def test_distributed_data_parallel_splits_no_graph(whole, lone_rank):
    """Its first bucket of gradients, where PyTorch would split, is smaller than a block."""
    torch.compiler.reset()
    backend = CountingBackend()
    model = random_gpt(SMALL.replace({"n_embd": 192, "n_layer": 2})).train()
    parallel = DistributedDataParallel(compile_network(model, whole=whole, backend=backend), broadcast_buffers=False)
    ids = random_ids(2, 9)
    parallel(ids, ids)[1].backward()
    assert len(backend.graphs) == 1
    assert torch._dynamo.config.optimize_ddp, "as the user has it, elsewhere"


@COMPILES
@pytest.mark.usefixtures("fresh_fast_paths")
@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole"])
def test_a_forward_pass_that_cannot_be_compiled_is_a_plain_one(whole):
    torch.compiler.reset()
    model, ids = random_gpt(), random_ids(2, 9)
    network = compile_network(model, whole=whole, backend=CountingBackend(max_graphs=0))
    with pytest.warns(UserWarning, match=r"the compiled network cannot be used \(backend=.* RuntimeError: PassManager"):
        logits = network(ids)[0]
    assert torch.equal(logits, model(ids)[0])
    network.compiled = None  # type: ignore[assignment]
    assert torch.equal(network(ids)[0], logits), "it is not tried again"


@COMPILES
@pytest.mark.usefixtures("fresh_fast_paths")
def test_out_of_memory_says_nothing_about_compilation():
    def out_of_memory(graph, example_inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="out of memory"):
        compile_network(random_gpt(), backend=out_of_memory)(random_ids(2, 9))
    assert fallbacks.is_usable(FastPath.COMPILATION)
