"""The network of GPT-2, as nanoGPT has it, and what came after: token ids in, logits out.

Each later part is an option of `NetworkConfig`; without them the network is nanoGPT's. Names of modules and
parameters are GPT-2's, so that weights go in and out unchanged. Training is left to
`trainer`, drawing text to `sampling`.

Shapes: B batch, T time (new tokens), S time with what the cache holds, C channels (n_embd), H heads,
D head size (C / H), V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.block import Block, make_norm
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.model.ngram_embedding import NgramEmbedding
from nanogpt_lite.model.rotary import Rotary


class Transformer(nn.Module):
    """Embeddings, blocks, a last normalisation: token ids in, one vector of C channels per token out."""

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        head_size = config.n_embd // config.n_head
        self.rotary = Rotary(config.block_size, head_size) if config.position == "rotary" else None
        self.ngrams = NgramEmbedding(config, vocab_size) if config.ngram > 1 else None
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config)

    def forward(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        past, (B, T) = cache.length if cache is not None else 0, idx.shape
        assert past + T <= self.config.block_size, f"{past} + {T} tokens exceed the context"
        places = cache.places(T) if cache is not None else torch.arange(T, device=idx.device)
        turns = self.rotary(places) if self.rotary is not None else None
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(places)
        if self.ngrams is not None:
            before = cache.recent if cache is not None else idx.new_zeros(B, self.config.ngram - 1)
            x = x + self.ngrams(idx, before)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, turns, cache, layer)
        if cache is not None:
            cache.advance(idx)
        normalised: Tensor = self.ln_f(x)
        return normalised


class GPT(nn.Module):
    """A decoder-only transformer; its output matrix is the token embedding (Press and Wolf 2017) if `tied`."""

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.transformer = Transformer(config, vocab_size)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight
        self._init_weights()

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, *, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) for the token after each of `idx` (B, T), and the mean loss if there are `targets`.

        Token ids are int64. The loss is the cross-entropy with `targets` (B, T), in nats per token. With a
        `cache`, `idx` follows what it holds, and is appended to it. More than `block_size` tokens, the cache's
        included, are a bug of the caller.
        """
        logits = self.lm_head(self.transformer(idx, cache))  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, self.vocab_size), targets.reshape(-1))

    def num_parameters(self, *, positions: bool = True) -> int:
        """How many numbers are trained; nanoGPT reports them without the position embedding."""
        total = sum(parameter.numel() for parameter in self.parameters())
        wpe = self.transformer.wpe
        return total if positions or wpe is None else total - wpe.weight.numel()

    def flops_per_token(self) -> float:
        """Floating-point operations per token of a training step, forward and backward (PaLM, appendix B).

        What is only looked up takes none.
        """
        config, transformer = self.config, self.transformer
        looked_up: list[nn.Module] = [] if config.tied else [transformer.wte]
        looked_up += [transformer.ngrams] if transformer.ngrams is not None else []
        idle = sum(parameter.numel() for part in looked_up for parameter in part.parameters())
        attention = 12 * config.n_layer * config.n_embd * config.block_size
        return 6 * (self.num_parameters(positions=False) - idle) + attention

    def _init_weights(self) -> None:
        """GPT-2's: normal with 0.02, the ends of the residual branches smaller by the root of their number.

        With `zero_init` these ends, an untied output and the n-grams begin at zero: at first a block changes nothing.
        """
        config = self.config
        ends = ("c_proj.weight",) if config.tied else ("c_proj.weight", "lm_head.weight")
        residual = 0.02 / math.sqrt(2 * config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or (config.zero_init and (name.endswith(ends) or "ngrams" in name)):
                nn.init.zeros_(parameter)
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=residual if name.endswith("c_proj.weight") else 0.02)
