"""A trace names the operations of a step; without a folder nothing is written."""

import json

import pytest
import torch
from tiny import TINY_GPT, to_arguments

from nanogpt_lite.cli import main
from nanogpt_lite.device import profiling
from nanogpt_lite.device.distributed import ProcessGroup

ARGUMENTS = to_arguments({**TINY_GPT, "batch_size": 2})


@pytest.mark.parametrize("is_traced", [True, False])
def test_a_trace_of_a_few_steps_is_written(tmp_path, monkeypatch, is_traced):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("all is well that ends well\n" * 40)
    trace = ["--trace", "look"] if is_traced else []
    assert (
        main.main(["train", "--dataset", "my.txt", "--max_iters", "12", "--eval_interval", "12", *ARGUMENTS, *trace])
        == 0
    )
    if not is_traced:
        assert not (tmp_path / "look").exists()
        return
    events = json.loads((tmp_path / "look" / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if "name" in event]
    assert sum(name.startswith("ProfilerStep#") for name in names) >= profiling.TRACED_STEPS
    assert "aten::mm" in names
    assert "aten::_fused_adamw_" in names


def test_too_few_steps_for_a_trace_are_a_warning(tmp_path):
    with (
        pytest.warns(UserWarning, match=r"trace.json was not written: a trace takes 8 steps"),
        profiling.trace_steps(str(tmp_path), torch.device("cpu")) as step_is_done,
    ):
        step_is_done()


def test_each_rank_writes_its_own_trace(tmp_path):
    group = ProcessGroup(rank=1, world_size=2)
    with profiling.trace_steps(str(tmp_path), torch.device("cpu"), group) as step_is_done:
        for _ in range(profiling.SKIPPED_STEPS + profiling.TRACED_STEPS + 1):
            torch.ones(3) + 1
            step_is_done()
    assert [path.name for path in tmp_path.iterdir()] == ["trace-1.json"]
