"""The check of the compiled network: what is wrong with it is a warning, and training goes on without it."""

import dataclasses
import itertools
from contextlib import nullcontext
from pathlib import Path

import forked_ranks
import pytest
import rank_training
import torch
from counting_backend import COMPILES, CountingBackend, compile_blocks_with
from random_gpt import MODERN
from tiny_training import TOKENIZER, records_of, small_config, train
from torch import nn
from wrong_gradient import with_wrong_gradient

from nanogpt_lite.device import fallbacks, fast_paths
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.model import attention
from nanogpt_lite.model.attention import causal_attention
from nanogpt_lite.model.block import Block
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.optim import build
from nanogpt_lite.runs.run_summary import format_text, summary
from nanogpt_lite.tracking.metrics_file import MetricsFile
from nanogpt_lite.tracking.records import EvalRecord, StartRecord
from nanogpt_lite.trainer import network_setup
from nanogpt_lite.trainer.state import init_state

pytestmark = pytest.mark.usefixtures("fresh_fast_paths")


class CompilerError(Exception):
    """Not a RuntimeError, as when the C compiler ends with an error."""


def fail(error):
    raise error


def use_compiler(monkeypatch, change):
    """A compiled block changes its results."""

    def compile_block(block, **options):
        forward = block.forward
        block.forward = lambda *args: change(forward(*args))

    monkeypatch.setattr(Block, "compile", compile_block)
    monkeypatch.setattr(network_setup, "count_graphs", itertools.count().__next__)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_compiled_network_is_used(dropout, dtype, tmp_path, monkeypatch):
    calls = []
    use_compiler(monkeypatch, lambda x: (calls.append(1), x * 1.0001)[1])
    config = small_config(compile=True, dropout=dropout, dtype=dtype)
    _, records = train(tmp_path, config)
    checks = 2 if dropout else 1
    assert len(calls) == checks + config.max_iters * config.n_layer, "evaluations do not call the compiled blocks"
    assert not fallbacks.describe()
    assert records[0].fallbacks == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: 1.01 * x, "a block differs by 0.0"),
        (lambda x: x.flip(1), "a block differs by "),
        (lambda x: x * torch.nan, "a block differs by nan from the plain one"),
        (with_wrong_gradient, "a block differs by nan from the plain one"),
        (
            lambda x: fail(RuntimeError("Failed to find C compiler. Please specify via CC\nmore")),
            "Failed to find C comp",
        ),
        (lambda x: fail(CompilerError()), "CompilerError"),
    ],
    ids=["factor", "order", "nan", "gradient", "RuntimeError", "another error"],
)
def test_a_wrong_compiled_network_is_replaced_by_the_plain_one(change, reason, tmp_path, monkeypatch):
    _, expected = train(tmp_path / "plain", small_config())
    use_compiler(monkeypatch, change)
    with pytest.warns(UserWarning, match="the compiled network cannot be used") as warned:
        state, records = train(tmp_path / "compiled", small_config(compile=True))
    assert len(warned) == 1
    assert records_of(EvalRecord, records)[-1].val_loss == records_of(EvalRecord, expected)[-1].val_loss
    assert isinstance(records[0], StartRecord)
    assert [text.startswith(f"the compiled network: {reason}") for text in records[0].fallbacks] == [True]
    assert state.step == small_config().max_iters


def test_info_says_what_a_training_went_without(tmp_path, monkeypatch):
    use_compiler(monkeypatch, lambda x: x * torch.nan)
    with pytest.warns(UserWarning, match="the compiled network"):
        _, records = train(tmp_path, small_config(compile=True))
    assert summary(tmp_path)["fallbacks"] == []
    sink = MetricsFile(tmp_path / "metrics.jsonl")
    for record in records:
        sink.write(record)
    sink.close()
    content = summary(tmp_path)
    assert content["fallbacks"] == records[0].fallbacks
    assert f"without:      {records[0].fallbacks[0]}" in format_text(content)


def test_too_little_memory_says_nothing_about_compilation(monkeypatch):
    use_compiler(monkeypatch, lambda x: fail(torch.OutOfMemoryError("CUDA out of memory")))
    state = init_state(small_config(compile=True), TOKENIZER)
    assert network_setup.prepare_network(state) is not state.model
    assert not fallbacks.describe()


def test_with_too_little_memory_fewer_rows_are_compared(monkeypatch):
    rows = []

    def compiled(x):
        rows.append(len(x))
        return fail(torch.OutOfMemoryError("CUDA out of memory")) if len(x) > 1 else x * 1.1

    use_compiler(monkeypatch, compiled)
    state = init_state(small_config(compile=True), TOKENIZER)
    with pytest.warns(UserWarning, match="a block differs by"):
        assert network_setup.prepare_network(state) is state.model
    assert rows == [4, 2, 1]
    assert state.micro_batch == 4, "which a step may have memory for"


def test_with_dropout_a_fault_that_masks_would_hide_is_noticed(monkeypatch):
    use_compiler(monkeypatch, lambda x: x * 1.1)
    state = init_state(small_config(compile=True, dropout=0.2), TOKENIZER)
    assert not network_setup._compare_blocks(state, state.config)
    with pytest.warns(UserWarning, match="a block differs by"):
        network_setup.prepare_network(state)


def test_gradients_that_float16_rounds_are_no_fault(monkeypatch):
    """A compiler that computes in another order. The gradients of a mean would be too small for float16."""
    use_compiler(monkeypatch, lambda x: x * 1.0001)
    config = small_config(compile=True, dtype="float16", batch_size=64, block_size=64, n_embd=64)
    state = init_state(config, TOKENIZER)
    passes, small = network_setup._passes, []

    def look_at_gradients(state, block, x, seed):
        results = passes(state, block, x, seed)
        small.extend((gradient.abs() < 2**-14).float().mean().item() for gradient in results[1:])
        return results

    monkeypatch.setattr(network_setup, "_passes", look_at_gradients)
    assert not network_setup._compare_blocks(state, state.config)
    assert max(small) < 0.1, "hardly any is below the smallest normal number"


@pytest.mark.parametrize("fault", [None, lambda x: x.flip(1), lambda x: x * 1.3])
def test_with_dropout_a_fault_is_told_from_other_masks(fault, monkeypatch):
    """A fault that is larger than the noise of dropout is noticed, and the noise is none."""
    use_compiler(monkeypatch, fault or (lambda x: x))
    state = init_state(small_config(compile=True, dropout=0.2, batch_size=64), TOKENIZER)
    for seed in range(5):
        assert bool(network_setup._compare_blocks(state, state.config, seed)) == bool(fault)


@pytest.mark.parametrize("size", [{"n_embd": 16, "batch_size": 1}, {"n_embd": 64, "block_size": 256}, {"n_embd": 512}])
def test_float16_overflows_in_a_network_of_no_size(size, monkeypatch):
    use_compiler(monkeypatch, lambda x: x)
    options = {"norm": "rms", "activation": "relu2"}
    state = init_state(small_config(compile=True, dtype="float16", **options, **size), TOKENIZER)
    assert not network_setup._compare_blocks(state, state.config)


def test_results_that_overflow_are_said_to_be_no_comparison(monkeypatch):
    """And what was not compared is not used."""
    use_compiler(monkeypatch, lambda x: x)
    monkeypatch.setattr(network_setup, "GRADIENT_SCALE", 2.0**20)
    state = init_state(small_config(compile=True, dtype="float16"), TOKENIZER)
    with pytest.warns(UserWarning, match="it cannot be compared: a plain block .* overflows in float16"):
        assert network_setup.prepare_network(state) is state.model


def scores_twice_as_large(q, k, v, **options):
    return causal_attention(2 * q, k, v, **options)


def uniform_scores(q, k, v, **options):
    return causal_attention(0 * q, k, v, **options)


def keys_of_another_head(q, k, v, **options):
    return causal_attention(q, k.roll(1, 1), v, **options)


@pytest.mark.parametrize("wrong", [scores_twice_as_large, uniform_scores, keys_of_another_head])
@pytest.mark.parametrize("options", [{"bias": False}, {"norm": "rms", "qk_norm": True, "position": "rotary"}])
def test_wrong_attention_is_noticed(wrong, options, monkeypatch):
    """Attention that is almost uniform would be almost right whatever its scores are. bfloat16 has most tolerance."""

    def compile_block(block, **options):
        forward = block.forward

        def compiled_forward(*args):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(attention, "causal_attention", wrong)
                return forward(*args)

        block.forward = compiled_forward

    monkeypatch.setattr(Block, "compile", compile_block)
    monkeypatch.setattr(network_setup, "count_graphs", itertools.count().__next__)
    sizes = {"n_embd": 128, "n_head": 4, "block_size": 64, "batch_size": 1}
    state = init_state(small_config(compile=True, dtype="bfloat16", **options, **sizes), TOKENIZER)
    assert network_setup._compare_blocks(state, state.config).startswith("a block differs by ")


def use_network_compiler(monkeypatch, change):
    """A network compiled as a whole changes its loss, and `change` may change the network; blocks are compiled well."""

    def compile_network(model, **options):
        forward = model.forward

        def compiled_forward(idx, targets):
            logits, loss = forward(idx, targets)
            return logits, change(model, loss)

        model.forward = compiled_forward

    use_compiler(monkeypatch, lambda x: x)
    monkeypatch.setattr(GPT, "compile", compile_network)


def use_smaller_gradient_of_embedding(monkeypatch):
    """As `use_network_compiler`."""

    def compile_network(model, **options):
        wte = model.transformer.wte
        forward = wte.forward
        wte.forward = lambda idx: with_wrong_gradient(forward(idx), 0.9)

    use_compiler(monkeypatch, lambda x: x)
    monkeypatch.setattr(GPT, "compile", compile_network)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.2}, MODERN], ids=["nanoGPT", "dropout", "modern"])
def test_a_right_network_compiled_as_a_whole_is_used(options, dtype, tmp_path, monkeypatch):
    calls = []
    use_network_compiler(monkeypatch, lambda model, loss: (calls.append(1), loss * 1.0001)[1])
    config = small_config(compile_whole=True, dtype=dtype, **options)
    train(tmp_path, config)
    assert not fallbacks.describe()
    assert len(calls) == 1 + config.max_iters


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda loss: 1.1 * loss, "the whole network differs by 0.1 from the plain one"),
        (with_wrong_gradient, "the whole network differs by "),
        (lambda loss: loss * torch.nan, "the whole network differs by nan from the plain one"),
        (lambda loss: fail(CompilerError("no compiler")), "no compiler"),
    ],
    ids=["factor", "gradient", "nan", "error"],
)
def test_a_wrong_network_compiled_as_a_whole_is_replaced_by_the_plain_one(change, reason, monkeypatch):
    use_network_compiler(monkeypatch, lambda model, loss: change(loss))
    state = init_state(small_config(compile_whole=True), TOKENIZER)
    with pytest.warns(UserWarning, match="the compiled network cannot be used"):
        assert network_setup.prepare_network(state) is state.model
    (described,) = fallbacks.describe()
    assert described.startswith(f"the compiled network: {reason}")


@pytest.mark.parametrize("options", [{"dropout": 0.2}, {"ngram": 3, "ngram_dropout": 0.3}])
@pytest.mark.parametrize(
    ("change", "is_right"), [(lambda loss: 1.3 * loss, False), (with_wrong_gradient, False), (lambda loss: loss, True)]
)
def test_with_masks_a_fault_of_a_whole_network_is_told_from_other_masks(change, is_right, options, monkeypatch):
    use_network_compiler(monkeypatch, lambda model, loss: change(loss))
    state = init_state(small_config(compile_whole=True, batch_size=64, **options), TOKENIZER)
    expectation = nullcontext() if is_right else pytest.warns(UserWarning, match="the whole network differs by")
    with expectation:
        network_setup.prepare_network(state)
    assert bool(fallbacks.describe()) != is_right


@pytest.mark.parametrize("tied", [False, True])
def test_a_wrong_gradient_of_a_single_matrix_is_noticed(tied, monkeypatch):
    use_smaller_gradient_of_embedding(monkeypatch)
    state = init_state(small_config(compile_whole=True, tied=tied), TOKENIZER)
    with pytest.warns(UserWarning, match="the whole network differs by"):
        assert network_setup.prepare_network(state) is state.model


def test_a_whole_network_that_overflows_is_said_to_be_no_comparison(monkeypatch):
    use_network_compiler(monkeypatch, lambda model, loss: loss)
    state = init_state(small_config(compile_whole=True), TOKENIZER)
    with torch.no_grad():
        state.model.lm_head.weight.mul_(torch.inf)
    with pytest.warns(UserWarning, match="it cannot be compared: the plain network overflows in float32"):
        assert network_setup.prepare_network(state) is state.model


@COMPILES
def test_the_check_and_the_steps_of_a_whole_network_share_a_graph(monkeypatch, tmp_path):
    backend = CountingBackend()
    for module in (Block, GPT):
        monkeypatch.setattr(module, "compile", lambda self, **options: nn.Module.compile(self, backend=backend))
    train(tmp_path, small_config(compile_whole=True))
    assert ["cross_entropy" in str(graph.graph) for graph in backend.graphs] == [False, True]
    assert not fallbacks.describe()


def test_a_network_that_failed_is_not_compiled_again(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="the compiled network"):
        fallbacks.give_up(FastPath.COMPILATION, "no compiler")
    monkeypatch.setattr(network_setup, "compile_network", None)  # it would be an error to call it
    state = init_state(small_config(compile=True), TOKENIZER)
    assert network_setup.prepare_network(state) is state.model


@COMPILES
def test_each_training_in_a_process_is_compiled(monkeypatch):
    """PyTorch compiles a function for so many kinds of arguments, here one, and then calls it as it is."""
    backend = CountingBackend()
    compile_blocks_with(backend, monkeypatch)
    ids = torch.zeros(4, 8, dtype=torch.int64)
    forwards, graphs = [], []
    with torch._dynamo.config.patch(recompile_limit=1):
        for n_embd in (16, 24):
            state = init_state(small_config(compile=True, n_embd=n_embd), TOKENIZER)
            forwards.append(network_setup.prepare_network(state))
            forwards[-1](ids, ids)
            graphs.append(len(backend.graphs))
    assert graphs == [1, 2], "the check and the training share one"
    assert not fallbacks.describe()
    forwards[0](ids, ids)
    assert len(backend.graphs) == 3, "the first training compiles again, and goes on"


def test_a_compiler_that_compiles_nothing_is_not_used(monkeypatch):
    monkeypatch.setattr(Block, "compile", lambda block, **options: None)
    state = init_state(small_config(compile=True), TOKENIZER)
    with pytest.warns(
        UserWarning, match=r"the compiled network cannot be used \(PyTorch's compiler has compiled nothing"
    ):
        assert network_setup.prepare_network(state) is state.model


@dataclasses.dataclass(frozen=True)
class OtherRankFails(ProcessGroup):
    """Another rank does without everything."""

    def all_reduce_max(self, *values):
        return [1.0 for _ in values]


def test_what_fails_on_another_rank_is_not_used(monkeypatch):
    use_compiler(monkeypatch, lambda x: x)
    with pytest.warns(UserWarning, match="operators"):
        fallbacks.give_up(FastPath.FOREACH, "no kernel")
    state = init_state(small_config(compile=True), TOKENIZER)
    state.group = OtherRankFails()
    with pytest.warns(UserWarning, match="fails on another rank"):
        assert network_setup.prepare_network(state) is state.model
    reasons = dict(text.split(": ") for text in fallbacks.describe())
    assert reasons.pop(FastPath.FOREACH) == "no kernel"
    assert reasons == {path: "it fails on another rank" for path in FastPath if path is not FastPath.FOREACH}
    assert not torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.mem_efficient_sdp_enabled()


def test_all_fast_paths_of_a_training_are_checked(monkeypatch):
    checked = {}
    monkeypatch.setattr(fast_paths, "check", lambda device, dtype, **options: checked.update(options, dtype=dtype))
    monkeypatch.setattr(build, "check_fast_paths", lambda config, device: checked.update(optimizer=config.optimizer))
    network_setup.prepare_network(init_state(small_config(n_embd=48, n_head=4, dtype="bfloat16"), TOKENIZER))
    assert checked == {"dtype": "bfloat16", "head_size": 12, "optimizer": "adamw"}


def train_with_a_rank_that_cannot_compile(options, max_graphs, max_rows):
    """Rank 1 compiles so many graphs, and has memory for so many rows; rank 0 for all."""
    from nanogpt_lite.device import distributed
    from nanogpt_lite.model.block import Block
    from nanogpt_lite.model.gpt import GPT

    is_limited = distributed.launched_rank() == 1
    backend = CountingBackend(max_graphs if is_limited else 1000)
    compile_plainly, forward = nn.Module.compile, GPT.forward
    for module in (Block, GPT):
        module.compile = lambda self, **options: compile_plainly(self, backend=backend)  # type: ignore[method-assign]

    def limited_forward(self, idx, targets=None, **options):
        if self.training and is_limited and len(idx) > max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, idx, targets, **options)

    GPT.forward = limited_forward  # type: ignore[method-assign]
    rank_training.train(options)
    Path(f"graphs{distributed.launched_rank()}").write_text(str(len(backend.graphs)), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.posix("forks ranks")
@pytest.mark.parametrize(
    ("option", "max_graphs"), [("compile", 0), ("compile", 1), ("compile_whole", 1), ("compile_whole", 2)]
)
def test_ranks_go_on_without_compilation_if_one_cannot_compile(option, max_graphs, text_file):
    """In its check, or when it compiles for a smaller micro-batch."""
    import nanogpt_lite as ng

    ng.prepare("bottles.txt")
    options = {"out_dir": "runs/limited", option: True}
    assert forked_ranks.run(2, train_with_a_rank_that_cannot_compile, options, max_graphs, 2) == [0, 0]
    rank_training.train({"out_dir": "runs/alone"})
    rank_training.require_same_losses("runs/limited", "runs/alone")
    (start,) = rank_training.records("runs/limited", "start")
    assert start["fallbacks"] == ["the compiled network: it fails on another rank"]
    assert Path("graphs1").read_text(encoding="utf-8") == str(max_graphs)
