"""One step against the same written out; micro-batches that memory does not suffice for."""

import copy
import math
import sys
import weakref
from pathlib import Path

import forked_ranks
import pytest
import rank_training
import torch
from tiny_training import SMALL, TOKENIZER, TRAIN, VAL, records_of, small_config
from torch.nn import functional as F

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.data import batching
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tracking.records import EvalRecord, MicroBatchRecord, StepRecord
from nanogpt_lite.trainer import evaluation, loop
from nanogpt_lite.trainer.state import init_state, restore_state
from nanogpt_lite.trainer.step import train_step


class Scarce:
    """A network on a machine whose memory suffices for `most` rows: above that, PyTorch's own error."""

    def __init__(self, network, most, when, error=None):
        self.network, self.most, self.when = network, most, when
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, x, y):
        if len(x) <= self.most:
            return self.network(x, y)
        if self.when == "forward":
            raise self.error
        logits, loss = self.network(x, y)
        return logits, Overflow.apply(loss, self.network.lm_head.weight, self.error)


class Overflow(torch.autograd.Function):
    """A loss in whose backward pass memory runs out after the first gradients are there."""

    @staticmethod
    def forward(ctx, loss, weight, error):
        ctx.weight, ctx.error = weight, error
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.weight.grad = torch.ones_like(ctx.weight)
        raise type(ctx.error)(*ctx.error.args)  # this one would hold on to the whole pass by its traceback


def train_scarcely(tmp_path, monkeypatch, config, most, when, state=None):
    state = state or init_state(config, TOKENIZER)
    monkeypatch.setattr(loop, "wrap_and_probe", lambda state, network: Scarce(network, most, when))
    return state, list(loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path))


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"dtype": "bfloat16"}])
def test_without_memory_micro_batches_get_smaller_and_the_losses_stay(tmp_path, monkeypatch, when, options):
    config = small_config(batch_size=7, log_interval=1, **options)
    plain = list(loop.train_loop(init_state(config, TOKENIZER), TRAIN, VAL, out_dir=tmp_path))
    state, scarce = train_scarcely(tmp_path, monkeypatch, config, 3, when)
    assert [(record.step, record.rows) for record in records_of(MicroBatchRecord, scarce)] == [(1, 2)]  # 7, 4, 2
    assert state.micro_batch == 2
    assert state.step == config.max_iters
    tolerance = 1e-5 if config.dtype == "float32" else 2e-3
    for kind, names in ((StepRecord, ["loss", "grad_norm"]), (EvalRecord, ["train_loss", "val_loss"])):
        for expected, got in zip(records_of(kind, plain), records_of(kind, scarce), strict=True):
            for name in names:
                assert getattr(got, name) == pytest.approx(getattr(expected, name), abs=tolerance, rel=tolerance)


def test_memory_that_runs_out_in_the_middle_of_a_run_loses_no_step(tmp_path, monkeypatch):
    config = small_config(log_interval=1)
    state = init_state(config, TOKENIZER)
    plain = list(loop.train_loop(init_state(config, TOKENIZER), TRAIN, VAL, out_dir=tmp_path))
    scarce = Scarce(state.model, 100, "backward")
    monkeypatch.setattr(loop, "wrap_and_probe", lambda state, network: scarce)
    records = []
    for record in loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path):
        records.append(record)
        scarce.most = 100 if state.step < 6 else 1
    assert [(record.step, record.rows) for record in records_of(MicroBatchRecord, records)] == [(7, 1)]
    assert [r.step for r in records_of(StepRecord, records)] == list(range(1, 13))
    for expected, got in zip(records_of(StepRecord, plain), records_of(StepRecord, records), strict=True):
        assert got.loss == pytest.approx(expected.loss, abs=1e-5)


def test_a_resumed_run_keeps_the_smaller_micro_batches_and_so_every_bit(tmp_path, monkeypatch):
    config = small_config(dropout=0.2)
    train_scarcely(tmp_path / "whole", monkeypatch, config, 2, "forward")
    half = small_config(dropout=0.2, max_iters=5, lr_decay_iters=12)
    train_scarcely(tmp_path / "halves", monkeypatch, half, 2, "forward")
    saved = checkpoint_file.read_checkpoint(tmp_path / "halves" / "last.safetensors")
    state = restore_state(saved, {"max_iters": 12})
    assert state.micro_batch == 2
    _, records = train_scarcely(tmp_path / "halves", monkeypatch, None, 4, "forward", state)  # there is more memory now
    assert not records_of(MicroBatchRecord, records)
    files = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "halves")]
    assert files[0] == files[1]
    assert restore_state(saved, {"batch_size": 4}).micro_batch == 2
    assert restore_state(saved, {"batch_size": 8}).micro_batch == 8  # another one is tried whole


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_without_memory_for_a_single_row_it_is_an_error(tmp_path, monkeypatch, error):
    state = init_state(SMALL, TOKENIZER)
    with pytest.raises(type(error)):
        train_step(
            state,
            Scarce(state.model, 0, "forward", error),
            batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0),
        )
    assert state.step == 0


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    state = init_state(SMALL, TOKENIZER)
    batch = batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0)
    with pytest.raises(RuntimeError, match="shapes"):
        train_step(state, Scarce(state.model, 0, "forward", RuntimeError("shapes differ")), batch)
    assert state.micro_batch == 4


def test_what_failed_is_let_go_before_the_next_attempt(monkeypatch):
    """Else there would be no more memory than before."""
    state = init_state(SMALL, TOKENIZER)
    kept, alive = [], []

    class Kept:
        """What a pass keeps of one tensor for the way back."""

        def __init__(self, tensor):
            self.tensor = tensor.detach()  # else it would hold on to the graph that holds on to it
            kept.append(weakref.ref(self))

    def forward(x, y):
        alive.append(sum(one() is not None for one in kept))
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda one: one.tensor):
            logits, loss = state.model(x, y)
        if len(x) > 1:
            return logits, Overflow.apply(loss, state.model.lm_head.weight, torch.OutOfMemoryError("out of memory"))
        return logits, loss

    train_step(state, forward, batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0))
    assert alive == [0] * 6  # 4 rows, 2 rows, and 4 times one
    assert len(kept) > 6 * 10


def train_with_little_memory(options, most):
    """On the second rank memory suffices for fewer rows."""
    from nanogpt_lite.device import distributed
    from nanogpt_lite.model.gpt import GPT

    forward = GPT.forward

    def limited(self, idx, targets=None, *, cache=None):
        if self.training and distributed.launched_rank() == 1 and len(idx) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, idx, targets, cache=cache)

    GPT.forward = limited
    rank_training.train(options)


def test_ranks_agree_on_the_micro_batch_that_fits_all(text_file):
    import nanogpt_lite as ng

    ng.prepare("bottles.txt")
    assert forked_ranks.run(2, train_with_little_memory, {"out_dir": "runs/scarce"}, 2) == [0, 0]
    rank_training.train({"out_dir": "runs/alone"})
    rank_training.require_same_losses("runs/scarce", "runs/alone")
    assert checkpoint_file.read_checkpoint(Path("runs/scarce/last.safetensors")).metadata["micro_batch"] == 2
    assert [(r["step"], r["rows"]) for r in rank_training.records("runs/scarce", "micro_batch")] == [(1, 2)]


def test_ranks_without_memory_for_a_single_row_are_told_so(text_file):
    import nanogpt_lite as ng

    ng.prepare("bottles.txt")
    assert forked_ranks.run(2, train_with_little_memory, {"out_dir": "runs/scarce"}, 0) == [1, 1]
    for rank in range(2):
        assert Path(f"rank{rank}.error").read_text().startswith("ExternalError: out of memory with a single row")


def test_steps_equal_the_same_written_out(tmp_path):
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
        loss = sum(F.cross_entropy(twin(x[None])[0][0], y) for x, y in zip(*batch, strict=True)) / 4
        adamw.zero_grad()
        loss.backward()
        norm = math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in twin.parameters()))
        for parameter in twin.parameters():
            parameter.grad *= min(1.0, 0.5 / norm)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, state.config)
        adamw.step()
        assert state.since_log.pop() == pytest.approx(loss.item(), rel=1e-5)
        assert state.grad_norm.item() == pytest.approx(norm, rel=1e-4)
    assert state.step == 6
    for (name, ours), theirs in zip(state.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_without_grad_clip_no_gradient_is_clipped():
    """With a gradient far above any usual limit, and plain descent, the step is the gradient itself."""
    state = init_state(small_config(grad_clip=0.0, warmup_iters=0), TOKENIZER)
    for parameter in state.model.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    twin = copy.deepcopy(state.model)
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)
    batch = batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0)
    train_step(state, state.model, batch)
    twin(*batch)[1].backward()
    assert state.grad_norm > 1
    for ours, theirs in zip(state.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - SMALL.learning_rate * theirs.grad)


def test_dropout_is_of_the_seed_the_step_and_the_micro_batch():
    """The same row in each micro-batch of two steps, with weights that stay as they are: only the masks differ."""

    def masked_losses(seed):
        state = init_state(small_config(dropout=0.5, batch_size=1, gradient_accumulation_steps=3, seed=seed), TOKENIZER)
        state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.0)
        row = torch.arange(9)[None] % 8
        seen = []

        def forward(x, y):
            out = state.model(x, y)
            seen.append(out[1].item())
            return out

        for _ in range(2):
            weights = copy.deepcopy(state.model.state_dict())
            train_step(state, forward, (row[:, :-1].expand(3, -1), row[:, 1:].expand(3, -1)))
            state.model.load_state_dict(weights)
        return seen

    losses = masked_losses(seed=1)
    assert len(set(losses)) == 6
    assert masked_losses(seed=1) == losses


def test_one_batch_can_be_learned_by_heart():
    state = init_state(small_config(learning_rate=1e-2, decay_lr=False, n_embd=32), TOKENIZER)
    random = torch.randint(8, (4, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(150):
        train_step(state, state.model, (random[:, :-1], random[:, 1:]))
    state.since_log.pop()
    train_step(state, state.model, (random[:, :-1], random[:, 1:]))
    assert state.since_log.pop() < 0.4 < math.log(8)  # the first tokens of the rows cannot be known


def test_float16_leaves_out_steps_whose_gradient_overflows():
    state = init_state(small_config(dtype="float16"), TOKENIZER)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.clone() for p in state.model.parameters()]
    batch = batching.random_batch(TRAIN, rows=4, block_size=8, seed=7, step=0)
    train_step(state, state.model, batch)
    assert not state.grad_norm.isfinite()
    assert all(torch.equal(p, q) for p, q in zip(state.model.parameters(), before, strict=True))
    assert state.scaler.get_scale() == 2.0**39


def train_in_little_memory(options, room):
    """The system itself refuses more than `room` bytes above what the process has."""
    import resource

    import nanogpt_lite as ng

    torch.zeros(8, 8, dtype=torch.bfloat16) @ torch.zeros(8, 8, dtype=torch.bfloat16)  # libraries take their part
    lines = Path("/proc/self/status").read_text().splitlines()
    (used,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    ng.train("bottles.txt", **options)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process has such a limit")
@pytest.mark.parametrize(
    ("dtype", "room"),
    [
        pytest.param("float32", 500, marks=pytest.mark.slow),
        ("bfloat16", 500),
        pytest.param("bfloat16", 580, marks=pytest.mark.slow),  # where the first to lack memory is an evaluation
    ],
)
def test_when_the_system_refuses_memory_it_goes_on_with_less(text_file, dtype, room):
    import nanogpt_lite as ng

    ng.prepare("bottles.txt")
    options = {"preset": "cpu", "device": "cpu", "threads": 1, "dtype": dtype, "n_layer": 2, "out_dir": "runs/scarce"}
    options |= {"batch_size": 512, "max_iters": 2, "eval_interval": 2}
    assert forked_ranks.run(1, train_in_little_memory, options, room * 2**20) == [0]
    scarce = ng.Run("runs/scarce").metrics
    assert [record["rows"] for record in scarce if record["kind"] == "micro_batch"][-1] < 512
    plain = ng.train("bottles.txt", **{**options, "out_dir": "runs/plain"}).metrics
    losses = [[r["val_loss"] for r in found if r["kind"] == "eval"] for found in (scarce, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("most", [1, 5])
def test_an_evaluation_takes_what_memory_there_is(monkeypatch, most):
    state = init_state(SMALL, TOKENIZER)
    whole = evaluation.mean_loss(state.model, evaluation.split_windows(VAL, 8), state.device, "float32")
    scarce = Scarce(state.model, most, "forward")
    scarce.eval = state.model.eval
    got = evaluation.mean_loss(scarce, evaluation.split_windows(VAL, 8), state.device, "float32")
    assert got == pytest.approx(whole, abs=1e-6)
    scarce.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        evaluation.mean_loss(scarce, evaluation.split_windows(VAL, 8), state.device, "float32")
