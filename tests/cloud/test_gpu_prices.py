"""Lists of GPU types, and the line that reports the cost. The table of GPUs is tested in tests/device."""

import time

import pytest
import torch

from nanogpt_lite.cloud import gpu_prices
from nanogpt_lite.cloud.gpu_prices import gpu_order, single_gpus


def test_gpu_list_keeps_the_order_of_preference():
    assert gpu_order("H100, A100-80GB:4") == ["H100", "A100-80GB:4"]
    assert single_gpus("H100, A100-80GB:4") == ["H100", "A100-80GB"]


@pytest.mark.parametrize(
    ("count", "name", "line"),
    [
        (2, "NVIDIA H100 80GB HBM3", "2 x NVIDIA H100 80GB HBM3 for 100 s, about $0.22"),
        (1, "NVIDIA Future", "1 x NVIDIA Future for 100 s"),
        (0, "", "1 x no GPU for 100 s"),
    ],
)
def test_report_cost_prints_the_cost_of_all_gpus_also_after_an_error(count, name, line, monkeypatch, capsys):
    times = iter([5.0, 105.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    with pytest.raises(ZeroDivisionError), gpu_prices.report_cost():
        raise ZeroDivisionError
    assert capsys.readouterr().out == f"{line}\n"
