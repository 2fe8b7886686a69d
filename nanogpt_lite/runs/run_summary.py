"""What a run is, in numbers: its network part by part, what it costs, its data, how far it came.

From its checkpoint alone and, where it is there, its config.json.
"""

import json
from collections import Counter
from typing import Any

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.restore import read_network
from nanogpt_lite.checkpoint.validation import meta_model, validate_weights
from nanogpt_lite.config.options import LoadConfig, NetworkConfig
from nanogpt_lite.optim import build
from nanogpt_lite.runs import run_folder
from nanogpt_lite.runs.run_folder import RunLike

PARAMETER_GROUPS = {  # the first that stands in a parameter's name
    ".attn.": "attention",
    ".mlp.": "MLP",
    ".ngrams.": "n-gram embedding",
    ".wte.": "token embedding",
    ".wpe.": "position embedding",
    "lm_head.": "output",
    "": "normalisation",
}


def summary(run: RunLike = None, *, checkpoint: str = LoadConfig.checkpoint) -> dict[str, Any]:
    """A run's network, costs, data and result, as a JSON object.

    Parameters are counted in numbers, memory in bytes, operations in FLOPs, losses in nats per token. `UserError` if
    there is no such checkpoint, or if it is damaged.
    """
    saved = checkpoint_file.read_checkpoint(run_folder.find_checkpoint(run, checkpoint))
    config, tokenizer = read_network(saved)
    validate_weights(config, tokenizer.vocab_size, saved)
    model = meta_model(config, tokenizer.vocab_size)
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[next(part for words, part in PARAMETER_GROUPS.items() if words in name)] += parameter.numel()
    weights = 4 * model.num_parameters()
    kept = build.optimizer_state_shapes(build.make_optimizer(model, config)).values()
    slots = 4 * sum(shape.numel() for each in kept for shape in each.values())
    about = saved.metadata
    return {
        "run": str(saved.path.parent),
        "checkpoint": saved.path.name,
        "step": about["step"],
        "max_iters": config.max_iters,
        "best_val_loss": about["best_val_loss"],
        "best_step": about["best_step"],
        "parameters": model.num_parameters(),
        "parameters_by_part": dict(parts.most_common()),
        "flops_per_token": model.flops_per_token(),
        "flops_so_far": model.flops_per_token() * config.tokens_per_step * about["step"],
        "bytes_of_weights": weights,
        "bytes_of_training": 2 * weights + slots,  # with the gradient
        "bytes_of_cache_per_token": 2 * 4 * config.n_layer * config.n_embd,  # in float32
        "bytes_of_file": saved.path.stat().st_size,
        "network": {name: getattr(config, name) for name in NetworkConfig.names()},
        "dataset": config.dataset,
        "dataset_sha256": about["dataset_sha256"],
        "tokenizer": tokenizer.to_json()["type"],
        "vocab_size": tokenizer.vocab_size,
        "tokens_seen": config.tokens_per_step * about["step"],
        "device": about["device"],
        "ranks": about["ranks"],
        "dtype": config.dtype,
        "versions": _versions(run_folder.Run(saved.path.parent)),
    }


def format_text(content: dict[str, Any]) -> str:
    """A summary for people, one thing a line."""
    network, parts = content["network"], content["parameters_by_part"]
    loss = content["best_val_loss"]
    lines = {
        "run": f"{content['run']} ({content['checkpoint']}, {_bytes(content['bytes_of_file'])})",
        "network": ", ".join(f"{name} {value}" for name, value in network.items() if _is_shown(name, value)),
        "parameters": f"{content['parameters']:,}: "
        + ", ".join(f"{part} {_count(number)}" for part, number in parts.items()),
        "FLOPs": f"{_count(content['flops_per_token'])} a token in training, {_count(content['flops_so_far'])} so far",
        "memory": f"weights {_bytes(content['bytes_of_weights'])}; training {_bytes(content['bytes_of_training'])} and "
        f"activations; sampling {_bytes(content['bytes_of_cache_per_token'])} more a token",
        "data": f"{content['dataset']} (SHA-256 {content['dataset_sha256'][:12] or 'not known'}), "
        f"{content['vocab_size']} symbols ({content['tokenizer']}), {_count(content['tokens_seen'])} tokens seen",
        "best loss": "none yet" if loss is None else f"{loss:.4f} at step {content['best_step']}",
        "step": f"{content['step']} of {content['max_iters']}",
        "trained with": ", ".join(
            [content["device"], content["dtype"], *(" ".join(pair) for pair in content["versions"].items())]
        ),
    }
    return "\n".join(f"{name + ':':<13} {line}" for name, line in lines.items())


def _is_shown(name: str, value: Any) -> bool:
    return name in ("block_size", "n_layer", "n_head", "n_embd") or value != getattr(NetworkConfig(), name)


def _bytes(number: float) -> str:
    return f"{_count(number)}B"


def _count(number: float) -> str:
    digits = f"{number:.3g}"  # rounded first: 999,999 is a million
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(digits) >= size:
            return f"{float(digits) / size:.3g}{unit}"
    return digits


def _versions(run: run_folder.Run) -> dict[str, str]:
    """With what the run was made, if its folder still says so."""
    try:
        found = json.loads((run.out_dir / "config.json").read_text(encoding="utf-8"))["versions"]
        return {str(name): str(version) for name, version in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
