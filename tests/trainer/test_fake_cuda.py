"""The operators on a GPU, without a GPU: benchmarks/fake_training.py runs the real code on a device with no values.

They show where the processor waits for the GPU, what is copied to it, in which number formats it computes, and how many
kernels it has to launch. They cannot show that the results are right: see the tests with the marker `gpu`.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nanogpt_lite.config.presets import GPT2_NETWORKS, config_with_preset
from nanogpt_lite.trainer.memory_estimate import estimate_memory

pytestmark = pytest.mark.linux("the fake GPU is compiled as a shared library of Linux")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BITS_16 = {"bfloat16", "float16"}
PRESETS = ("shakespeare_char", "modern", "cpu", "modern-cpu")
NETWORK_OPTIONS = (
    {"bias": True},
    {"position": "rotary"},
    {"qk_norm": True},
    {"norm": "rms"},
    {"activation": "relu2"},
    {"activation": "gelu_tanh"},
    {"tied": False},
    {"zero_init": True},
    {"ngram": 4, "ngram_dropout": 0.4},
    {"dropout": 0.0},
    {"optimizer": "muon"},
    {"gradient_accumulation_steps": 3},
    {"grad_clip": 0.0},
)
RECOMPUTED: dict[str, Any] = {"checkpoint_activations": True}
SMALL = {"n_layer": 1, "batch_size": 4}  # the operators of a block are the same in each
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
CALLS: dict[str, dict[str, Any]] = {
    **{f"step {name}": {"preset": name} for name in ("shakespeare_char", "modern")},
    **{f"step {name} float32": {"preset": name, "dtype": "float32", **SMALL} for name in PRESETS},
    **{f"step {name} bfloat16": {"preset": name, **SMALL} for name in PRESETS},
    **{f"step {name} float16": {"preset": name, "dtype": "float16", **SMALL} for name in PRESETS},
    **{f"step {options}": {"preset": "shakespeare_char", **SMALL, **options} for options in NETWORK_OPTIONS},
    "step emulated": {"preset": "modern", "capability": (7, 5), **SMALL},
}
OTHER_CALLS = {
    "evaluation": {"function": "evaluation_operators", "preset": "modern", "batches": 3, **SMALL},
    "checkpoint": {"function": "checkpoint_operators", "preset": "modern", **SMALL},
    "decoding": {"function": "decoding_operators", "preset": "shakespeare_char", "rows": 3},
    "decoding modern": {"function": "decoding_operators", "preset": "modern", "rows": 3},
    "sampling": {"function": "sampling_operators", "rows": 3, "top_k": 0},
    "sampling filtered": {"function": "sampling_operators", "rows": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
}
XL: dict[str, Any] = {"preset": "finetune", **GPT2_NETWORKS["gpt2-xl"], "vocab_size": 50257}
XL |= {"gradient_accumulation_steps": 2}
FEW_TOKENS: dict[str, Any] = {"preset": "modern", "batch_size": 1, "block_size": 16, "n_layer": 1, "n_embd": 1536}
TWO_PASSES: dict[str, Any] = {"optimizer": "adamw", "gradient_accumulation_steps": 2}
MEMORY: tuple[dict[str, Any], ...] = (
    *({"preset": name, "n_layer": 1} for name in PRESETS),
    *({"preset": name, "n_layer": 1, **RECOMPUTED} for name in ("shakespeare_char", "modern-cpu")),
    {"preset": "modern", "n_layer": 1, "dtype": "float32", **RECOMPUTED},
    # steps in which each of the moments of the estimate takes the most by far
    {"preset": "cpu", "n_layer": 1, "vocab_size": 4096, **TWO_PASSES},  # the backward pass of the loss
    {**XL, "n_layer": 1, "batch_size": 4, **RECOMPUTED},  # the same, in parts
    {**FEW_TOKENS, **TWO_PASSES, "n_layer": 3, **RECOMPUTED},  # copies of the weights, in its forward pass
    {**FEW_TOKENS, **TWO_PASSES, "vocab_size": 20_000},  # gradient of the output
    {"preset": "modern", "n_layer": 2, **RECOMPUTED},  # gradients of the last block
    {"preset": "cpu", **RECOMPUTED},  # gradients of the first block
    {**XL, "n_layer": 1, **RECOMPUTED},  # gradients of the embeddings
    FEW_TOKENS,  # the update
)
MEMORY_CALLS = {f"memory {options}": {"function": "step_memory", **options} for options in MEMORY}
MEMORY_TOLERANCE = 0.03


def run_calls(calls: list[dict[str, Any]]) -> Any:
    """The results of benchmarks/fake_training.py, computed in two processes of their own."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, which compiles the fake GPU")
    results: list[Any] = [None] * len(calls)
    with ThreadPoolExecutor() as executor:
        for part, half in enumerate(executor.map(_run_in_a_process, (calls[::2], calls[1::2]))):
            results[part::2] = half
    return results


def _run_in_a_process(calls: list[dict[str, Any]]) -> Any:
    process = subprocess.run(
        [sys.executable, str(BENCHMARKS / "fake_training.py")],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def all_results():
    """The results of all calls, by their names."""
    calls = {**{name: {"function": "step_operators", **call} for name, call in CALLS.items()}, **OTHER_CALLS}
    calls |= MEMORY_CALLS
    return dict(zip(calls, run_calls(list(calls.values())), strict=True))


@pytest.fixture(scope="module")
def all_operators(all_results):
    """The operators of the calls that give operators, by the names of the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from operators import Operator
    lists = {name: result for name, result in all_results.items() if name not in MEMORY_CALLS}
    return {name: [Operator.from_json(content) for content in operators] for name, operators in lists.items()}


def input_shape(call):
    """The shape of the inputs of a micro-batch."""
    block_size = 64 if CALLS[call]["preset"] == "cpu" else 256
    return CALLS[call].get("batch_size", 64), block_size


def count_launches(operators):
    return sum(operator.is_launch for operator in operators)


def copies(operators, source, target):
    """The shapes that are copied from one device to another."""
    return [
        o.outputs[0].shape
        for o in operators
        if o.is_copy_between_devices and (o.inputs[-1].device, o.outputs[0].device) == (source, target)
    ]


@pytest.mark.parametrize("call", CALLS)
def test_a_step_never_waits_for_the_gpu(call, all_operators):
    """But with float16, where the loss scaler asks whether gradients are finite."""
    waits = [operator.name for operator in all_operators[call] if operator.is_wait]
    assert waits == (["_local_scalar_dense"] if call.endswith(" float16") else [])


@pytest.mark.parametrize("call", CALLS)
def test_a_step_copies_inputs_and_targets_to_the_gpu_and_nothing_else(call, all_operators):
    micro_batches = CALLS[call].get("gradient_accumulation_steps", 1)
    assert copies(all_operators[call], "cpu", "cuda") == [input_shape(call)] * 2 * micro_batches


@pytest.mark.parametrize("call", [*CALLS, *OTHER_CALLS])
def test_no_operator_has_tensors_of_two_devices(call, all_operators):
    """Numbers, which are tensors without dimensions on the CPU, are arguments of a kernel."""
    for operator in all_operators[call]:
        if not operator.is_copy_between_devices:
            devices = {tensor.device for tensor in (*operator.inputs, *operator.outputs) if tensor.shape}
            assert len(devices) <= 1, operator


@pytest.mark.parametrize("call", [call for call in CALLS if "16" in call or "{" in call])
def test_products_and_attention_have_16_bits_and_the_residual_stream_32(call, all_operators):
    dtype = CALLS[call].get("dtype", "bfloat16")
    operators = all_operators[call]
    products = [o for o in operators if o.name in PRODUCTS]
    assert {tensor.dtype for o in products for tensor in o.inputs} == {dtype}
    attention = [o for o in operators if "_scaled_dot_product_flash" in o.name]
    assert len(attention) >= 2 * SMALL["n_layer"]  # forward and backward
    assert {tensor.dtype for o in attention for tensor in o.inputs if len(tensor.shape) == 4} == {dtype}
    sums = [o.outputs[0] for o in operators if o.name == "add" and len(o.outputs[0].shape) == 3]
    residual_sums = [tensor.dtype for tensor in sums if tensor.shape[:2] == input_shape(call)]
    assert len(residual_sums) >= 2 * SMALL["n_layer"]  # two in each block
    assert set(residual_sums) == {"float32"}
    norms = Counter((o.inputs[0].dtype, len(o.inputs[0].shape)) for o in operators if o.name == "native_layer_norm")
    passes = CALLS[call].get("gradient_accumulation_steps", 1)
    assert norms["float32", 3] == passes * (2 * SMALL["n_layer"] + 1)  # two in each block, and the last one
    assert all(tensor_dtype == dtype for tensor_dtype, dims in norms if dims > 3)  # of queries and keys, with 5 dims


@pytest.mark.parametrize("call", [call for call in CALLS if call.endswith("float32")])
def test_with_float32_nothing_is_rounded(call, all_operators):
    dtypes = {tensor.dtype for o in all_operators[call] for tensor in (*o.inputs, *o.outputs)}
    assert not dtypes & BITS_16


def test_queries_and_keys_are_normalised_in_the_dtype_of_attention(all_operators):
    norms = [o.inputs[0] for o in all_operators["step modern"] if o.name == "native_layer_norm"]
    assert Counter(tensor.dtype for tensor in norms if len(tensor.shape) == 5) == {"bfloat16": 6}


def test_a_gpu_without_bfloat16_orthogonalises_in_float16(all_operators):
    dtypes = {
        call: {o.inputs[0].dtype for o in all_operators[call] if o.name in ("bmm", "baddbmm")}
        for call in ("step emulated", "step modern bfloat16", "step modern float16", "step modern float32")
    }
    assert list(dtypes.values()) == [{"float16"}, {"bfloat16"}, {"float16"}, {"float32"}]


@pytest.mark.parametrize(("call", "most"), [("step shakespeare_char", 310), ("step modern", 519)])
def test_launches_of_a_step(call, most, all_operators):
    """nanoGPT needs 298 for the network of both."""
    assert count_launches(all_operators[call]) <= most


def test_a_step_has_three_parts(all_operators):
    parts = {part: Counter() for part in ("forward", "backward", "update")}
    for operator in all_operators["step modern"]:
        parts[operator.part][operator.name] += 1
    for name, part in {
        "_scaled_dot_product_flash_attention": "forward",
        "_scaled_dot_product_flash_attention_backward": "backward",
        "_fused_adamw_": "update",
        "baddbmm": "update",  # of Muon
    }.items():
        assert [other for other in parts if parts[other][name]] == [part]


def test_an_evaluation_waits_after_all_batches(all_operators):
    operators = all_operators["evaluation"]
    waits = [n for n, o in enumerate(operators) if o.is_wait and any(x.device == "cuda" for x in o.inputs)]
    assert len(waits) == 1, "for all losses together"
    assert not count_launches(operators[waits[0] + 1 :])


def test_a_checkpoint_copies_each_tensor_once(all_operators):
    operators = all_operators["checkpoint"]
    copied = copies(operators, "cuda", "cpu")
    matrices = 4 * SMALL["n_layer"]
    parameters = matrices + 2  # the embedding and the output
    states = matrices + 2 * 3  # Muon has one tensor for each matrix, AdamW three for each of the others
    expert = 4 + 1  # tensors of counts, and the weight
    assert len(copied) == parameters + states + expert


@pytest.mark.parametrize(("call", "most"), [("decoding", 98), ("decoding modern", 192)])
def test_a_decoding_step_can_be_recorded(call, most, all_operators):
    operators = all_operators[call]
    assert not [o for o in operators if o.is_wait or o.is_copy_between_devices]
    assert count_launches(operators) <= most


@pytest.mark.parametrize(("call", "most"), [("sampling", 10), ("sampling filtered", 26)])
def test_the_choice_of_a_token_does_not_wait(call, most, all_operators):
    assert not [o for o in all_operators[call] if o.is_wait]
    assert count_launches(all_operators[call]) <= most


def require_estimated(call: dict[str, Any], counted: dict[str, int]) -> None:
    """What was counted before a step, and its peak up to the tolerance, are as estimated."""
    options = {"dtype": "bfloat16", **call}
    vocab_size, preset = options.pop("vocab_size", 65), options.pop("preset")
    del options["function"]
    estimate = estimate_memory(config_with_preset(preset, options), vocab_size)
    assert estimate.lasting - estimate.weights == pytest.approx(counted["before"], abs=4 * 1000)  # numbers of steps
    assert estimate.peak == pytest.approx(counted["peak"], rel=MEMORY_TOLERANCE)


@pytest.mark.parametrize("call", MEMORY_CALLS)
def test_memory_of_a_step_is_as_estimated(call, all_results):
    require_estimated(MEMORY_CALLS[call], all_results[call])


@pytest.mark.slow
def test_memory_of_a_step_is_as_estimated_for_gpt2_xl_and_for_each_option():
    networks: list[dict[str, Any]] = [{"preset": "shakespeare_char", **options} for options in NETWORK_OPTIONS]
    calls: list[dict[str, Any]] = [
        {"function": "step_memory", **options, **again, "dtype": dtype}
        for options in (*networks, *({"preset": name} for name in PRESETS), XL)
        for again in ({}, RECOMPUTED)
        for dtype in ("bfloat16", "float32")
    ]
    for call, counted in zip(calls, run_calls(calls), strict=True):
        require_estimated(call, counted)
