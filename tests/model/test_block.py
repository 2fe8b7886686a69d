import dataclasses

import torch
from random_gpt import SMALL, random_variant

from nanogpt_lite.model.block import make_norm


def test_rms_norm_has_no_parameters_and_returns_a_root_mean_square_of_one():
    norm = make_norm(dataclasses.replace(SMALL, norm="rms"))
    assert not list(norm.parameters())
    x = torch.randn(5, 32) * 7
    torch.testing.assert_close(norm(x), x / (x * x).mean(dim=1, keepdim=True).sqrt(), atol=1e-4, rtol=1e-4)


def test_relu2_mlp_and_its_gradients_equal_the_formula():
    mlp = random_variant({"activation": "relu2"}).transformer.h[0].mlp
    x = torch.randn(3, 4, 32, requires_grad=True)
    hidden = (x @ mlp.c_fc.weight.T + mlp.c_fc.bias).clamp(min=0) ** 2
    expected = hidden @ mlp.c_proj.weight.T + mlp.c_proj.bias
    torch.testing.assert_close(mlp(x), expected, atol=1e-4, rtol=1e-4)
    gradients = [torch.autograd.grad(y.sin().sum(), [x, mlp.c_fc.weight]) for y in (mlp(x), expected)]
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)
