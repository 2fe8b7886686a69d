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

from nanogpt_lite.activation import ACTIVATIONS
from nanogpt_lite.attention import Rotary, Turns, attend, rotate
from nanogpt_lite.config import NetworkConfig
from nanogpt_lite.ngrams import NgramEmbedding


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


def normalisation(config: NetworkConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016), or RMSNorm (Zhang and Sennrich 2019) with nothing to train."""
    if config.norm == "rms":
        return nn.RMSNorm(config.n_embd, elementwise_affine=False)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


class CausalSelfAttention(nn.Module):
    """Each token looks at itself and at the tokens before it (GPT-2; Vaswani et al. 2017)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, turns: Turns | None, cache: KVCache | None, layer: int) -> Tensor:
        B, T, C = x.shape
        parts = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        query_key, value = parts.split((2, 1))
        value = value.squeeze(0)
        if self.qk_norm:  # Dehghani et al. 2023, section 2; without gains
            query_key = F.layer_norm(query_key, query_key.shape[-1:])
        if turns is not None:
            query_key = rotate(query_key, turns)
        query, key = query_key.unbind()
        seen = None
        if cache is not None:
            key, value, seen = cache.append(layer, key, value)
        y = attend(query, key, value, dropout=self.dropout if self.training else 0.0, seen=seen)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with GELU or squared ReLU in between, four times as wide inside."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = config.dropout
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        x = ACTIVATIONS[self.activation](x)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy, each added to what came in."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.ln_1 = normalisation(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = normalisation(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turns: Turns | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), turns, cache, layer)
        x = x + self.mlp(self.ln_2(x))
        return x  # noqa: RET504 (the two lines show what is alike)


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
        self.ln_f = normalisation(config)

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
