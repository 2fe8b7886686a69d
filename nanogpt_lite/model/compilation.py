"""The network with compiled blocks, for training with torch.compile."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx, nn

from nanogpt_lite.model.gpt import GPT

M = TypeVar("M", bound=nn.Module)
Backend = str | Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]
"""A compiler as `torch.compile` takes it: its name, or a function from a graph and example inputs to a function."""


def compile_blocks(model: GPT, *, backend: Backend = "inductor") -> GPT:
    """A copy of the network in which each block is compiled when it is first called; `model` stays as it is.

    The copy shares all tensors. The blocks have the same code, so one graph serves all of them: compiling takes a
    fraction of the time that the whole network would take. Evaluation and sampling call `model`, and compile nothing.
    `RuntimeError`, and errors of a C compiler, come when a block is first called.
    """
    compiled = copy_modules(model)
    for block in compiled.transformer.h:
        block.compile(backend=backend)
    return compiled


def copy_modules(module: M) -> M:
    """A copy of a module and the modules in it, which shares parameters, buffers and hooks with the original."""
    copied = copy.copy(module)
    copied._modules = {name: child and copy_modules(child) for name, child in module._modules.items()}
    return copied
