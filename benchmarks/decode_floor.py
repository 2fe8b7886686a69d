"""How far the sampling of one text on a CPU is from what PyTorch's operators allow.

    python benchmarks/decode_floor.py

A token of the network of `shakespeare_char` (10.65M parameters), in float32 and with 8-bit weights, is computed in
four ways, in turn:

- sample: `generate`, which computes the logits and draws a token;
- modules: the logits alone, by the modules of the network, which work for all options and batch sizes;
- step: the same logits by a function for this network alone, with as few operators as we could find;
- products: the matrix products of the blocks alone, which read nearly all weights from memory.

The operators that were called are counted, and timed by PyTorch's profiler.
"""

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from operators import WITHOUT_KERNEL, OperatorLog
from table import describe_environment, exit_status, machine_line, save
from torch import Tensor
from torch.nn import functional as F

import nanogpt_lite as ng
from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.generation import cpu_linear
from nanogpt_lite.generation.cpu_linear import BlockedLinear, Int8Linear
from nanogpt_lite.generation.decoding import decode_one_token
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.model.shallow_copy import copy_modules

OUT = Path(__file__).resolve().parent / "results" / "decode_floor"
FORMATS = ("float32", "int8")
WAYS = ("sample", "modules", "step", "products")
VOCAB_SIZE = 65
Weight = Tensor | tuple[Tensor, Tensor]
MAX_LISTED = 8  # operators of a way that take most of the time


def main() -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The command line. `UserError` for invalid values."""
    parser = argparse.ArgumentParser(description="The floor of sampling one text on a CPU.", allow_abbrev=False)
    parser.add_argument("--tokens", type=int, default=200, help="in a row, in each way (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of which the median is taken (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as the program takes")
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    longest = NetworkConfig().block_size
    if not cpu_linear.MIN_TOKENS <= args.tokens <= longest or args.repeats < 1 or args.threads < 0:
        allowed = f"--tokens must be {cpu_linear.MIN_TOKENS} to {longest}, --repeats at least 1, --threads at least 0"
        raise ng.UserError(f"{allowed}; give other numbers")
    return args


def measure(args: argparse.Namespace) -> None:
    """Measure all ways in turn, and write the table."""
    words = ["--tokens", str(args.tokens), "--repeats", str(args.repeats), "--threads", str(args.threads)]
    report = describe_environment(shlex.join(["python", "benchmarks/decode_floor.py", *words]), threads=args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    report["rows"] = [measure_format(name, args.tokens, args.repeats) for name in FORMATS]
    save(report, markdown(report), args.out)
    print(markdown(report), end="")


def measure_format(name: str, tokens: int, repeats: int) -> dict[str, Any]:
    """The milliseconds per token and the operators of each way, with the weights in one format."""
    torch.manual_seed(0)
    model = GPT(NetworkConfig(), VOCAB_SIZE).eval()
    prepared = copy_modules(model)
    if name == "int8":
        cpu_linear.quantize_int8(prepared)
    else:
        cpu_linear.optimize_linears(prepared, batch_size=1)
    step = FewestOperators.of(prepared)

    def sample(count: int) -> Tensor:
        config = SampleConfig(max_new_tokens=count, temperature=0.8, top_k=200)
        return torch.cat([*generate(prepared, torch.zeros(1, 1, dtype=torch.int64), config)])

    def modules(count: int) -> Tensor:
        cache = KVCache(prepared, batch=1)
        token = torch.zeros(1, 1, dtype=torch.int64)
        return torch.cat([decode_one_token(prepared, token, cache) for _ in range(count)])

    def fewest(count: int) -> Tensor:
        return torch.cat([step.logits(0, position) for position in range(count)])

    ones = torch.ones(1, 4 * model.config.n_embd)

    def products(count: int) -> Tensor:
        return torch.cat([step.products(ones) for _ in range(count)])

    ways: dict[str, Callable[[int], Tensor]] = dict(zip(WAYS, (sample, modules, fewest, products), strict=True))
    with torch.inference_mode():
        tolerance = 1e-2 if name == "int8" else 1e-4  # inputs in bfloat16 may be rounded otherwise
        torch.testing.assert_close(fewest(tokens), modules(tokens), atol=tolerance, rtol=tolerance)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way, compute in ways.items():  # in turn, so that other load on the machine meets all ways
                start = time.perf_counter()
                compute(tokens)
                seconds[way].append((time.perf_counter() - start) / tokens)
        return {
            "format": name,
            "ms": {way: 1000 * median(values) for way, values in seconds.items()},
            "operators": {way: count_operators(ways[way]) for way in WAYS[1:]},
            "trace": {way: trace(ways[way], tokens) for way in WAYS[1:]},
        }


@dataclass(frozen=True)
class FewestOperators:
    """A step of a network of GPT-2's kind, without biases and dropout, for one text on a CPU.

    In a block: two norms, four products, of which two add to the residual stream, one copy of a key and a value into
    the cache, attention, and the activation function; views take little time. With 8-bit weights, whose product cannot
    add and takes bfloat16, there are six more.
    """

    token_embedding: Tensor  # (V, C)
    position_embedding: Tensor  # (S, C)
    head: Tensor  # (V, C)
    norm: Tensor  # (C,)
    layers: list[tuple[Tensor, Tensor, list[Weight]]]  # two norms, and four weights
    cache: Tensor  # (S, L, 2, H, D): what a token adds is in one piece
    n_head: int

    @classmethod
    def of(cls, model: GPT) -> "FewestOperators":
        """The step of a network whose linear layers were replaced for generation."""
        config, transformer = model.config, model.transformer
        layers = []
        block: Any
        for block in transformer.h:
            linears = [block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj]
            layers.append((block.ln_1.weight, block.ln_2.weight, [weight_of(linear) for linear in linears]))
        assert transformer.wpe is not None, "the network has learned positions"
        assert isinstance(transformer.ln_f, torch.nn.LayerNorm)
        shape = (config.block_size, config.n_layer, 2, config.n_head, config.n_embd // config.n_head)
        return cls(
            transformer.wte.weight,
            transformer.wpe.weight,
            model.lm_head.weight,
            transformer.ln_f.weight,
            layers,
            torch.zeros(shape),
            config.n_head,
        )

    def logits(self, token: int, position: int) -> Tensor:
        """The logits (1, V) after a token."""
        x = self.token_embedding[token] + self.position_embedding[position]  # (C,)
        C = len(x)
        x = x.view(1, C)
        kept = self.cache[: position + 1].permute(1, 2, 3, 0, 4).unbind()  # (2, H, S, D) of each layer
        rows = self.cache[position].unbind()  # (2, H, D) of each layer
        for (first_norm, second_norm, weights), keys_values, row in zip(self.layers, kept, rows, strict=True):
            qkv, projection, expand, contract = weights
            y = product(torch.layer_norm(x, (C,), first_norm), qkv).view(3, self.n_head, -1)
            row.copy_(y[1:])
            k, v = keys_values.unbind()
            q = y[0].to(x.dtype).view(1, self.n_head, 1, -1)
            y = F.scaled_dot_product_attention(q, k[None], v[None]).view(1, C)
            x = add_product(x, y, projection)
            y = F.gelu(product(torch.layer_norm(x, (C,), second_norm), expand))
            x = add_product(x, y.view(1, -1), contract)
        return F.linear(torch.layer_norm(x, (C,), self.norm), self.head)

    def products(self, x: Tensor) -> Tensor:
        """The matrix products of the blocks, each with the beginning of x (1, 4 C)."""
        y = x
        for _, _, weights in self.layers:
            for weight in weights:
                size = (weight[0] if isinstance(weight, tuple) else weight).size(1)
                y = product(x[:, :size], weight)
        return y.view(1, -1)


def weight_of(layer: torch.nn.Module) -> Weight:
    """The weight of a layer: blocks (N, C_in, columns), or 8-bit numbers (C_out, C_in) and scales."""
    if isinstance(layer, Int8Linear):
        assert not layer.padding, "the input is whole vectors"
        return layer.int8_weight, layer.scales
    assert isinstance(layer, BlockedLinear)
    return layer.blocks


def product(x: Tensor, weight: Weight) -> Tensor:
    """x (1, C_in) times a weight; of 8 bits: (1, C_out) in bfloat16, else (N, 1, columns) in float32."""
    if isinstance(weight, tuple):
        return torch._weight_int8pack_mm(x.bfloat16(), *weight)
    return torch.bmm(x.expand(len(weight), 1, -1), weight)


def add_product(x: Tensor, y: Tensor, weight: Weight) -> Tensor:
    """x (1, C_out) plus y (1, C_in) times a weight."""
    if isinstance(weight, tuple):
        return x + product(y, weight)
    return torch.baddbmm(x.view(len(weight), 1, -1), y.expand(len(weight), 1, -1), weight).view_as(x)


def count_operators(compute: Callable[[int], Tensor]) -> int:
    """The operators of one more token that are no views and do more than allocate."""
    counts = []
    for tokens in (1, 2):
        with OperatorLog(item_value=0.0) as log:
            compute(tokens)
        counts.append(sum(not operator.is_view and operator.name not in WITHOUT_KERNEL for operator in log.operators))
    return counts[1] - counts[0]


def trace(compute: Callable[[int], Tensor], tokens: int) -> dict[str, dict[str, float]]:
    """Calls per token and microseconds per token of the operators that take most of the time, by PyTorch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        compute(tokens)
    times, calls = Counter[str](), Counter[str]()
    for event in profiler.key_averages():
        times[event.key] += event.self_cpu_time_total / tokens
        calls[event.key] += event.count / tokens
    return {name: {"calls": calls[name], "us": us} for name, us in times.most_common(MAX_LISTED)}


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    lines = [machine_line(report), ""]
    lines += [f"| weights | {' | '.join(f'{way}, ms' for way in WAYS)} | modules / step | modules / products |"]
    lines += [f"|---|{'---:|' * (len(WAYS) + 2)}"]
    for row in report["rows"]:
        ms = row["ms"]
        ratios = f"{ms['modules'] / ms['step']:.2f} | {ms['modules'] / ms['products']:.2f}"
        lines += [f"| {row['format']} | {' | '.join(f'{ms[way]:.2f}' for way in WAYS)} | {ratios} |"]
    lines += [
        "",
        "Per token, medians. sample: with drawing the token. modules: the logits. step: the same, by the fewest",
    ]
    lines += ["operators. products: the matrix products of the blocks alone.", ""]
    for row in report["rows"]:
        for way in WAYS[1:]:
            lines += [f"{row['format']}, {way}: {row['operators'][way]} operators per token", ""]
            lines += ["| operator | calls per token | µs per token |", "|---|---:|---:|"]
            for name, numbers in row["trace"][way].items():
                lines += [f"| {name.removeprefix('aten::')} | {numbers['calls']:.1f} | {numbers['us']:.0f} |"]
            lines += [""]
    lines += ["The profiler makes each operator slower, so that these numbers add up to more than a token takes."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
