"""The network of GPT-2, as nanoGPT has it: token ids in, logits out.

Names of modules and parameters are GPT-2's, so that weights go in and out unchanged. Training is left to
`trainer`, drawing text to `sampling`.

Shapes: B batch, T time (new tokens), S time with what the cache holds, C channels (n_embd), H heads,
D head size (C / H), V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.config import NetworkConfig


class KVCache:
    """Keys and values of the tokens that the network has seen: `length` tokens of each of B rows.

    Passed to `GPT.forward`, which appends to it. One tensor each, shape (n_layer, B, H, block_size, D).
    """

    def __init__(self, model: "GPT", batch: int) -> None:
        config = model.config
        weight = model.lm_head.weight
        shape = (config.n_layer, batch, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, (B, H, T, D) each; return all of them, (B, H, S, D) each."""
        end = self.length + key.size(2)
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class CausalSelfAttention(nn.Module):
    """Each token looks at itself and at the tokens before it (GPT-2; Vaswani et al. 2017)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        B, T, C = x.shape
        query, key, value = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=2)
        )
        if cache is not None:
            key, value = cache.append(layer, key, value)
        S = key.size(2)
        # One new token sees everything; a whole prompt is causal; several after a cache need the lower right corner.
        corner = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T) if 1 < T < S else None
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, corner, dropout, is_causal=1 < T == S)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with GELU in between, four times as wide inside."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy, each added to what came in."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, layer)
        x = x + self.mlp(self.ln_2(x))
        return x  # noqa: RET504 (the two lines show what is alike)


class Transformer(nn.Module):
    """Embeddings, blocks, a last normalisation: token ids in, one vector of C channels per token out."""

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        past, T = cache.length if cache is not None else 0, idx.size(1)
        assert past + T <= self.wpe.num_embeddings, f"{past} + {T} tokens exceed the context"
        positions = torch.arange(past, past + T, device=idx.device)
        x = F.dropout(self.wte(idx) + self.wpe(positions), self.dropout, self.training)  # (B, T, C)
        for layer, block in enumerate(self.h):
            x = block(x, cache, layer)
        if cache is not None:
            cache.length += T
        normalised: Tensor = self.ln_f(x)
        return normalised


class GPT(nn.Module):
    """A decoder-only transformer; its output matrix is the token embedding (Press and Wolf 2017)."""

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.transformer = Transformer(config, vocab_size)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
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
        return total if positions else total - self.transformer.wpe.weight.numel()

    def flops_per_token(self) -> float:
        """Floating-point operations per token of a training step, forward and backward (PaLM, appendix B)."""
        config = self.config
        attention = 12 * config.n_layer * config.n_embd * config.block_size
        return 6 * self.num_parameters(positions=False) + attention

    def _init_weights(self) -> None:
        """GPT-2's: normal with 0.02, the ends of the residual branches smaller by the root of their number."""
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=residual if name.endswith("c_proj.weight") else 0.02)
