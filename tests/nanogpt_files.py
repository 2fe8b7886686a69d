"""A ckpt.pt of nanoGPT for the tests, made with transformers and PyTorch's AdamW instead of this program."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_GPT

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": True}
SMALL: dict[str, Any] = {**TINY_GPT, **SHAPE, "max_iters": 6, "eval_interval": 3}
OPTIONS: dict[str, Any] = {
    "learning_rate": 0.01,
    "weight_decay": 0.3,
    "beta1": 0.8,
    "beta2": 0.9,
    "warmup_iters": 2,
    "min_lr": 0.001,
}
OPTIONS |= {"max_iters": 20, "lr_decay_iters": 20, "batch_size": 4, "gradient_accumulation_steps": 1, "grad_clip": 1.0}
OPTIONS |= {"decay_lr": True, "eval_interval": 5, "eval_iters": 3, "log_interval": 1, "dropout": 0.0}
NANOGPT_ONLY_OPTIONS = {"out_dir": "out", "eval_only": False, "always_save_checkpoint": True, "backend": "nccl"}
NANOGPT_ONLY_OPTIONS |= {
    "wandb_log": False,
    "init_from": "scratch",
    "dtype": "float16",
    "device": "cpu",
    "compile": True,
}
STEPS = 3


class Canary:
    """Creates the file `executed` when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("executed").absolute(),))


def nanogpt_parameters(model):
    """The parameters of a GPT-2 of transformers under nanoGPT's names, in the order of its modules."""
    named = {}
    for name, parameter in model.named_parameters():
        turned = name.endswith("weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        named[name] = parameter.detach().t().clone() if turned else parameter.detach().clone()
    return {name: torch.nn.Parameter(tensor.contiguous()) for name, tensor in named.items()}


def make_nanogpt_optimizer(named):
    """AdamW as nanoGPT makes it."""
    decayed = [p for p in named.values() if p.dim() >= 2]
    rest = [p for p in named.values() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))


def save_ckpt(content, **changes):
    torch.save({**content, **changes}, "out/ckpt.pt")


def make_nanogpt_ckpt(text_file):
    """out/ckpt.pt and data/bottles/meta.pkl as nanoGPT writes them after three steps on random gradients.

    Returns the content of ckpt.pt, the same network as a GPT-2 of transformers, its parameters under nanoGPT's names,
    and their optimizer.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    chars = sorted(set(text_file.read_text()))
    form = transformers.GPT2Config(
        vocab_size=len(chars), n_positions=16, n_embd=16, n_layer=2, n_head=2, activation_function="gelu"
    )
    model = transformers.GPT2LMHeadModel(form).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    named = nanogpt_parameters(model)
    optimizer = make_nanogpt_optimizer(named)
    for _ in range(STEPS):
        for parameter in named.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            turned = parameter.shape != named[name].shape or any(p in name for p in ("c_attn.w", "c_proj.w", "c_fc.w"))
            parameter.copy_(named[name].t() if turned else named[name])
    weights = {name: parameter.detach() for name, parameter in named.items()}
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 16, 16).tril() for n in range(2)}
    content = {
        "model": {**weights, **masks, "lm_head.weight": weights["transformer.wte.weight"]},
        "optimizer": optimizer.state_dict(),
        "model_args": {**SHAPE, "dropout": 0.0, "vocab_size": len(chars)},
        "iter_num": STEPS,
        "best_val_loss": torch.tensor(2.5),
        "config": {**OPTIONS, **NANOGPT_ONLY_OPTIONS, **SHAPE, "dataset": "bottles"},
    }
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": {c: n for n, c in enumerate(chars)}}
    Path("out").mkdir()
    torch.save(content, "out/ckpt.pt")
    Path("data/bottles").mkdir(parents=True)
    Path("data/bottles/meta.pkl").write_bytes(pickle.dumps(meta))
    return content, model, named, optimizer
