"""A result that is right with a gradient that is wrong: a fault that shows in a backward pass only."""

import torch


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None


def with_wrong_gradient(x, factor=torch.nan):
    """x, with a gradient that is multiplied by `factor`."""
    return _ScaledGradient.apply(x, factor)
