"""One transformer block: attention and MLP, each with a norm before it and a residual connection around it.

This is the pre-norm order of GPT-2 (Radford et al. 2019, section 2.3). For the meaning of the shape letters see `gpt`.
"""

from torch import Tensor, nn

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.activations import ACTIVATIONS
from nanogpt_lite.model.attention import CausalSelfAttention
from nanogpt_lite.model.dropout import dropout
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.model.rotary import CosSin


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), with x of shape (B, T, C)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), cos_sin, cache, layer)
        x = x + self.mlp(self.ln_2(x))
        return x  # noqa: RET504 (two parallel lines, as in nanoGPT)


class MLP(nn.Module):
    """Two linear layers with an activation function between them; the hidden layer has 4 C channels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout, self.fast_dropout = config.dropout, config.fast_dropout
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)  # (B, T, 4 C)
        x = ACTIVATIONS[self.activation](x)
        x = self.c_proj(x)  # (B, T, C)
        return dropout(x, self.dropout, self.training, fast=self.fast_dropout)


def make_norm(config: NetworkConfig) -> nn.Module:
    """Return a LayerNorm (Ba et al. 2016), or an RMSNorm (Zhang and Sennrich 2019) without a learnable scale."""
    if config.norm == "rms":
        return nn.RMSNorm(config.n_embd, elementwise_affine=False)
    return nn.LayerNorm(config.n_embd, bias=config.bias)
