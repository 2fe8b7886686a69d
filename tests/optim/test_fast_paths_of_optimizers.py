"""The check of fused and foreach operators: on the CPU, with faults put into what PyTorch computes."""

import pytest
import torch
from torch.optim.adamw import adamw as torch_adamw

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.optim import adamw, build

CPU = torch.device("cpu")
FOREACH = ("_foreach_mul_", "_foreach_lerp_", "_foreach_lerp", "_foreach_add_")


pytestmark = pytest.mark.usefixtures("fresh_fast_paths")


def check(fast_path, **options):
    build._check_fast_path(fast_path, TrainConfig(**{"optimizer": "muon", "dtype": "float32", **options}), CPU)


@pytest.mark.parametrize("fast_path", [FastPath.FUSED_ADAMW, FastPath.FOREACH])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_operators_are_used(fast_path, dtype):
    check(fast_path, dtype=dtype)
    assert not fallbacks.describe()


def test_the_plain_path_calls_no_fast_operator(monkeypatch):
    config = TrainConfig(optimizer="muon", dtype="float32")
    expected = build._updates_of_small_network(config, CPU)
    for name in FOREACH:
        monkeypatch.setattr(torch, name, None)
    calls = []
    plain = torch_adamw
    monkeypatch.setattr(adamw, "adamw", lambda *args, **kw: (calls.append(kw["fused"]), plain(*args, **kw)))
    with fallbacks.without(FastPath.FUSED_ADAMW), fallbacks.without(FastPath.FOREACH):
        for result, other in zip(build._updates_of_small_network(config, CPU), expected, strict=True):
            torch.testing.assert_close(result, other, atol=1e-5, rtol=1e-5)
    assert calls
    assert not any(calls)


@pytest.mark.parametrize("name", FOREACH)
def test_each_wrong_foreach_operator_is_noticed(name, monkeypatch):
    right = getattr(torch, name)

    def wrong(tensors, *args, **options):
        result = right(tensors, *args, **options)
        for tensor in filter(torch.Tensor.dim, tensors if name.endswith("_") else result):
            tensor[0] += 1  # a factor would not be noticed: Muon's updates do not depend on it
        return result

    monkeypatch.setattr(torch, name, wrong)
    with pytest.warns(UserWarning, match=r"Muon's operators for many tensors cannot be used \(its results differ by"):
        check(FastPath.FOREACH)
    assert not fallbacks.is_usable(FastPath.FOREACH)
    assert fallbacks.is_usable(FastPath.FUSED_ADAMW)


@pytest.mark.parametrize("name", FOREACH)
def test_a_foreach_operator_that_changes_nothing_is_noticed(name, monkeypatch):
    """An operator that does not write its results, or of which the result is what it was given."""
    monkeypatch.setattr(torch, name, lambda tensors, *args, **options: tuple(tensors))
    with pytest.warns(UserWarning, match="Muon's operators for many tensors cannot be used"):
        check(FastPath.FOREACH, dtype="bfloat16")


def no_kernel(*args, **options):
    raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")


def wrong_values(factor):
    def adamw(parameters, *args, **options):
        torch_adamw(parameters, *args, **options)
        parameters[0].mul_(factor)

    return adamw


def without_weight_decay(*args, weight_decay, **options):
    torch_adamw(*args, weight_decay=0.0, **options)


def reversed_sign(parameters, gradients, *args, **options):
    torch_adamw(parameters, [-gradient for gradient in gradients], *args, **options)


def constant_betas(*args, beta1, beta2, **options):
    torch_adamw(*args, beta1=0.8, beta2=0.9, **options)


@pytest.mark.parametrize("options", [{}, {"learning_rate": 1e-5, "min_lr": 0.0, "weight_decay": 0.0}])
@pytest.mark.parametrize(
    "wrong",
    [
        no_kernel,
        wrong_values(1.1),
        wrong_values(torch.nan),
        lambda *args, **options: None,
        without_weight_decay,
        reversed_sign,
        constant_betas,
    ],
    ids=["error", "values", "nan", "nothing", "weight decay", "sign", "betas"],
)
def test_wrong_fused_adamw_is_replaced(wrong, options, monkeypatch):
    """Whatever rates the config has: with small ones, a step hardly changes a parameter."""
    monkeypatch.setattr(
        adamw, "adamw", lambda *args, fused, **kw: (wrong if fused else torch_adamw)(*args, fused=fused, **kw)
    )
    with pytest.warns(UserWarning, match="fused AdamW cannot be used"):
        check(FastPath.FUSED_ADAMW, optimizer="adamw", **options)
    assert not fallbacks.is_usable(FastPath.FUSED_ADAMW)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_has_right_operators(optimizer, dtype):
    build.check_fast_paths(TrainConfig(optimizer=optimizer, dtype=dtype), torch.device("cuda", 0))
    assert not fallbacks.describe()
