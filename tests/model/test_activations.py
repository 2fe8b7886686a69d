import pytest
import torch

from nanogpt_lite.model.activations import squared_relu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_squared_relu_squares_positive_inputs_in_every_dtype(dtype):
    x = torch.tensor([-2.0, -0.0, 0.0, 0.5, 3.0], dtype=dtype)
    assert torch.equal(squared_relu(x), torch.tensor([0.0, 0.0, 0.0, 0.25, 9.0], dtype=dtype))


def test_squared_relu_gradient_equals_finite_differences():
    assert torch.autograd.gradcheck(squared_relu, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))
