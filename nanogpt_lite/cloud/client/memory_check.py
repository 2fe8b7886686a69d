"""Whether a training fits into the memory of the GPUs of a call, by the estimate of `trainer.memory_estimate`."""

from nanogpt_lite.cloud.client.dataset_texts import Text
from nanogpt_lite.cloud.client.rental import GPURequest, Rental
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.presets import GPT2_NETWORKS, GPT2_VOCAB_SIZE
from nanogpt_lite.device.gpus import GB
from nanogpt_lite.errors import UserError
from nanogpt_lite.trainer import memory_estimate
from nanogpt_lite.trainer.memory_estimate import USABLE_FRACTION

USUAL_VOCAB_SIZE = 256  # of a text of which nothing is known: that of bytes, and more than most have characters


def with_gpt2_network(config: TrainConfig, init_from: str, block_size: int) -> TrainConfig:
    """The config with the network of the weights of GPT-2; a `block_size` below theirs crops their context."""
    network = GPT2_NETWORKS[init_from]
    return config.replace({**network, "block_size": min(block_size or 1024, 1024), "tokenizer": "gpt2"})


def guess_vocab_size(tokenizer: str, text: Text) -> int:
    """The number of tokens of a text that is to be prepared, as far as that is known before."""
    if tokenizer.startswith("bpe-"):
        return int(tokenizer.removeprefix("bpe-"))
    if tokenizer == "gpt2":
        return GPT2_VOCAB_SIZE
    return len(text.characters) if text.characters else USUAL_VOCAB_SIZE


def check_memory(config: TrainConfig, vocab_size: int, rental: Rental) -> tuple[str, ...]:
    """A warning for each GPU on which a step cannot take all of `batch_size` sequences at a time.

    `UserError` if a GPU has too little memory even for the weights, their gradients and the state of the optimizer.
    """
    if config.device == "cpu":
        return ()
    notes = (_check_gpu(config, vocab_size, gpu) for gpu in rental.gpus)
    return tuple(note for note in notes if note)


def _check_gpu(config: TrainConfig, vocab_size: int, gpu: GPURequest) -> str:
    """The warning for one of the GPUs that a call may get; empty if all fits."""
    needed = memory_estimate.estimate_memory(config, vocab_size, world_size=gpu.count)
    if needed.lasting > gpu.memory:
        raise UserError(
            f"the weights, their gradients and the state of the optimizer take {_gigabytes(needed.lasting)} on each "
            f"GPU, and one {gpu.type} has {_gigabytes(gpu.memory)}; give a larger --gpu, or a smaller network"
        )
    if needed.fits(gpu.memory):
        return ""
    rows = memory_estimate.fitting_micro_batch(config, vocab_size, gpu.memory, world_size=gpu.count)
    consequence = f"it will take fewer: {rows}" if rows else "even one does not fit"
    return (
        f"warning: by an estimate, a step with {needed.micro_batch} sequences at a time takes "
        f"{_gigabytes(needed.peak)}, and of the {_gigabytes(gpu.memory)} of one {gpu.type} it can use "
        f"{USABLE_FRACTION:.0%}; {consequence}. {_remedy(config, vocab_size, gpu)}"
    )


def _remedy(config: TrainConfig, vocab_size: int, gpu: GPURequest) -> str:
    smaller = "a smaller --batch-size" if config.batch_size > 1 else "a smaller --block-size"
    if config.checkpoint_activations:
        return f"Give {smaller}, or a larger --gpu"
    less = config.replace({"checkpoint_activations": True})
    peak = memory_estimate.estimate_memory(less, vocab_size, world_size=gpu.count).peak
    return f"Give --checkpoint-activations True, with which it takes {_gigabytes(peak)}, {smaller}, or a larger --gpu"


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3g} GB"
