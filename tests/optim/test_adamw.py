"""AdamW against `torch.optim.AdamW`, bit for bit, and without the import that the class needs."""

import subprocess
import sys

import pytest
import torch

from nanogpt_lite.optim.adamw import AdamW


def make_parameters(dtype):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(7, 5), (300, 40), (11,)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_and_state_equal_torch_optim_adamw(dtype):
    parameters, expected_parameters = make_parameters(dtype), make_parameters(dtype)
    optimizer = AdamW([
        {"params": parameters[:2], "weight_decay": 0.3, "lr": 0.02, "betas": (0.8, 0.95)},
        {"params": parameters[2:], "weight_decay": 0.0, "lr": 0.02, "betas": (0.8, 0.95)},
    ])  # fmt: skip
    groups = [
        {"params": expected_parameters[:2], "weight_decay": 0.3},
        {"params": expected_parameters[2:], "weight_decay": 0.0},
    ]
    expected = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95), fused=True)
    pairs = list(zip(parameters, expected_parameters, strict=True))
    for step in range(5):
        lr = 0.02 / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for expected_group in expected.param_groups:
            expected_group["lr"] = lr
        for parameter, other in pairs:
            # in one step, only the vector has a gradient
            parameter.grad = torch.randn_like(parameter) if step != 2 or parameter.dim() == 1 else None
            other.grad = parameter.grad.clone() if parameter.grad is not None else None
        optimizer.step()
        expected.step()
    for parameter, other in pairs:
        assert torch.equal(parameter, other)
        state, expected_state = optimizer.state[parameter], expected.state[other]
        assert state.keys() == expected_state.keys()
        assert all(torch.equal(value, expected_state[name]) for name, value in state.items())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


def test_no_command_imports_torch_dynamo(tmp_path):
    (tmp_path / "my.txt").write_text("all is well that ends well " * 40)
    code = """
import sys
from nanogpt_lite.cli import main
tiny = "--n_layer 1 --n_embd 16 --block_size 8 --batch_size 2 --max_iters 3 --ngram_rows 9"
assert main.main(["train", "--dataset", "my.txt", "--device", "cpu", *tiny.split()]) == 0
for command in ("sample --device cpu", "info", "train --init_from resume --max_iters 4 --device cpu"):
    assert main.main(command.split()) == 0
assert "torch" in sys.modules
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
