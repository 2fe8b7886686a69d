"""A compiler for torch.compile that keeps the graphs that it gets, and runs each as it is."""

from typing import Any

import pytest
from torch import fx, nn

from nanogpt_lite.model.block import Block

COMPILES = pytest.mark.filterwarnings(
    "ignore:The .grad attribute", "ignore::DeprecationWarning"
)  # of PyTorch's compiler


class CountingBackend:
    """`max_graphs`: the next one is an error."""

    def __init__(self, max_graphs: int = 1000) -> None:
        self.graphs: list[fx.GraphModule] = []
        self.max_graphs = max_graphs

    def __call__(self, graph: fx.GraphModule, example_inputs: list[Any]) -> Any:
        if len(self.graphs) == self.max_graphs:
            raise RuntimeError("PassManager::run failed")
        self.graphs.append(graph)
        return graph.forward


def compile_blocks_with(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have PyTorch compile blocks with `backend`, whatever a caller asks for."""
    monkeypatch.setattr(Block, "compile", lambda block, **options: nn.Module.compile(block, backend=backend))
