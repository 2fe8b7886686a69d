"""A copy of a network that shares its tensors, so that its modules can be replaced or compiled in the copy alone."""

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_modules(module: M) -> M:
    """A copy of a module and the modules in it, which shares parameters, buffers and hooks with the original."""
    copied = copy.copy(module)
    copied._modules = {name: child and copy_modules(child) for name, child in module._modules.items()}
    return copied
