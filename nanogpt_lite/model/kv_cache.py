"""The network of GPT-2, as nanoGPT has it, and what came after: token ids in, logits out.

Each later part is an option of `NetworkConfig`; without them the network is nanoGPT's. Names of modules and
parameters are GPT-2's, so that weights go in and out unchanged. Training is left to
`trainer`, drawing text to `sampling`.

Shapes: B batch, T time (new tokens), S time with what the cache holds, C channels (n_embd), H heads,
D head size (C / H), V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nanogpt_lite.model.gpt import GPT


class KVCache:
    """Keys and values of the tokens that the network has seen: `length` tokens of each of B rows.

    Passed to `GPT.forward`, which appends to it. One tensor each, shape (n_layer, B, H, S, D), with room for S tokens:
    `tokens`, but `block_size` at most. `recent` are the ids of the last tokens, as many as an n-gram looks back at,
    (B, ngram - 1).
    """

    def __init__(self, model: "GPT", batch: int, tokens: int | None = None) -> None:
        config = model.config
        weight = model.lm_head.weight
        most = min(tokens or config.block_size, config.block_size)
        shape = (config.n_layer, batch, config.n_head, most, config.n_embd // config.n_head)
        # a CPU attends to float32 in a fraction of the time that it takes for bfloat16
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype
        self.keys = torch.zeros(shape, dtype=dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.recent = torch.zeros(batch, config.ngram - 1, dtype=torch.int64, device=weight.device)
        self.length = 0
        self.place: Tensor | None = None
        self.seen: Tensor | None = None

    def clear(self) -> None:
        """Forget all tokens."""
        self.recent.zero_()
        self.length, self.place = 0, None

    def keep_on_device(self, place: Tensor) -> None:
        """From now on take one token at a time, at `place` (1,), which is `length` and counts on by itself.

        Then each step is the same work, whatever the length, as a recorded one has to be (`graphs`).
        """
        self.place = place.fill_(self.length)

    def places(self, new: int) -> Tensor:
        """The places of `new` tokens, (new,); asked once before they are appended to each layer."""
        if self.place is not None:
            self.seen = (torch.arange(self.keys.size(3), device=self.keys.device) <= self.place)[None]
            return self.place
        return torch.arange(self.length, self.length + new, device=self.keys.device)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store a layer's new keys and values, (B, H, T, D) each; return all of them, (B, H, S, D) each.

        The third is None, or which of them are tokens yet, (1, S).
        """
        if self.place is not None:
            for held, new in ((self.keys, key), (self.values, value)):
                held[layer].index_copy_(2, self.place, new.to(held.dtype))
            return self.keys[layer], self.values[layer], self.seen
        end = self.length + key.size(2)
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end], None

    def advance(self, idx: Tensor) -> None:
        """Note that the tokens `idx` (B, T) are in."""
        self.recent.copy_(torch.cat([self.recent, idx], dim=1)[:, idx.size(1) :])
        if self.place is not None:
            self.place.add_(1)
        self.length += idx.size(1)
