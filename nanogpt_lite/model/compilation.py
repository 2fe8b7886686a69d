"""The network with compiled blocks, for training with torch.compile."""

from collections.abc import Callable
from typing import Any

from torch import fx

from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.shallow_copy import copy_modules

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
