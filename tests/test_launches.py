"""benchmarks/launches.py: what is counted of operators and compiled graphs, estimates of times, goals; machine code.

That the real steps have these counts is tested in trainer/test_fake_cuda.py.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nanogpt_lite as ng

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CAPABILITIES = {"sm_75": (7, 5), "sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
PRESETS = ("shakespeare_char", "modern")
# Generated code calls a kernel of Triton, cuBLAS or PyTorch; a sum over parts of a reduction is PyTorch's too.
KERNEL_CALLS = r"\.run\(|extern_kernels\.\w+\(|= torch\.ops\.aten\.\w+\.\w+\(|^ +aten\.\w+\.\w+\(|\.sum\(dim=0\)"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def operator(name, *inputs, outputs=((2,),), device="cuda", **others):
    """An operator of tensors in bfloat16, from their shapes."""
    from operators import Operator, TensorInfo

    tensors = [tuple(TensorInfo("bfloat16", shape, device) for shape in shapes) for shapes in (inputs, outputs)]
    return Operator(name, tensors[0], tensors[1], **{"is_view": False, **others})


@pytest.mark.parametrize(
    ("name", "inputs", "flops"),
    [
        ("mm", [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        ("addmm", [(7,), (3, 5), (5, 7)], 2 * 3 * 5 * 7),
        ("bmm", [(2, 3, 5), (2, 5, 7)], 2 * 2 * 3 * 5 * 7),
        ("_scaled_dot_product_flash_attention", [(2, 3, 8, 4)] * 3, 2 * 2 * (2 * 3 * 8 * 8 * 4) / 2),
        ("_scaled_dot_product_flash_attention_backward", [(2, 3, 8, 4)] * 4, 5 * 2 * (2 * 3 * 8 * 8 * 4) / 2),
        ("mul", [(3, 5), (3, 5)], 0),
    ],
)
def test_floating_point_operations_are_those_of_products(name, inputs, flops):
    from operators import flops as count

    assert count(operator(name, *inputs)) == flops


def test_memory_traffic_is_that_of_rows_where_an_operator_selects_rows():
    table, ids, rows = (1000, 8), (4,), (4, 8)
    assert operator("mul", rows, rows, outputs=[rows]).num_bytes == 3 * 4 * 8 * 2
    for name in ("embedding", "index", "index_select"):
        assert operator(name, table, ids, outputs=[rows]).num_bytes == 2 * 4 * 8 * 2
    assert operator("index_copy_", table, ids, rows, outputs=[table]).num_bytes == 2 * 4 * 8 * 2
    assert operator("triton", outputs=[], compiled_bytes=12).num_bytes == 12


def test_estimate_is_the_longest_of_operations_traffic_and_launch():
    from operators import Gpu, roofline_seconds

    gpu = Gpu(flops=1000.0, bandwidth=100.0, launch=2.0)
    product = operator("mm", (10, 20), (20, 30), outputs=[])  # 12,000 operations, 1,600 bytes
    copy = operator("mul", (300,), outputs=[])  # 600 bytes
    small = operator("mul", (1,), outputs=[])
    view = operator("view", (300,), is_view=True)
    assert roofline_seconds([product, copy, small, view], gpu) == 16.0 + 6.0 + 2.0
    assert roofline_seconds([product], Gpu(flops=100.0, bandwidth=100.0, launch=2.0)) == 120.0


def test_launches_are_operators_on_the_gpu_that_are_no_views_and_do_more_than_allocate():
    assert operator("mul").is_launch
    assert operator("triton", outputs=[], compiled_bytes=12).is_launch
    assert not operator("mul", device="cpu").is_launch
    assert not operator("view", is_view=True).is_launch
    assert not operator("empty_strided").is_launch
    assert not operator("_local_scalar_dense").is_launch
    assert not operator("_record_function_exit", outputs=[]).is_launch  # it has no tensors


def test_log_holds_part_views_and_non_blocking_copies():
    from operators import OperatorLog

    x = torch.zeros(2, 3)
    log = OperatorLog(item_value=0.0)
    with log:
        (x * 2).view(6)
        log.part = "update"
        x.copy_(x, non_blocking=True)
        x.add_(1)
        log.add_launches([operator("triton", outputs=[], compiled_bytes=12)])
    held = [(one.name, one.part, one.is_view, one.is_non_blocking, one.is_compiled) for one in log.operators]
    assert held == [
        ("mul", "", False, False, False),
        ("view", "", True, False, False),
        ("copy_", "update", False, True, False),
        ("add_", "update", False, False, False),
        ("triton", "update", False, False, True),
    ]


def test_processor_waits_for_a_copy_from_the_gpu_unless_it_is_non_blocking():
    from operators import Operator, TensorInfo

    on_cpu, on_gpu = (TensorInfo("int64", (3,), device) for device in ("cpu", "cuda"))
    waits = {
        (source.device, target.device, non_blocking): Operator(
            "copy_", (target, source), (target,), is_view=False, is_non_blocking=non_blocking
        ).is_wait
        for source, target in ((on_gpu, on_cpu), (on_cpu, on_gpu), (on_gpu, on_gpu))
        for non_blocking in (False, True)
    }
    assert [case for case, is_wait in waits.items() if is_wait] == [("cuda", "cpu", False)]


def results(*, modern=510, compiled="compiled", kernels=9, extra_bytes=0, waits=1, beside=0):
    """Results of `launches.count`: by default with 300 launches of an eager step and 10 of a compiled one."""
    from launches import CALLS, TOKEN_CALLS

    kernel = operator("triton", outputs=[], part="forward", compiled_bytes=1000)
    steps = {
        name: {"operators": [kernel] * 10, "num_graphs": 2, "num_generated": 9}
        if "," in name
        else {"operators": [operator("mul", part="forward")] * 300, "num_graphs": 0, "num_generated": 0}
        for name in CALLS
    }
    steps["modern"]["operators"] = [operator("mul", part="backward")] * modern
    last = operator("triton", outputs=[], part="backward", compiled_bytes=1000 + extra_bytes)
    steps[f"shakespeare_char, {compiled}"]["operators"] = [*[kernel] * kernels, last]
    fetch = operator("copy_", (3,), outputs=[(3,)], is_non_blocking=True)
    fetch = replace(fetch, outputs=(replace(fetch.outputs[0], device="cpu"),))
    token = {
        "operators": [*[operator("mul")] * beside, fetch],
        "recorded": [operator("mul")] * 94,
        "replays": 1,
        "waits": waits,
    }
    return steps, dict.fromkeys(TOKEN_CALLS, token)


@pytest.mark.parametrize(
    ("counts", "missed"),
    [
        ({}, []),
        ({"modern": 511}, ["a step of modern, launches"]),
        ({"kernels": 10, "extra_bytes": -1000}, ["compiled step, kernels in graphs"]),
        ({"extra_bytes": 1}, ["compiled step, memory traffic of graphs"]),
        (
            {"compiled": "compiled as a whole", "kernels": 10, "extra_bytes": -1000},
            ["step compiled as a whole, kernels in graphs"],
        ),
        (
            {"compiled": "compiled as a whole", "extra_bytes": 1},
            ["step compiled as a whole, memory traffic of graphs"],
        ),
        ({"waits": 2}, ["a sampled token, waits"]),
        ({"beside": 1}, ["a sampled token, other launches"]),
    ],
)
def test_goals_are_met_up_to_their_limits(counts, missed):
    from launches import check_goals

    rows = check_goals(*results(**counts))
    assert [row["name"] for row in rows if row["met"] is False] == missed
    assert len([row for row in rows if row["met"] is not None]) == 9


def test_tables_hold_each_step_token_and_gpu():
    from launches import CALLS, TOKEN_CALLS, check_goals, summarize_step, summarize_token
    from launches_table import GPUS, markdown
    from table import describe_environment

    steps, tokens = results(waits=3)
    report = {
        **describe_environment("python x.py"),
        "rows": check_goals(steps, tokens),
        "steps": {name: summarize_step(step) for name, step in steps.items()},
        "tokens": {name: summarize_token(token) for name, token in tokens.items()},
    }
    text = markdown(json.loads(json.dumps(report)))
    assert "| nanoGPT, compiled | 10 | 0 | 0 | 10 | 10 | 0.00 | 2 | 9 | 0 | 0 |" in text
    assert "| nanoGPT | 300 | 0 | 0 | 300 | 0 | 0.00 | 0 | 0 | 0 | 0 |" in text
    assert "| modern, ten samples | 1 | 0 | 1 | 3 | 94 | 0.0 |" in text
    for name in (*CALLS, *TOKEN_CALLS):
        assert len(re.findall(rf"^\| {re.escape(name)} \|", text, re.MULTILINE)) == 2
    assert f"| | {' | '.join(GPUS)} |" in text
    # 300 launches of 2 µs, and 94; a step has 64 x 256 tokens
    assert re.search(r"^\| nanoGPT \|.* 0\.6 \(27,307\) \|$", text, re.MULTILINE)
    assert re.search(r"^\| modern, ten samples \|.* 53\.2 \|$", text, re.MULTILINE)


def test_missing_compiler_is_a_user_error(tmp_path, monkeypatch, capsys):
    import harness
    import launches

    for name in harness.NEEDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setattr(sys, "argv", ["x", "--nanogpt", str(tmp_path)])
    assert launches.main() == 2
    assert "install g++" in capsys.readouterr().err


def test_failed_count_is_reported_with_its_last_lines(tmp_path, monkeypatch):
    import launches

    (tmp_path / "program.py").write_text("import sys; sys.exit('broken')", encoding="utf-8")
    monkeypatch.setattr(launches, "PROGRAM", tmp_path / "program.py")
    with pytest.raises(ng.ExternalError, match="status 1: broken"):
        launches.count(tmp_path)


def run_fake_launches(cache, *calls):
    """The results of calls of functions in fake_launches.py, with a folder for what is compiled."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, which compiles the fake GPU")
    process = subprocess.run(
        [sys.executable, str(BENCHMARKS / "fake_launches.py")],
        input=json.dumps(calls),
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


def require_inductor():
    [version] = re.findall(r'TORCH_VERSION = "(.*)"', (BENCHMARKS / "fake_inductor.py").read_text(encoding="utf-8"))
    if not torch.__version__.startswith(f"{version}."):
        pytest.skip(f"benchmarks/fake_inductor.py was written for the internals of torch {version}")


@pytest.mark.slow
@pytest.mark.linux("the fake GPU is compiled as a shared library of Linux")
def test_a_sampled_token_is_one_replay_and_one_wait(monkeypatch):
    import launches

    monkeypatch.setattr(launches, "CALLS", {})
    tokens = launches.count(Path())[1]
    summaries = [launches.summarize_token(token) for token in tokens.values()]
    counts = [[one[key] for key in ("replays", "other_launches", "copies", "waits")] for one in summaries]
    assert counts == [[1, 0, 1, 1]] * 4


@pytest.mark.slow
@pytest.mark.linux("the fake GPU is compiled as a shared library of Linux")
def test_launches_of_a_graph_are_the_calls_in_its_code(tmp_path):
    require_inductor()
    options = {"capability": CAPABILITIES["sm_80"], "dtype": "bfloat16", "n_layer": 2, "machine_code": False}
    compiled = [{"function": "graphs", "preset": preset, **options} for preset in PRESETS]
    for result in run_fake_launches(tmp_path, *compiled):
        bodies = [re.findall(r"^    def call\(.*?^        return", code, re.M | re.S)[0] for code in result["codes"]]
        assert [len(re.findall(KERNEL_CALLS, body, re.M)) for body in bodies] == result["num_launches"]
        assert len(bodies) == 2  # forward and backward


@pytest.mark.slow
@pytest.mark.linux("the fake GPU is compiled as a shared library of Linux")
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", CAPABILITIES)
def test_graphs_are_compiled_to_machine_code(architecture, preset, tmp_path):
    """The tool that reads it back is NVIDIA's, which comes with Triton."""
    require_inductor()
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.submodule_search_locations is None:
        pytest.skip("Triton is not installed: pip install triton")
    capability = CAPABILITIES[architecture]
    [result] = run_fake_launches(
        tmp_path / "cache",
        {
            "function": "graphs",
            "preset": preset,
            "capability": capability,
            "dtype": "bfloat16" if capability >= (8, 0) else "float16",
            "n_layer": 2,
            "machine_code": True,
        },
    )
    kernels = result["kernels"]
    assert set(kernels) == {name for code in result["codes"] for name in re.findall(r"(\w+)\.run\(", code)}
    for name, code in kernels.items():
        file = tmp_path / f"{name}.elf"
        file.write_bytes(bytes.fromhex(code))
        tool = Path(triton.submodule_search_locations[0]) / "backends/nvidia/bin/cuobjdump"
        listed = subprocess.run([tool, "-lelf", file], capture_output=True, text=True, check=True).stdout
        assert re.search(rf"\.{architecture}a?\.cubin$", listed.strip()), listed
