"""The network of GPT-2, as nanoGPT has it, and what came after: token ids in, logits out.

Each later part is an option of `NetworkConfig`; without them the network is nanoGPT's. Names of modules and
parameters are GPT-2's, so that weights go in and out unchanged. Training is left to
`trainer`, drawing text to `sampling`.

Shapes: B batch, T time (new tokens), S time with what the cache holds, C channels (n_embd), H heads,
D head size (C / H), V vocabulary.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.activations import ACTIVATIONS
from nanogpt_lite.model.attention import CausalSelfAttention
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.model.rotary import CosSin


def make_norm(config: NetworkConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016), or RMSNorm (Zhang and Sennrich 2019) with nothing to train."""
    if config.norm == "rms":
        return nn.RMSNorm(config.n_embd, elementwise_affine=False)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


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
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turns: CosSin | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), turns, cache, layer)
        x = x + self.mlp(self.ln_2(x))
        return x  # noqa: RET504 (the two lines show what is alike)
