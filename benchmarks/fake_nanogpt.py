"""nanoGPT on the fake GPU: the operators of a training step."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import fake_gpu  # before torch
import fake_training
import torch
from operators import Operator

SIZE = {"block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384, "vocab_size": 65}


def step_operators(clone: str, *, compiled: bool = False) -> list[Operator]:
    """The operators of the second step of nanoGPT's train.py, with config/train_shakespeare_char.py.

    To compile, see `fake_inductor`.
    """
    with fake_gpu.fake_gpu() as device:
        model = _make_model(clone, device)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cuda")
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        network = torch.compile(model) if compiled else model
        for _ in range(2):
            batch = fake_training.random_batch(64, SIZE["block_size"])
            with fake_training.log_step() as log:
                x, y = (tensor.pin_memory().to(device, non_blocking=True) for tensor in batch)
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = network(x, y)[1]
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
    return log.operators


def _make_model(clone: str, device: torch.device) -> Any:
    specification = importlib.util.spec_from_file_location("nanogpt_model", Path(clone) / "model.py")
    assert specification is not None
    assert specification.loader is not None
    nanogpt = importlib.util.module_from_spec(specification)
    sys.modules["nanogpt_model"] = nanogpt  # its dataclass looks there
    specification.loader.exec_module(nanogpt)
    with device:
        return nanogpt.GPT(nanogpt.GPTConfig(**SIZE, dropout=0.2, bias=False))
