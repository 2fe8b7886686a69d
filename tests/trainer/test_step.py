"""One step against the same computation written out, and micro-batches when memory is limited."""

import copy
import math
import weakref
from pathlib import Path

import forked_ranks
import pytest
import rank_training
import torch
from counting_backend import COMPILES, CountingBackend, compile_blocks_with
from limited_memory import LimitedMemory, OutOfMemoryInBackward
from tiny_training import SMALL, TOKENIZER, TRAIN, VAL, records_of, small_config
from torch.nn import functional as F

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.data import batching
from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tracking.records import EvalRecord, MicroBatchRecord, StepRecord
from nanogpt_lite.trainer import loop
from nanogpt_lite.trainer.network_setup import prepare_network
from nanogpt_lite.trainer.state import init_state, restore_state
from nanogpt_lite.trainer.step import halve_micro_batch, train_step


def train_limited(tmp_path, monkeypatch, config, max_rows, when, state=None):
    state = state or init_state(config, TOKENIZER)
    monkeypatch.setattr(loop, "prepare_network", lambda state: LimitedMemory(state.model, max_rows, when))
    return state, list(loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path))


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"dtype": "bfloat16"}])
def test_limited_memory_halves_micro_batches_and_keeps_the_losses(tmp_path, monkeypatch, when, options):
    config = small_config(batch_size=7, log_interval=1, **options)
    plain = list(loop.train_loop(init_state(config, TOKENIZER), TRAIN, VAL, out_dir=tmp_path))
    state, limited = train_limited(tmp_path, monkeypatch, config, 3, when)
    assert [(record.step, record.rows) for record in records_of(MicroBatchRecord, limited)] == [(1, 2)]  # 7, 4, 2
    assert state.micro_batch == 2
    assert state.step == config.max_iters
    tolerance = 1e-5 if config.dtype == "float32" else 2e-3
    for kind, names in ((StepRecord, ["loss", "grad_norm"]), (EvalRecord, ["train_loss", "val_loss"])):
        for expected, got in zip(records_of(kind, plain), records_of(kind, limited), strict=True):
            for name in names:
                assert getattr(got, name) == pytest.approx(getattr(expected, name), abs=tolerance, rel=tolerance)


def test_out_of_memory_in_the_middle_of_a_run_loses_no_step(tmp_path, monkeypatch):
    config = small_config(log_interval=1)
    state = init_state(config, TOKENIZER)
    plain = list(loop.train_loop(init_state(config, TOKENIZER), TRAIN, VAL, out_dir=tmp_path))
    limited = LimitedMemory(state.model, 100, "backward")
    monkeypatch.setattr(loop, "prepare_network", lambda state: limited)
    records = []
    for record in loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path):
        records.append(record)
        limited.max_rows = 100 if state.step < 6 else 1
    assert [(record.step, record.rows) for record in records_of(MicroBatchRecord, records)] == [(7, 1)]
    assert [r.step for r in records_of(StepRecord, records)] == list(range(1, 13))
    for expected, got in zip(records_of(StepRecord, plain), records_of(StepRecord, records), strict=True):
        assert got.loss == pytest.approx(expected.loss, abs=1e-5)


def test_resume_keeps_the_smaller_micro_batches_and_is_bit_exact(tmp_path, monkeypatch):
    config = small_config(dropout=0.2)
    train_limited(tmp_path / "whole", monkeypatch, config, 2, "forward")
    half = small_config(dropout=0.2, max_iters=5, lr_decay_iters=12)
    train_limited(tmp_path / "halves", monkeypatch, half, 2, "forward")
    saved = checkpoint_file.read_checkpoint(tmp_path / "halves" / "last.safetensors")
    state = restore_state(saved, {"max_iters": 12})
    assert state.micro_batch == 2
    _, records = train_limited(tmp_path / "halves", monkeypatch, None, 4, "forward", state)  # more memory than before
    assert not records_of(MicroBatchRecord, records)
    files = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "halves")]
    assert files[0] == files[1]
    assert restore_state(saved, {"batch_size": 4}).micro_batch == 2
    assert restore_state(saved, {"batch_size": 8}).micro_batch == 8  # a new batch size starts with whole batches


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_for_a_single_row_is_an_error(tmp_path, monkeypatch, error):
    state = init_state(SMALL, TOKENIZER)
    with pytest.raises(type(error)):
        train_step(
            state,
            LimitedMemory(state.model, 0, "forward", error),
            batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0),
        )
    assert state.step == 0


def test_other_runtime_errors_are_raised(tmp_path):
    state = init_state(SMALL, TOKENIZER)
    batch = batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0)
    with pytest.raises(RuntimeError, match="shapes"):
        train_step(state, LimitedMemory(state.model, 0, "forward", RuntimeError("shapes differ")), batch)
    assert state.micro_batch == 4


def test_a_failed_pass_is_freed_before_the_next_attempt(monkeypatch):
    """Otherwise the next attempt would have no more memory."""
    state = init_state(SMALL, TOKENIZER)
    saved, alive = [], []

    class SavedTensor:
        """A tensor that a forward pass saves for the backward pass."""

        def __init__(self, tensor):
            self.tensor = tensor.detach()  # otherwise a reference cycle with the graph
            saved.append(weakref.ref(self))

    def forward(x, y):
        alive.append(sum(reference() is not None for reference in saved))
        with torch.autograd.graph.saved_tensors_hooks(SavedTensor, lambda saved_tensor: saved_tensor.tensor):
            logits, loss = state.model(x, y)
        if len(x) > 1:
            return logits, OutOfMemoryInBackward.apply(
                loss, state.model.lm_head.weight, torch.OutOfMemoryError("out of memory")
            )
        return logits, loss

    train_step(state, forward, batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0))
    assert alive == [0] * 6  # passes of 4 rows, 2 rows, and 4 times one row
    assert len(saved) > 6 * 10


class BackwardError(torch.autograd.Function):
    """The identity, whose gradient PyTorch's compiler cannot compile."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch._dynamo.exc.TorchDynamoException("PassManager::run failed")


def fails_in_backward_pass(backend):
    """As a compiler that compiles a backward pass when it is first called."""

    def compile_graph(graph, example_inputs):
        forward = backend(graph, example_inputs)
        is_last = len(backend.graphs) == backend.max_graphs
        return (lambda *args: tuple(map(BackwardError.apply, forward(*args)))) if is_last else forward

    return compile_graph


@COMPILES
@pytest.mark.usefixtures("fresh_fast_paths")
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_a_pass_that_cannot_be_compiled_is_repeated_as_a_plain_one(fails, gradient_accumulation_steps, monkeypatch):
    """After out of memory: micro-batches have another shape then, for which PyTorch compiles once more."""
    config = small_config(compile=True, gradient_accumulation_steps=gradient_accumulation_steps)
    backend = CountingBackend(1 if fails == "forward" else 2)
    compile_blocks_with(backend if fails == "forward" else fails_in_backward_pass(backend), monkeypatch)
    state, plain = init_state(config, TOKENIZER), init_state(config, TOKENIZER)
    forward = prepare_network(state)
    for step in range(3):
        batch = batching.random_batch(TRAIN, rows=config.rows_per_step, block_size=8, seed=7, step=step)
        train_step(plain, plain.model, batch)
        if step == 1:
            halve_micro_batch(state)
            with pytest.warns(UserWarning, match="the compiled network cannot be used .*PassManager") as warned:
                train_step(state, forward, batch)
            assert len(warned) == 1
        else:
            train_step(state, forward, batch)
        assert state.since_log.pop() == pytest.approx(plain.since_log.pop(), abs=1e-6)
    assert state.step == 3
    for one, other in zip(state.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@COMPILES
@pytest.mark.usefixtures("fresh_fast_paths")
def test_a_step_that_other_ranks_wait_in_is_not_repeated(monkeypatch):
    """An error that is raised ends this rank, which the others notice."""
    backend = CountingBackend(2)
    compile_blocks_with(fails_in_backward_pass(backend), monkeypatch)
    state = init_state(small_config(compile=True), TOKENIZER)
    forward = prepare_network(state)
    halve_micro_batch(state)
    state.group = ProcessGroup(world_size=2)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="PassManager"):
        train_step(state, forward, batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0))
    assert not fallbacks.describe()


def train_with_limited_memory(options, max_rows):
    """Rank 1 has memory for `max_rows` rows only."""
    from nanogpt_lite.device import distributed
    from nanogpt_lite.model.gpt import GPT

    forward = GPT.forward

    def limited(self, idx, targets=None, **options):
        if self.training and distributed.launched_rank() == 1 and len(idx) > max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, idx, targets, **options)

    GPT.forward = limited  # type: ignore[method-assign]
    rank_training.train(options)


@pytest.mark.posix("forks ranks")
def test_ranks_agree_on_a_micro_batch_that_fits_on_all(text_file):
    import nanogpt_lite as ng

    ng.prepare("bottles.txt")
    assert forked_ranks.run(2, train_with_limited_memory, {"out_dir": "runs/limited"}, 2) == [0, 0]
    rank_training.train({"out_dir": "runs/alone"})
    rank_training.require_same_losses("runs/limited", "runs/alone")
    assert checkpoint_file.read_checkpoint(Path("runs/limited/last.safetensors")).metadata.micro_batch == 2
    assert [(r["step"], r["rows"]) for r in rank_training.records("runs/limited", "micro_batch")] == [(0, 2)]


@pytest.mark.posix("forks ranks")
def test_ranks_without_memory_for_a_single_row_raise_an_error(text_file):
    import nanogpt_lite as ng

    ng.prepare("bottles.txt")
    assert forked_ranks.run(2, train_with_limited_memory, {"out_dir": "runs/limited"}, 0) == [1, 1]
    for rank in range(2):
        assert (
            Path(f"rank{rank}.error")
            .read_text(encoding="utf-8")
            .startswith("ExternalError: out of memory with a single row")
        )


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_steps_equal_the_same_computation_written_out(tmp_path):
    """Forward, backward, clipping, AdamW and the schedule, with PyTorch's plain parts and one loss per row."""
    state = init_state(small_config(grad_clip=0.5), TOKENIZER)
    twin = init_state(small_config(grad_clip=0.5), TOKENIZER).model
    decay = [p for p in twin.parameters() if p.dim() >= 2]
    rest = [p for p in twin.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), foreach=False, fused=False)
    for step in range(6):
        batch = batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=step)
        train_step(state, state.model, batch)
        loss = torch.stack([F.cross_entropy(twin(x[None])[0][0], y) for x, y in zip(*batch, strict=True)]).mean()
        adamw.zero_grad()
        loss.backward()
        norm = math.sqrt(math.fsum((gradient(p).double() ** 2).sum().item() for p in twin.parameters()))
        for parameter in twin.parameters():
            gradient(parameter).mul_(min(1.0, 0.5 / norm))
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, state.config)
        adamw.step()
        assert state.since_log.pop() == pytest.approx(loss.item(), rel=1e-5)
        assert state.grad_norm.item() == pytest.approx(norm, rel=1e-4)
    assert state.step == 6
    for (name, ours), theirs in zip(state.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_without_grad_clip_no_gradient_is_clipped():
    """With a large gradient and plain SGD, the update is the learning rate times the gradient."""
    state = init_state(small_config(grad_clip=0.0, warmup_iters=0), TOKENIZER)
    for parameter in state.model.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    twin = copy.deepcopy(state.model)
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)  # type: ignore[assignment]
    batch = batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0)
    train_step(state, state.model, batch)
    twin(*batch)[1].backward()
    assert state.grad_norm > 1
    for ours, theirs in zip(state.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - SMALL.learning_rate * gradient(theirs))


def test_dropout_masks_depend_on_seed_step_and_micro_batch():
    """The same row in each micro-batch of two steps, with constant weights: only the masks differ."""

    def masked_losses(seed):
        state = init_state(small_config(dropout=0.5, batch_size=1, gradient_accumulation_steps=3, seed=seed), TOKENIZER)
        state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.0)  # type: ignore[assignment]
        row = torch.arange(9)[None] % 8
        losses = []

        def forward(x, y):
            out = state.model(x, y)
            losses.append(out[1].item())
            return out

        for _ in range(2):
            weights = copy.deepcopy(state.model.state_dict())
            train_step(state, forward, (row[:, :-1].expand(3, -1), row[:, 1:].expand(3, -1)))
            state.model.load_state_dict(weights)
        return losses

    losses = masked_losses(seed=1)
    assert len(set(losses)) == 6
    assert masked_losses(seed=1) == losses


def test_one_batch_can_be_memorised():
    state = init_state(small_config(learning_rate=1e-2, decay_lr=False, n_embd=32), TOKENIZER)
    random = torch.randint(8, (4, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(150):
        train_step(state, state.model, (random[:, :-1], random[:, 1:]))
    state.since_log.pop()
    train_step(state, state.model, (random[:, :-1], random[:, 1:]))
    assert state.since_log.pop() < 0.4 < math.log(8)  # the second token of a row cannot be known from the first


def test_float16_skips_steps_whose_gradient_overflows():
    state = init_state(small_config(dtype="float16"), TOKENIZER)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.clone() for p in state.model.parameters()]
    batch = batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0)
    train_step(state, state.model, batch)
    assert not state.grad_norm.isfinite()
    assert all(torch.equal(p, q) for p, q in zip(state.model.parameters(), before, strict=True))
    assert state.scaler.get_scale() == 2.0**39


def train_under_memory_limit(options, room):
    """The operating system refuses more than `room` bytes above the present size of the process."""
    import resource

    import nanogpt_lite as ng

    torch.zeros(8, 8, dtype=torch.bfloat16) @ torch.zeros(8, 8, dtype=torch.bfloat16)  # oneDNN allocates at first use
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (used,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    ng.train("bottles.txt", **options)


@pytest.mark.linux("limits the memory with RLIMIT_AS")
@pytest.mark.parametrize(
    ("dtype", "room"),
    [
        pytest.param("float32", 500, marks=pytest.mark.slow),
        pytest.param("bfloat16", 500, marks=pytest.mark.slow),
        pytest.param("bfloat16", 580, marks=pytest.mark.slow),  # here an evaluation is the first to run out of memory
    ],
)
def test_training_under_a_system_memory_limit_takes_smaller_micro_batches(text_file, dtype, room):
    import nanogpt_lite as ng

    ng.prepare("bottles.txt")
    options = {"preset": "cpu", "device": "cpu", "threads": 1, "dtype": dtype, "n_layer": 2, "out_dir": "runs/limited"}
    options |= {"batch_size": 512, "max_iters": 2, "eval_interval": 2}
    assert forked_ranks.run(1, train_under_memory_limit, options, room * 2**20) == [0]
    limited = ng.Run(Path("runs/limited")).metrics
    assert [record["rows"] for record in limited if record["kind"] == "micro_batch"][-1] < 512
    plain = ng.train("bottles.txt", **{**options, "out_dir": "runs/plain"}).metrics
    losses = [[r["val_loss"] for r in metrics if r["kind"] == "eval"] for metrics in (limited, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4 if dtype == "float32" else 1e-2)
