"""The compiled network, for training with torch.compile.

Whether it computes what the plain one computes is checked in `trainer.network_setup`.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from nanogpt_lite.device import fallbacks, memory
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.shallow_copy import copy_modules

Backend = str | Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]
"""A compiler as `torch.compile` takes it: its name, or a function from a graph and example inputs to a function."""


def compile_network(model: GPT, *, whole: bool = False, backend: Backend = "inductor") -> "CompiledNetwork":
    """The network that is compiled when it is first called, and again for inputs of other shapes.

    It shares all tensors with `model`, which stays as it is: evaluation and sampling call that, and compile nothing.
    What is compiled are the blocks. They have the same code, so one graph serves all of them: compiling takes a
    fraction of the time that one graph of the whole network takes. With `whole` it is the latter, in which operators
    are fused from one block to the next too, and those before and after the blocks.
    """
    compiled = copy_modules(model)
    for module in [compiled] if whole else compiled.transformer.h:
        module.compile(backend=backend)
    return CompiledNetwork(model, compiled)


class CompiledNetwork(nn.Module):
    """A compiled network; the plain one once compilation has failed, here or elsewhere (`fallbacks`)."""

    def __init__(self, plain: GPT, compiled: GPT) -> None:
        super().__init__()
        self.plain, self.compiled = plain, compiled

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        result = self._call_compiled(idx, targets) if fallbacks.is_usable(FastPath.COMPILATION) else None
        return self.plain(idx, targets) if result is None else result

    def _call_compiled(self, idx: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """The results of the compiled network; None if compiling it has failed."""
        from torch._dynamo.exc import TorchDynamoException  # takes a second

        try:
            # DistributedDataParallel would split a graph, to send its gradients in parts
            with torch._dynamo.config.patch(optimize_ddp=False):
                result: tuple[Tensor, Tensor | None] = self.compiled(idx, targets)
                return result
        except TorchDynamoException as error:
            if memory.is_out_of_memory(error):
                raise
            fallbacks.give_up(FastPath.COMPILATION, error)
        return None


def gives_up_compilation(error: Exception) -> bool:
    """Do without compilation if this is an error of PyTorch's compiler; whether it is, and the pass can be repeated.

    Such errors come in the first backward pass through a graph. For those of a forward pass see `CompiledNetwork`.
    """
    if "torch._dynamo" not in sys.modules or not fallbacks.is_usable(FastPath.COMPILATION):  # it takes long to import
        return False
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return False
    fallbacks.give_up(FastPath.COMPILATION, error)
    return True


def count_graphs() -> int:
    """The number of graphs that PyTorch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
