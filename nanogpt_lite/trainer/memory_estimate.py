"""An estimate of the GPU memory that a training step takes, by part, from the options alone.

It is arithmetic, without PyTorch: a machine that has neither it nor a GPU can tell whether a training fits before a GPU
is rented. Counted are the tensors of a step that is not compiled, at the moments when most of them exist; a test
compares that with a count of real steps. How a step takes fewer rows when memory is not enough is in `step`.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil

from nanogpt_lite.config.options import MAX_LOGITS, TrainConfig

# The part of a GPU's memory that a step may take. The rest is for CUDA itself (about 0.5 GB), for the workspaces of its
# libraries, and for gaps between the blocks of PyTorch's allocator. An assumption, not a measurement.
USABLE_FRACTION = 0.9


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU. The parts are largest at different moments of a step, so `peak` is less than their sum."""

    weights: int
    gradients: int
    optimizer: int  # its state, and with Muon what an update needs beside it
    activations: int  # kept for the backward pass or made in it, with the copies of the weights in 16 bits
    logits: int  # with the loss, and their gradients
    lasting: int  # weights, gradients and the state of the optimizer: what no smaller micro-batch can reduce
    peak: int
    micro_batch: int  # sequences that go through the network at a time

    def fits(self, memory: int) -> bool:
        """Whether a GPU with this memory, in bytes, is enough."""
        return self.peak <= USABLE_FRACTION * memory


def estimate_memory(
    config: TrainConfig, vocab_size: int, *, micro_batch: int | None = None, world_size: int = 1
) -> MemoryEstimate:
    """The memory of a training step on each of `world_size` GPUs.

    Without `micro_batch`, it is `batch_size` rows, or the share of a rank if that is less. With `dtype="auto"`,
    products are computed in 16 bits, as on every NVIDIA GPU.
    """
    rows = config.rows_per_step // world_size
    rows_at_a_time = min(micro_batch or config.batch_size, rows)
    step = _Step(config, vocab_size, rows_at_a_time, is_only_one=rows_at_a_time == rows)
    buckets = step.weights if world_size > 1 else 0  # DistributedDataParallel's, in which it averages gradients
    return MemoryEstimate(
        weights=step.weights,
        gradients=step.weights + step.tied_gradients + buckets,
        optimizer=step.optimizer_state + step.optimizer_update,
        activations=step.kept + step.in_block,
        logits=step.logits,
        lasting=2 * step.weights + step.optimizer_state + buckets,
        peak=step.weights + step.optimizer_state + buckets + max(step.moments().values()),
        micro_batch=rows_at_a_time,
    )


def fitting_micro_batch(config: TrainConfig, vocab_size: int, memory: int, *, world_size: int = 1) -> int:
    """The rows at a time with which a step fits into `memory` bytes; 0 if not even one row does.

    The largest of those that the trainer tries: `batch_size`, then half of it, and so on.
    """
    rows = min(config.batch_size, config.rows_per_step // world_size)
    while not estimate_memory(config, vocab_size, micro_batch=rows, world_size=world_size).fits(memory):
        if rows <= 1:
            return 0
        rows = ceil(rows / 2)
    return rows


@dataclass(frozen=True)
class _Step:
    """Bytes of the tensors of a step. B rows of T tokens at a time, C channels, H heads, V tokens in the vocabulary."""

    config: TrainConfig
    V: int
    B: int
    is_only_one: bool  # whether the step has no other micro-batch, whose gradients exist from the start

    @property
    def tokens(self) -> int:
        return self.B * self.config.block_size

    @property
    def is_half(self) -> bool:
        """Whether autocast computes products in 16 bits, from copies of the weights."""
        return self.config.dtype != "float32"

    @property
    def item(self) -> int:
        """Bytes of a number that a product gives or takes."""
        return 2 if self.is_half else 4

    @property
    def stream(self) -> int:
        """The residual stream at one place: float32, as the norms compute in it."""
        return 4 * self.config.n_embd * self.tokens

    @property
    def block_matrices(self) -> int:
        """The number of elements of the matrices of a block: 3 + 1 in attention, 4 + 4 in the MLP."""
        return 12 * self.config.n_embd**2

    @property
    def output_matrix(self) -> int:
        """The number of its elements."""
        return self.V * self.config.n_embd

    @property
    def ngram_buckets(self) -> list[int]:
        """The rows of each table of n-gram embeddings."""
        config = self.config
        return [min(self.V**n, config.ngram_rows) for n in range(2, config.ngram + 1)]

    @cached_property
    def weights(self) -> int:
        """All parameters, in float32."""
        config, C = self.config, self.config.n_embd
        norm = C * (1 + config.bias) if config.norm == "layer" else 0
        block = self.block_matrices + 2 * norm + (9 * C if config.bias else 0)
        return 4 * (config.n_layer * block + norm + self.output_matrix) + self.embeddings

    @property
    def embeddings(self) -> int:
        """The embeddings but a tied one: their gradients are the last of the backward pass."""
        config = self.config
        rows = (0 if config.tied else self.V) + (config.block_size if config.position == "learned" else 0)
        return 4 * config.n_embd * (rows + sum(self.ngram_buckets))

    @property
    def muon_weights(self) -> int:
        """The matrices of the blocks, if Muon trains them."""
        return 4 * self.config.n_layer * self.block_matrices if self.config.optimizer == "muon" else 0

    @property
    def optimizer_state(self) -> int:
        """AdamW has two tensors for each parameter, Muon has one."""
        return 2 * self.weights - self.muon_weights

    @property
    def optimizer_update(self) -> int:
        """Muon's momenta, and the matrices of one shape, stacked, in its iteration; AdamW's kernel needs nothing."""
        return self.muon_weights * (9 if self.is_half else 10) // 4

    @property
    def tied_gradients(self) -> int:
        """The gradients of both uses of a tied matrix and their sum, beside the gradient of earlier micro-batches."""
        return 4 * self.output_matrix * (2 if self.is_only_one else 3) if self.config.tied else 0

    @cached_property
    def block(self) -> int:
        """What a block keeps for its backward pass, without its input: see `model.block` and `model.attention`."""
        config, item = self.config, self.item
        elements = 1 + 3 + 1 + 1 + 4 + 4  # inputs of c_attn, q k v, output of attention, inputs of c_fc, act, c_proj
        if config.qk_norm or config.position == "rotary":
            elements += 2  # new q and k
            elements += 1 if self.is_half else 0  # flash attention's output has their order, and c_proj's input another
        masks = 2 if config.dropout else 0  # a byte each
        channels = elements * item + masks + 4  # the input of the second norm is of the residual stream
        statistics = 2 * self.norm_statistics + 4 * config.n_head * (5 if config.qk_norm else 1)
        return (channels * config.n_embd + statistics) * self.tokens + self.block_copies

    @property
    def block_copies(self) -> int:
        """The matrices of a block in 16 bits."""
        return 2 * self.block_matrices if self.is_half else 0

    @property
    def norm_statistics(self) -> int:
        """Mean and scale of a token, or the scale alone."""
        return 8 if self.config.norm == "layer" else 4

    @property
    def ids(self) -> int:
        """The ids of tokens and n-grams, and the mask of the embedding."""
        bytes_per_token = 8 * (2 + len(self.ngram_buckets)) + (self.config.n_embd if self.config.dropout else 0)
        return bytes_per_token * self.tokens

    @property
    def output_input(self) -> int:
        """The inputs of the last norm and of the output."""
        return self.stream + (self.norm_statistics + self.item * self.config.n_embd) * self.tokens

    @cached_property
    def kept(self) -> int:
        """What the forward pass keeps: the token ids, the input of each block, what is in it, the output's input."""
        in_blocks = 0 if self.config.checkpoint_activations else self.block
        return self.ids + self.config.n_layer * (self.stream + in_blocks) + self.output_input

    @property
    def in_block(self) -> int:
        """What the backward pass of a block makes: gradients, and with `checkpoint_activations` the block again."""
        config, channel = self.config, self.config.n_embd * self.tokens
        gradients = (4 + 4 * self.item) * channel  # of the residual stream, and of the input of the MLP's last matrix
        if config.checkpoint_activations and config.activation == "relu2" and self.is_half:
            gradients += 2 * channel  # more exists in the forward pass: relu2 keeps another tensor than its input
        masked = self.item * channel if self.is_half or config.dropout else 0  # the first of them, rounded or masked
        matrix = 4 * config.n_embd**2  # the elements of the last matrix, whose gradient is rounded in 16 bits
        gradients += max(masked + self.item * matrix, 4 * matrix)
        return gradients + (self.block if config.checkpoint_activations else 0)

    # the loss

    @property
    def is_loss_in_parts(self) -> bool:
        return self.config.checkpoint_activations and self.tokens * self.V > MAX_LOGITS

    @property
    def logits_at_a_time(self) -> int:
        """The number of logits in a part of the loss."""
        parts = ceil(self.tokens * self.V / MAX_LOGITS) if self.is_loss_in_parts else 1
        return ceil(self.tokens / parts) * self.V

    @property
    def logits(self) -> int:
        """The log-softmax, of 16 bits and of 32, and its gradient, in the backward pass of the loss.

        Also the output matrix in 16 bits, and its gradient so far if the loss has several parts.
        """
        matrix = self.output_matrix * ((2 if self.is_half else 0) + (4 if self.is_loss_in_parts else 0))
        return self.logits_at_a_time * (10 if self.is_half else 12) + matrix

    def moments(self) -> dict[str, int]:
        """The bytes at each moment that may have the most, beside the weights and the state of the optimizer."""
        recomputes, copy = self.config.checkpoint_activations, 2 * self.output_matrix if self.is_half else 0
        matrix = 4 * self.output_matrix
        earlier = 0 if self.is_only_one else self.weights  # the gradients of earlier micro-batches
        waiting = matrix if self.config.tied and earlier else 0  # a tied matrix's first gradient, for the second
        forward = earlier + self.kept + copy + 8 * self.logits_at_a_time
        if recomputes:  # autocast holds its copies of the weights until the end; else they are counted in `block`
            forward += self.config.n_layer * self.block_copies
        backward, output = earlier + self.kept + self.logits, earlier + self.kept + matrix + copy
        if self.is_loss_in_parts:  # which have their gradients added up
            backward, output = backward + self.stream, earlier + self.kept + 3 * matrix + self.stream
        in_last = max(earlier, matrix) + waiting + self.kept - self.output_input + self.in_block
        in_first = max(earlier, self.weights - self.embeddings - 4 * self.block_matrices) + waiting
        in_first += self.ids + self.stream + self.in_block + (0 if recomputes else self.block)
        return {
            "forward pass of the loss": forward,
            "backward pass of the loss": backward,
            "gradient of the output": output,
            "gradients of the last block": in_last,
            "gradients of the first block": in_first,
            "gradients of the embeddings": self.weights + self.tied_gradients + self.ids + 2 * self.stream,
            "update": self.weights + self.optimizer_update,
        }
