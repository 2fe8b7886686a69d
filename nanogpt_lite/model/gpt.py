"""GPT: token ids in, logits and loss out.

With the default options this is nanoGPT's GPT-2. Each later idea is an option of `NetworkConfig`. Modules and
parameters have GPT-2's names (`transformer.h.0.attn.c_attn.weight`), so weights can be imported and exported unchanged.

Shapes in this package: B batch, T time (new tokens), S time including cached tokens, C channels (`n_embd`), H heads,
D head size (C / H), V vocabulary.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.device import devices
from nanogpt_lite.model.block import Block, make_norm
from nanogpt_lite.model.dropout import dropout
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.model.ngram_embedding import NgramEmbedding
from nanogpt_lite.model.ngram_expert import NgramExpert
from nanogpt_lite.model.recomputation import linear_cross_entropy, recomputed
from nanogpt_lite.model.rotary import RotaryEmbedding
from nanogpt_lite.model.shallow_copy import copy_modules


class GPT(nn.Module):
    """A decoder-only transformer with a linear output layer.

    With `config.tied`, the output matrix is the token embedding (Press and Wolf 2017).

    >>> model = GPT(NetworkConfig(block_size=8, n_layer=1, n_head=2, n_embd=16), vocab_size=65)
    >>> logits, loss = model(torch.zeros(4, 8, dtype=torch.int64))
    >>> logits.shape, loss
    (torch.Size([4, 8, 65]), None)
    """

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.transformer = Transformer(config, vocab_size)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight
        self.expert = NgramExpert(config, vocab_size) if config.ngram_expert else None
        self._init_weights()

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, *, cache: KVCache | None = None, last_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, T, V) for the token after each of `idx` (B, T), and the mean loss if `targets` are given.

        Token ids are int64. The loss is the cross-entropy with `targets` (B, T), in nats per token. With a `cache`,
        `idx` continues the cached tokens and is added to them. The caller ensures that cached and new tokens together
        are at most `block_size` (`AssertionError` otherwise). `last_only`: only the logits of the last token (B, 1, V).

        With `config.ngram_expert`, in evaluation mode, the logits are log-probabilities of the mixture, and the loss is
        that of the mixture. With `targets`, the logits are then those of no token (B, 0, V); so they are while training
        with `config.checkpoint_activations`: not all of them are in memory at once.
        """
        hidden = self.transformer(idx, cache)  # (B, T, C)
        if targets is not None and self.training and self.config.checkpoint_activations:
            loss = linear_cross_entropy(hidden, self.lm_head.weight, targets)
            return hidden.new_empty(len(idx), 0, self.vocab_size), loss
        logits = self.lm_head(hidden)  # (B, T, V)
        if last_only:
            logits = logits[:, -1:]
        if self.expert is not None and not self.training:
            contexts = self.expert.contexts(idx, cache.expert_nodes if cache is not None else None)  # (B, T, K)
            if cache is not None:
                cache.expert_nodes.copy_(contexts[:, -1])
            if targets is not None:
                return logits[:, :0], self.expert.losses(logits, contexts, targets)[0]
            return self.expert.mix(logits, contexts[:, -logits.size(1) :]), None
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, self.vocab_size), targets.reshape(-1))

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The mean losses of the mixture and of the network alone, in nats per token, shape (2,).

        `idx` and `targets` are (B, T). Without an n-gram expert, both are the loss that `forward` gives.
        """
        if self.expert is None:
            loss: Tensor = self(idx, targets)[1]
            return loss.expand(2)
        return self.expert.losses(self.lm_head(self.transformer(idx, None)), self.expert.contexts(idx), targets)

    def without_expert(self) -> Self:
        """The network without its n-gram expert, with the same parameters; the same object if it has none."""
        if self.expert is None:
            return self
        network = copy_modules(self)
        network.expert = None
        return network

    def num_parameters(self, *, positions: bool = True) -> int:
        """Return the number of trained parameters; with `positions=False`, without the position embedding.

        nanoGPT reports the number without it.
        """
        total = sum(parameter.numel() for parameter in self.parameters())
        wpe = self.transformer.wpe
        return total if positions or wpe is None else total - wpe.weight.numel()

    def flops_per_token(self) -> float:
        """Return the floating-point operations per token of a training step, forward and backward.

        6 N + 12 L C T (PaLM, Chowdhery et al. 2022, appendix B), with N the parameters used in matrix products.
        An embedding is a table lookup and needs no operations, unless it is also the output matrix.
        """
        config, transformer = self.config, self.transformer
        embeddings: list[nn.Module] = [] if config.tied else [transformer.wte]
        embeddings += [transformer.ngrams] if transformer.ngrams is not None else []
        embedding_parameters = sum(parameter.numel() for module in embeddings for parameter in module.parameters())
        attention = 12 * config.n_layer * config.n_embd * config.block_size
        return 6 * (self.num_parameters(positions=False) - embedding_parameters) + attention

    def _init_weights(self) -> None:
        """Initialize as GPT-2: weights from N(0, 0.02), biases 0, scales of norms 1.

        Each block adds to the residual stream twice (`c_proj` of attention and MLP). Their standard deviation is
        divided by sqrt(2 * n_layer), so that the sum over all blocks does not grow with depth (Radford et al. 2019,
        section 2.3). With `zero_init` these matrices, an untied output and the n-gram embeddings are zero: at first
        each block is the identity (Fixup, Zhang et al. 2019).
        """
        config = self.config
        zeroed = ("c_proj.weight",) if config.tied else ("c_proj.weight", "lm_head.weight")
        residual_std = 0.02 / math.sqrt(2 * config.n_layer)
        # named_parameters() lists shared weights once. The order decides which random numbers a matrix gets.
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or (config.zero_init and (name.endswith(zeroed) or "ngrams" in name)):
                nn.init.zeros_(parameter)
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith("c_proj.weight") else 0.02)


class Transformer(nn.Module):
    """Embeddings, blocks and a final norm: token ids (B, T) in, hidden states (B, T, C) out."""

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        head_size = config.n_embd // config.n_head
        is_rotary = config.position == "rotary"
        self.rotary = RotaryEmbedding(config.block_size, head_size, config.rope_theta) if is_rotary else None
        self.ngrams = NgramEmbedding(config, vocab_size) if config.ngram > 1 else None
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config)

    def forward(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        B, T = idx.shape
        past = cache.length if cache is not None else 0
        assert past + T <= self.config.block_size, f"{past} cached and {T} new tokens exceed the context"
        positions = cache.positions(T) if cache is not None else torch.arange(T, device=idx.device)  # (T,)
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        if self.ngrams is not None:
            previous_ids = cache.recent_ids if cache is not None else idx.new_zeros(B, self.config.ngram - 1)
            x = x + self.ngrams(idx, previous_ids)
        x = dropout(x, self.config.dropout, self.training, fast=self.config.fast_dropout)
        cos_sin = self.rotary(positions, devices.linear_dtype(x)) if self.rotary is not None else None  # for all blocks
        recomputes = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        for layer, block in enumerate(self.h):
            x = recomputed(block, x, cos_sin, cache, layer) if recomputes else block(x, cos_sin, cache, layer)
        if cache is not None:
            cache.advance(idx)
        hidden: Tensor = self.ln_f(x)
        return hidden
