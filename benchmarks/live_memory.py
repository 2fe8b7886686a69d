"""How many bytes of tensors are alive on a device, counted by a dispatch mode: no values are needed, only shapes.

What a kernel allocates for itself, and what PyTorch's allocator adds, is not counted.
"""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors on `device` that operators return within the `with` block, while they exist.

    Tensors that share their memory count once. `live` is the number of bytes now, `peak` the largest so far. Tensors
    from before are added with `add`.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device.type
        self.live = self.peak = 0
        self.storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        if tensor.device.type == self.device_type and storage not in self.storages:
            self.storages.add(storage)
            weakref.finalize(storage, self._subtract, storage.nbytes()).atexit = False
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _subtract(self, num_bytes: int) -> None:
        self.live -= num_bytes
