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
    expected = build._update_small_network(config, CPU)
    for name in FOREACH:
        monkeypatch.setattr(torch, name, None)
    calls = []
    plain = torch_adamw
    monkeypatch.setattr(adamw, "adamw", lambda *args, **kw: (calls.append(kw["fused"]), plain(*args, **kw)))
    with fallbacks.without(FastPath.FUSED_ADAMW), fallbacks.without(FastPath.FOREACH):
        for result, other in zip(build._update_small_network(config, CPU), expected, strict=True):
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


@pytest.mark.parametrize("fault", ["error", "values", "nan"])
def test_wrong_fused_adamw_is_replaced(fault, monkeypatch):
    right = torch_adamw

    def wrong(parameters, *args, fused, **options):
        if fused and fault == "error":
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")
        right(parameters, *args, fused=fused, **options)
        if fused:
            parameters[0].mul_(torch.nan if fault == "nan" else 1.1)

    monkeypatch.setattr(adamw, "adamw", wrong)
    with pytest.warns(UserWarning, match="fused AdamW cannot be used"):
        check(FastPath.FUSED_ADAMW, optimizer="adamw")
    assert not fallbacks.is_usable(FastPath.FUSED_ADAMW)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_has_right_operators(optimizer, dtype):
    build.check_fast_paths(TrainConfig(optimizer=optimizer, dtype=dtype), torch.device("cuda", 0))
    assert not fallbacks.describe()
