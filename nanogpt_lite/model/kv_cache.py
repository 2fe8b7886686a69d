"""The KV cache: keys and values of past tokens, so that generation computes each token only once."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # `gpt` imports this module
    from nanogpt_lite.model.gpt import GPT


class KVCache:
    """Keys and values of past tokens, for every layer of `model` and a batch of `batch` sequences.

    Pass it to `GPT.forward`, which attends to the cached tokens and adds the new ones. It has room for `tokens`
    tokens, `block_size` by default and at most.

    Attributes: `length`, the number of cached tokens; `keys` and `values`, (n_layer, B, H, S, D) each, with S the room;
    `recent_ids`, the ids of the last `ngram - 1` tokens, (B, ngram - 1), which n-gram embeddings look back at;
    `expert_nodes`, the context of the n-gram expert, (B, K), see `ngram_expert`.

    >>> from nanogpt_lite.config.options import NetworkConfig
    >>> from nanogpt_lite.model.gpt import GPT
    >>> model = GPT(NetworkConfig(block_size=8, n_layer=1, n_head=2, n_embd=16), vocab_size=65).eval()
    >>> idx = torch.tensor([[5, 3, 9]])
    >>> cache = KVCache(model, batch=1)
    >>> _ = model(idx[:, :2], cache=cache)
    >>> logits, _ = model(idx[:, 2:], cache=cache)  # the new token only
    >>> torch.allclose(logits, model(idx)[0][:, 2:], atol=1e-5)
    True
    """

    def __init__(self, model: "GPT", batch: int, tokens: int | None = None) -> None:
        config = model.config
        weight = model.lm_head.weight
        max_tokens = min(tokens or config.block_size, config.block_size)
        shape = (config.n_layer, batch, config.n_head, max_tokens, config.n_embd // config.n_head)
        # A CPU computes attention in float32 in a fraction of the time that bfloat16 takes.
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype
        self.keys = torch.zeros(shape, dtype=dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.recent_ids = torch.zeros(batch, config.ngram - 1, dtype=torch.int64, device=weight.device)
        self._first_nodes = model.expert.start(batch) if model.expert is not None else self.recent_ids[:, :0]
        self.expert_nodes = self._first_nodes.clone()
        self.length = 0
        self.device_position: Tensor | None = None  # `length` as a tensor, see `use_device_position`
        self.attn_mask: Tensor | None = None

    def clear(self) -> None:
        """Remove all tokens, and count in Python again."""
        self.recent_ids.zero_()
        self.expert_nodes.copy_(self._first_nodes)
        self.length, self.device_position = 0, None

    def use_device_position(self, position: Tensor) -> None:
        """From now on, take one token at a time, at the position that the tensor `position` (1,) holds.

        It is set to `length` and then increases on the device. So each step runs the same kernels on the same
        memory, whatever the length, which a CUDA graph requires (see `generation.cuda_graph`). What an earlier text
        left behind the tokens is cleared: the mask excludes it, but 0 times NaN, of float16, would be NaN.
        """
        for kept in (self.keys, self.values):
            kept[:, :, :, self.length :].zero_()
        self.device_position = position.fill_(self.length)

    def positions(self, num_new: int) -> Tensor:
        """Return the positions of `num_new` new tokens, (num_new,). Call it once, before the layers append to it."""
        if self.device_position is not None:
            # All S entries take part in attention; the mask, the same for all layers, excludes those not yet filled. It
            # is added to the scores: of a mask of booleans, attention makes such a mask in each layer.
            is_empty = torch.arange(self.keys.size(3), device=self.keys.device) > self.device_position  # (S,)
            self.attn_mask = self.keys.new_zeros(1, self.keys.size(3)).masked_fill_(is_empty, -torch.inf)
            return self.device_position
        return torch.arange(self.length, self.length + num_new, device=self.keys.device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store new keys and values of a layer, (B, H, T, D) each, and return all of them, (B, H, S, D) each.

        The third value is the attention mask (1, S), to be added to the scores, or None if no entry is empty.
        """
        if self.device_position is not None:
            for cached, new in ((self.keys, k), (self.values, v)):
                cached[layer].index_copy_(2, self.device_position, new.to(cached.dtype))
            return self.keys[layer], self.values[layer], self.attn_mask
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end], None

    def advance(self, idx: Tensor) -> None:
        """Count the tokens `idx` (B, T) as cached, after every layer has appended them."""
        self.recent_ids.copy_(torch.cat([self.recent_ids, idx], dim=1)[:, idx.size(1) :])
        if self.device_position is not None:
            self.device_position.add_(1)
        self.length += idx.size(1)
