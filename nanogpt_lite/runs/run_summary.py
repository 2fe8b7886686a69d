"""The summary of a run: parameters by part, FLOPs, memory, dataset, progress and best loss.

It needs one checkpoint; the versions of libraries are from config.json, if there is one.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict

from nanogpt_lite import files
from nanogpt_lite.checkpoint.validation import meta_model
from nanogpt_lite.config.options import LoadConfig, NetworkConfig, TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.ngrams.ngram_counts import NgramCounts
from nanogpt_lite.optim import build
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import Run, RunLike
from nanogpt_lite.tracking.console import format_result
from nanogpt_lite.tracking.number_format import COUNT_SUFFIXES, format_number
from nanogpt_lite.tracking.records import ResultRecord, StartRecord
from nanogpt_lite.trainer.memory_estimate import estimate_memory

PARAMETER_GROUPS = {  # part of a parameter's name: group; the first that matches counts, and one does
    ".attn.": "attention",
    ".mlp.": "MLP",
    ".ngrams.": "n-gram embedding",
    ".wte.": "token embedding",
    ".wpe.": "position embedding",
    "lm_head.": "output",
    ".ln_": "normalisation",
}


class RunSummary(TypedDict):
    """What `summary` returns, a JSON object.

    Memory is in bytes (weights, gradients and optimizer state in float32), computation in FLOPs, losses in nats per
    token.
    """

    run: str  # the folder
    checkpoint: str  # the name of its file
    step: int
    max_iters: int
    best_val_loss: float | None  # None before the first evaluation
    best_step: int
    parameters: int
    parameters_by_part: dict[str, int]
    ngrams: int  # that the n-gram expert has counted; 0 without one
    bytes_of_ngrams: int
    weight_of_ngrams: float | None  # in the mixture; None without an n-gram expert
    flops_per_token: float
    flops_so_far: float
    bytes_of_weights: int
    bytes_of_training: int
    bytes_on_gpu: dict[str, int]  # in a training step, by part: see `trainer.memory_estimate.MemoryEstimate`
    bytes_of_cache_per_token: int
    bytes_of_file: int
    network: dict[str, Value]
    dataset: str
    dataset_sha256: str
    tokenizer: str
    vocab_size: int
    tokens_seen: int
    device: str
    ranks: int
    dtype: str
    versions: dict[str, str]
    fallbacks: list[str]  # fast paths that the last training went without, and why
    result: dict[str, Any] | None  # the last `ResultRecord` in the metrics; None without one


def summary(run: RunLike = None, *, checkpoint: str = LoadConfig.checkpoint) -> RunSummary:
    """The network, the costs, the dataset and the result of a run.

    `UserError` if there is no such checkpoint, or if it is damaged.
    """
    saved, config, tokenizer = load_checkpoint(run, checkpoint)
    metadata = saved.metadata
    model = meta_model(config, tokenizer.vocab_size)
    expert = saved.with_prefix("model.expert.")
    counts = [expert[name] for name in NgramCounts._fields if expert]  # of the n-grams, and of the root among them
    weight_bytes = 4 * model.num_parameters()
    estimate = estimate_memory(
        config, tokenizer.vocab_size, micro_batch=metadata.micro_batch, world_size=metadata.ranks
    )
    return {
        "run": str(saved.path.parent),
        "checkpoint": saved.path.name,
        "step": metadata.step,
        "max_iters": config.max_iters,
        "best_val_loss": metadata.best_val_loss,
        "best_step": metadata.best_step,
        "parameters": model.num_parameters(),
        "parameters_by_part": _parameters_by_part(model),
        "ngrams": max(map(len, counts), default=1) - 1,
        "bytes_of_ngrams": sum(tensor.nbytes for tensor in counts),
        "weight_of_ngrams": expert["weight"].item() if expert else None,
        "flops_per_token": model.flops_per_token(),
        "flops_so_far": model.flops_per_token() * config.tokens_per_step * metadata.step,
        "bytes_of_weights": weight_bytes,
        "bytes_of_training": 2 * weight_bytes + _optimizer_bytes(model, config),  # with gradients
        "bytes_on_gpu": dataclasses.asdict(estimate),
        "bytes_of_cache_per_token": 2 * 4 * config.n_layer * config.n_embd,  # keys and values in float32
        "bytes_of_file": saved.path.stat().st_size,
        "network": {name: getattr(config, name) for name in NetworkConfig.names()},
        "dataset": config.dataset,
        "dataset_sha256": metadata.dataset_sha256,
        "tokenizer": tokenizer.to_json()["type"],
        "vocab_size": tokenizer.vocab_size,
        "tokens_seen": config.tokens_per_step * metadata.step,
        "device": metadata.device,
        "ranks": metadata.ranks,
        "dtype": config.dtype,
        "versions": _versions(saved.path.parent),
        "fallbacks": _fallbacks(saved.path.parent),
        "result": _last_result(saved.path.parent),
    }


def format_text(content: RunSummary) -> str:
    """A summary as text for people, one topic per line."""
    network, groups = content["network"], content["parameters_by_part"]
    loss = content["best_val_loss"]
    flops, flops_so_far = format_number(content["flops_per_token"]), format_number(content["flops_so_far"])
    weights, training = format_number(content["bytes_of_weights"]), format_number(content["bytes_of_training"])
    cache, file = format_number(content["bytes_of_cache_per_token"]), format_number(content["bytes_of_file"])
    tokens_seen = format_number(content["tokens_seen"], suffixes=COUNT_SUFFIXES)
    lines = {
        "run": f"{content['run']} ({content['checkpoint']}, {file}B)",
        "network": ", ".join(f"{name} {value}" for name, value in network.items() if _is_shown(name, network)),
        "parameters": f"{content['parameters']:,}: "
        + ", ".join(f"{group} {format_number(number, suffixes=COUNT_SUFFIXES)}" for group, number in groups.items()),
        "FLOPs": f"{flops} per token in training, {flops_so_far} so far",
        "memory": f"weights {weights}B; training {training}B plus activations; sampling {cache}B more per token",
        "on a GPU": _describe_memory(content["bytes_on_gpu"]),
        "data": f"{content['dataset']} (SHA-256 {content['dataset_sha256'][:12] or 'not known'}), vocabulary of "
        f"{content['vocab_size']} ({content['tokenizer']}), {tokens_seen} tokens seen",
        "best loss": "none yet" if loss is None else f"{loss:.4f} at step {content['best_step']}",
        "step": f"{content['step']} of {content['max_iters']}",
        "trained with": ", ".join(
            [
                content["device"],
                content["dtype"],
                *map(" ".join, content["versions"].items()),
            ]
        ),
    }
    if content["ngrams"]:
        size = format_number(content["bytes_of_ngrams"])
        lines["n-grams"] = (
            f"{content['ngrams']:,} of up to {network['ngram_expert']} tokens, {size}B; their weight in the mixture is "
            f"{content['weight_of_ngrams']:.2f}"
        )
    if content["fallbacks"]:
        lines["without"] = "; ".join(content["fallbacks"])
    if (result := content["result"]) is not None:
        lines["result"] = "; ".join(format_result(ResultRecord(**result)))
    return "\n".join(f"{name + ':':<13} {line}" for name, line in lines.items())


def _parameters_by_part(model: GPT) -> dict[str, int]:
    """The number of parameters of each group, the largest first."""
    groups: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        groups[next(group for part, group in PARAMETER_GROUPS.items() if part in name)] += parameter.numel()
    return dict(groups.most_common())


def _optimizer_bytes(model: GPT, config: TrainConfig) -> int:
    """The size of the optimizer's state."""
    state_shapes = build.optimizer_state_shapes(build.make_optimizer(model, config)).values()
    return 4 * sum(shape.numel() for shapes in state_shapes for shape in shapes.values())


def _describe_memory(estimate: dict[str, int]) -> str:
    """The memory of a training step, by part."""
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    described = ", ".join(f"{part} {format_number(estimate[part])}B" for part in parts)
    peak, rows = format_number(estimate["peak"]), estimate["micro_batch"]
    return f"training takes about {peak}B with {rows} sequences at a time; by part, at most {described}"


def _is_shown(name: str, network: dict[str, Value]) -> bool:
    """Whether this is one of the sizes, or an option that makes the network another one than the default."""
    fields = {field.name: field for field in dataclasses.fields(NetworkConfig)}
    part_of = fields[name].metadata["part_of"]
    is_default = network[name] == fields[name].default
    has_effect = not part_of or network[part_of] != fields[part_of].default
    return name in ("block_size", "n_layer", "n_head", "n_embd") or (has_effect and not is_default)


def _fallbacks(folder: Path) -> list[str]:
    """What the last start of training says about fast paths; versions before 0.3 say nothing."""
    starts = [record for record in Run(folder).metrics if record["kind"] == StartRecord.kind]
    return [str(text) for text in starts[-1].get("fallbacks", [])] if starts else []


def _last_result(folder: Path) -> dict[str, Any] | None:
    """The last result in the metrics of a run."""
    names = {field.name for field in dataclasses.fields(ResultRecord)}
    results = [record for record in Run(folder).metrics if record["kind"] == ResultRecord.kind]
    return {name: results[-1][name] for name in results[-1] if name in names} if results else None


def _versions(folder: Path) -> dict[str, str]:
    """The versions that the run's config.json names; empty if there is none, or if it is damaged."""
    match files.read_json(folder / "config.json"):
        case {"versions": {**versions}}:
            return {str(name): str(version) for name, version in versions.items()}
    return {}
