"""Before the first step: the network to call in a step, compiled and shared with other ranks as the config says.

Fast paths are checked here against plain ones, and the memory for a micro-batch where it has to be known in advance. A
step is in `step`.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.device import devices, distributed, fallbacks, fast_paths, memory, seeding
from nanogpt_lite.device.distributed import Forward, ProcessGroup
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.errors import ExternalError
from nanogpt_lite.model.block import Block
from nanogpt_lite.model.compilation import CompiledNetwork, compile_network, count_graphs, gives_up_compilation
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.optim import build
from nanogpt_lite.trainer.state import TrainState
from nanogpt_lite.trainer.step import halve_micro_batch, micro_batch_rows

# Standard deviations of the random weights of the block that is compared. Those of a matrix are divided by the square
# root of its inputs: so attention is far from uniform, and float16 overflows in a network of no width.
MATRIX_STD, GAIN_STD, BIAS_STD = 2.0, 0.1, 0.5
# Of the gradient at its results, which is divided by the square root of the tokens: so the gradients of matrices, sums
# over the tokens, are as large for any number of them, and neither too large nor too small for float16.
GRADIENT_SCALE = 0.125
TOLERANCES = {"float32": 0.005, "float16": 0.02, "bfloat16": 0.05}  # relative; a compiled block rounds less often


def prepare_network(state: TrainState) -> Forward:
    """The network to call in a step: compiled if the config says so, and shared with the other ranks.

    Of several ranks, each has it in DistributedDataParallel, and a micro-batch that fits on all of them is found.
    `ExternalError` if a single row is too much for the memory of a rank, or if ranks cannot reach each other.
    """
    config = state.config
    state.group.check_connection(state.device)
    fast_paths.check(state.device, config.dtype, head_size=config.n_embd // config.n_head)
    build.check_fast_paths(config, state.device)
    network: Forward = state.model
    if (config.compile or config.compile_whole) and fallbacks.is_usable(FastPath.COMPILATION):
        network = compile_network(state.model, whole=config.compile_whole).train()
        if problem := _problem_of_compilation(state, network):
            fallbacks.give_up(FastPath.COMPILATION, problem)
    _agree_on_fast_paths(state.group)
    if not fallbacks.is_usable(FastPath.COMPILATION):
        network = state.model
    forward = state.group.wrap_ddp(network, state.device)
    if state.group.world_size > 1:
        _fit_memory(state, forward)
    return forward


def _agree_on_fast_paths(group: ProcessGroup) -> None:
    """Do without what any rank does without: if optimizers round differently, the weights of the ranks drift apart."""
    failed = group.all_reduce_max(*(not fallbacks.is_usable(fast_path) for fast_path in FastPath))
    for fast_path, has_failed in zip(FastPath, failed, strict=True):
        if has_failed and fallbacks.is_usable(fast_path):
            if fast_path is FastPath.ATTENTION:
                fast_paths.give_up_attention("it fails on another rank")
            else:
                fallbacks.give_up(fast_path, "it fails on another rank")


def _fit_memory(state: TrainState, forward: Forward) -> None:
    """Find a micro-batch that fits into the memory of all ranks, and compile what a step calls.

    In a step, ranks wait for each other, and none can repeat a pass alone. So memory is probed before the first step,
    with the optimizer's state reserved, which is otherwise allocated at the end of the first step.
    """
    reserved = [] if state.step else build.reserve_optimizer_state(state.optimizer)
    while True:
        is_compiled = fallbacks.is_usable(FastPath.COMPILATION)
        fits = _probe_memory(state, forward)
        _agree_on_fast_paths(state.group)
        if is_compiled and not fallbacks.is_usable(FastPath.COMPILATION):
            continue  # from now on `forward` is the plain network on all ranks
        if not any(state.group.all_reduce_max(not fits)):
            break
        if micro_batch_rows(state) == 1:
            raise ExternalError("out of memory with a single row on one of the ranks; give a smaller `block_size`")
        halve_micro_batch(state)
    del reserved
    # DistributedDataParallel rebuilds its gradient buckets after the first backward pass, which changes the order of
    # sums over ranks. This pass, without an update, comes before all steps: so a resumed run adds in the same order.
    _backward_zeros(state, forward, micro_batch_rows(state))
    state.optimizer.zero_grad()


def _probe_memory(state: TrainState, forward: Forward) -> bool:
    """Whether memory is enough for the micro-batches of a step, without waiting for other ranks and without an update.

    Two passes, like a step of several micro-batches: in the second the gradients of the first take memory too. The last
    micro-batch of a step may have fewer rows, for which a compiled network is compiled again.
    """
    rows = micro_batch_rows(state)
    last_rows = state.config.rows_per_step // state.group.world_size % rows
    try:
        for probed_rows in (rows, rows, last_rows) if last_rows else (rows, rows):
            with distributed.no_sync(forward):
                _backward_zeros(state, forward, probed_rows)
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error) and not gives_up_compilation(error):
            raise
        return False
    finally:
        state.optimizer.zero_grad()
    return True


def _backward_zeros(state: TrainState, forward: Forward, rows: int) -> None:
    """Accumulate the gradients of one micro-batch of zeros."""
    x, y = _as_batch(torch.zeros(rows, state.config.block_size + 1, dtype=torch.int64), state.device)
    with seeding.seeded(state.device), devices.autocast(state.device, state.config.dtype):
        loss = forward(x, y)[1]
    loss.backward()  # type: ignore[no-untyped-call]


def _as_batch(ids: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of ids (B, T + 1) on the CPU, with the strides of a batch: so they share its graph."""
    return ids[:, :-1].to(device), ids[:, 1:].to(device)


def _problem_of_compilation(state: TrainState, network: CompiledNetwork) -> str:
    """What is wrong with the compiled network; empty if nothing is."""
    config = state.config
    problem = _compare_blocks(state, config.replace({"dropout": 0.0}))
    if config.dropout and not problem:
        problem = _compare_blocks(state, config)
    if config.compile_whole and not problem:
        problem = _compare(state, partial(_difference_of_networks, state, network))
    return problem


def _compare_blocks(state: TrainState, config: TrainConfig, seed: int = 0) -> str:
    """What is wrong with a compiled block with random weights; empty if nothing is."""
    return _compare(state, partial(_difference_of_blocks, state, config, seed))


def _compare(state: TrainState, find_difference: Callable[[int], str]) -> str:
    """What is wrong with what is compiled; empty if nothing is.

    `find_difference` is called with the rows of a micro-batch, or with fewer if memory is not enough. If it is not
    enough for a single row, that says nothing about compilation.
    """
    rows = micro_batch_rows(state)
    while True:
        try:
            return find_difference(rows)
        except Exception as error:  # from the compilers: PyTorch's, Triton's, and the C compiler that they call
            if not memory.is_out_of_memory(error):
                return str(error) or type(error).__name__
        if rows == 1:
            return ""
        rows //= 2
        memory.free_memory(state.device)


def _difference_of_blocks(state: TrainState, config: TrainConfig, seed: int, rows: int) -> str:
    """How a compiled block with random weights differs from the same block; empty if it does not.

    The loss would not tell: that of a new network is the logarithm of the vocabulary, whatever its blocks compute. With
    dropout, a compiled block has other masks, and may differ twice as much as the block from itself with other masks.
    All rows are then equal, and what is compared are means over them, which depend less on the masks.
    """
    with seeding.seeded(torch.device("cpu"), seed):
        block = _random_block(config)
        x = torch.randn(rows, config.block_size, config.n_embd)
    if config.dropout:
        x = x[:1].expand_as(x)
    block, x = block.to(state.device), x.to(state.device)
    plain, other_masks = _passes(state, block, x, 1), _passes(state, block, x, 2)
    if not all(bool(result.isfinite().all()) for result in plain):
        return f"it cannot be compared: a plain block with random weights overflows in {config.dtype}"
    # PyTorch compiles a function for eight kinds of arguments at most, and then never again. Those of earlier trainings
    # count, until it forgets all that it has compiled. Another training in this process then compiles once more.
    torch.compiler.reset()
    graphs = count_graphs()
    block.compile()
    compiled = _passes(state, block, x, 1)
    if count_graphs() == graphs:
        return "PyTorch's compiler has compiled nothing; it may be turned off"
    if config.dropout:
        compiled, plain, other_masks = map(_mean_over_rows, (compiled, plain, other_masks))
    if difference := _first_difference(compiled, plain, other_masks, TOLERANCES[config.dtype]):
        return f"a block differs by {difference:.2g} from the plain one, relative to it"
    return ""


def _difference_of_networks(state: TrainState, network: CompiledNetwork, rows: int) -> str:
    """How the network that is compiled as a whole differs from the plain one; empty if it does not.

    Its blocks, in a graph of their own, have been compared before, with weights on whose results more depends than on
    those with which a training begins. Here these have to do, so this is about what is around the blocks. As there, all
    rows are equal with dropout, and a difference may be twice that of other masks.
    """
    config, model = state.config, state.model
    has_masks = bool(config.dropout or config.ngram_dropout)
    with seeding.seeded(torch.device("cpu")):
        ids = torch.randint(model.vocab_size, (1 if has_masks else rows, config.block_size + 1))
    x, y = _as_batch(ids.expand(rows, -1).contiguous(), state.device)
    plain = _network_passes(state, model, x, y, 1)
    if not all(bool(result.isfinite().all()) for result in plain):
        return f"it cannot be compared: the plain network overflows in {config.dtype}"
    other_masks = _network_passes(state, model, x, y, 2) if has_masks else plain
    compiled = _network_passes(state, network.compiled, x, y, 1)
    if difference := _first_difference(compiled, plain, other_masks, TOLERANCES[config.dtype]):
        return f"the whole network differs by {difference:.2g} from the plain one, relative to it"
    return ""


def _first_difference(
    results: Iterable[Tensor], plain: Iterable[Tensor], other_masks: Iterable[Tensor], tolerance: float
) -> float:
    """The first relative difference above the tolerance and twice that of other masks; 0 if there is none."""
    for result, expected, other in zip(results, plain, other_masks, strict=True):
        difference = _distance(result, expected)
        if not difference <= tolerance + 2 * _distance(other, expected):  # also if it is not a number
            return difference
    return 0.0


def _random_block(config: TrainConfig) -> Block:
    """A block of the config's network with random weights."""
    block = Block(config.subset(NetworkConfig))
    for name, parameter in block.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=MATRIX_STD / parameter.size(1) ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=BIAS_STD)
        else:
            torch.nn.init.normal_(parameter, mean=1.0, std=GAIN_STD)
    return block


def _passes(state: TrainState, block: Block, x: Tensor, seed: int) -> list[Tensor]:
    """What a block adds to x, and the gradients of x and of the block's matrices."""
    x = x.clone().requires_grad_()
    rotary = state.model.transformer.rotary
    with seeding.seeded(state.device, seed), devices.autocast(state.device, state.config.dtype):
        cos_sin = None if rotary is None else rotary(torch.arange(x.size(1), device=x.device), devices.linear_dtype(x))
        y = block(x, cos_sin, None, 0)
    matrices = [parameter for parameter in block.parameters() if parameter.dim() == 2]
    gradient = y.detach() * (GRADIENT_SCALE / (x.size(0) * x.size(1)) ** 0.5)
    return [y.detach() - x.detach(), *torch.autograd.grad(y, [x, *matrices], gradient)]


def _network_passes(state: TrainState, model: GPT, x: Tensor, y: Tensor, seed: int) -> list[Tensor]:
    """The loss and the gradients of the matrices, scaled as those of blocks are."""
    with seeding.seeded(state.device, seed), devices.autocast(state.device, state.config.dtype):
        loss = model(x, y)[1]
    assert loss is not None, "there are targets"
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    return [loss.detach(), *torch.autograd.grad(loss * (GRADIENT_SCALE * x.numel() ** 0.5), matrices)]


def _mean_over_rows(results: list[Tensor]) -> list[Tensor]:
    """Results and gradients (B, T, C) averaged over B; gradients of matrices as they are, which are sums over B."""
    return [result.mean(0) if result.dim() == 3 else result for result in results]


def _distance(one: Tensor, other: Tensor) -> float:
    """The norm of the difference, relative to that of the second tensor."""
    return float((one - other).norm() / other.norm().clamp(min=1e-12))
