"""A result that is right with a gradient that is not a number: a fault that shows in a backward pass only."""

import torch


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan
