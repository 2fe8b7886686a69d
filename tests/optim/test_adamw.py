"""AdamW against PyTorch's class, bit for bit, and what the class would cost."""

import subprocess
import sys

import pytest
import torch

from nanogpt_lite.optim.adamw import AdamW


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(7, 5), (300, 40), (11,)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_pytorchs_class(dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer = AdamW([
        {"params": ours[:2], "weight_decay": 0.3, "lr": 0.02, "betas": (0.8, 0.95)},
        {"params": ours[2:], "weight_decay": 0.0, "lr": 0.02, "betas": (0.8, 0.95)},
    ])  # fmt: skip
    groups = [{"params": theirs[:2], "weight_decay": 0.3}, {"params": theirs[2:], "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95), fused=True)
    for number in range(5):
        for group in (*optimizer.param_groups, *expected.param_groups):
            group["lr"] = 0.02 / (number + 1)
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one) if number != 2 or one.dim() == 1 else None
            other.grad = one.grad.clone() if one.grad is not None else None
        optimizer.step()
        expected.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert optimizer.state[one].keys() == expected.state[other].keys()
        assert all(torch.equal(value, expected.state[other][name]) for name, value in optimizer.state[one].items())
    optimizer.zero_grad()
    assert all(one.grad is None for one in ours)


def test_no_command_imports_pytorchs_compiler(tmp_path):
    (tmp_path / "my.txt").write_text("all is well that ends well " * 40)
    code = """
import sys
from nanogpt_lite.cli import main
tiny = "--n_layer 1 --n_embd 16 --block_size 8 --batch_size 2 --max_iters 3 --ngram_rows 9"
assert main.main(["train", "--dataset", "my.txt", "--device", "cpu", *tiny.split()]) == 0
for again in ("sample --device cpu", "info", "train --init_from resume --max_iters 4 --device cpu"):
    assert main.main(again.split()) == 0
assert "torch" in sys.modules
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
