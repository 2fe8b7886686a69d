import pytest
import torch

from nanogpt_lite.model.activations import squared_relu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_squares_what_is_above_zero_in_any_format(dtype):
    x = torch.tensor([-2.0, -0.0, 0.0, 0.5, 3.0], dtype=dtype)
    assert torch.equal(squared_relu(x), torch.tensor([0.0, 0.0, 0.0, 0.25, 9.0], dtype=dtype))


def test_its_gradient_is_the_slope_that_differences_show():
    assert torch.autograd.gradcheck(squared_relu, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))
