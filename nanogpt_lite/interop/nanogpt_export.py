"""Write a checkpoint as nanoGPT's ckpt.pt, and a character tokenizer as its meta.pkl."""

import pickle
from pathlib import Path
from typing import Any

import torch

from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.validation import meta_model
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.interop.export_checks import unsupported_options
from nanogpt_lite.interop.nanogpt_format import INITIAL_LOSS, MODEL_ARGS, VOCAB_SIZES, optimizer_parameter_names
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer


def require_nanogpt_compatible(config: TrainConfig, tokenizer: Tokenizer, path: Path) -> None:
    """`UserError` unless nanoGPT has this network and this tokenizer. `path` is the checkpoint, for the message."""
    missing = unsupported_options(config, supported=MODEL_ARGS)
    tokenizer_name = tokenizer.to_json()["type"]
    is_gpt2 = tokenizer_name == "gpt2" and tokenizer.vocab_size in VOCAB_SIZES
    if tokenizer_name != "char" and not is_gpt2:
        missing.append(f"tokenizer={tokenizer_name}")
    if missing:
        raise UserError(
            f"nanoGPT has no network like the one in {path}, with {', '.join(missing)}; train one that it has: "
            "`preset='shakespeare_char'` or `preset='cpu'`, `tokenizer='char'`"
        )


def export_nanogpt_checkpoint(
    saved: Checkpoint, config: TrainConfig, tokenizer: Tokenizer, *, dataset: str, path: Path
) -> None:
    """Write a checkpoint as nanoGPT's ckpt.pt; `dataset` is the folder in nanoGPT's data. `OSError` if that fails."""
    weights, metadata = saved.with_prefix("model."), saved.metadata
    content = {
        "model": {**weights, "lm_head.weight": weights["transformer.wte.weight"]},
        "optimizer": _adamw_state_dict(saved, config),
        "model_args": {
            **{name: getattr(config, name) for name in (*MODEL_ARGS, "dropout")},
            "vocab_size": tokenizer.vocab_size,
        },
        "iter_num": metadata.step,
        "best_val_loss": INITIAL_LOSS if metadata.best_val_loss is None else metadata.best_val_loss,
        "config": {**config.stored(), "dataset": dataset, "device": metadata.device},
    }
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # PyTorch replaces an OSError by a RuntimeError about its archive
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def write_meta(tokenizer: CharTokenizer, path: Path) -> None:
    """Write nanoGPT's meta.pkl: a pickle of an int and two dicts."""
    itos = dict(enumerate(tokenizer.chars))
    content = {"vocab_size": len(itos), "itos": itos, "stoi": {char: id_ for id_, char in itos.items()}}
    path.write_bytes(pickle.dumps(content))


def _adamw_state_dict(saved: Checkpoint, config: TrainConfig) -> dict[str, Any]:
    """The state_dict of the AdamW that nanoGPT makes; its "state" is empty if there is none, or if it is Muon's."""
    model = meta_model(config, saved.tensors["model.transformer.wte.weight"].size(0))
    names = optimizer_parameter_names(model)
    states = [saved.with_prefix(f"optimizer.{name}.") for name in names]
    n_decayed = sum(parameter.dim() >= 2 for parameter in model.parameters())
    placeholders = [torch.empty(0) for _ in names]
    groups = [
        {"params": placeholders[:n_decayed], "weight_decay": config.weight_decay},
        {"params": placeholders[n_decayed:], "weight_decay": 0.0},
    ]
    lr = learning_rate(saved.metadata.step, config)
    state_dict = torch.optim.AdamW(groups, lr=lr, betas=(config.beta1, config.beta2)).state_dict()
    has_state = all(states) and config.optimizer == "adamw"
    return {**state_dict, "state": dict(enumerate(states)) if has_state else {}}
