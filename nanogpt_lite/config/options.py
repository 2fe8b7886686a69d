"""All options, as the fields of config classes, in the order of the pipeline. Names are nanoGPT's.

What an option does is in the module that reads it. How an option is declared and checked is in `schema`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nanogpt_lite.config.schema import (
    NOT_EMPTY,
    Options,
    Rule,
    bits_option,
    bounds,
    call_option,
    count,
    network_option,
    one_of,
    training_option,
)
from nanogpt_lite.errors import UserError

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")  # of this machine, which no other one can reach by them

MAX_CONTEXT_ELEMENTS = 2**27  # block_size * n_embd: for example 32,768 tokens with 4,096 channels
# Logits in one part of the loss with `checkpoint_activations`: few, but enough for fast matrix products. That is 1335
# tokens of GPT-2's vocabulary; with the log-softmax and its gradient, 0.8 GB.
MAX_LOGITS = 2**26
TOKENIZERS = ("char", "byte", "gpt2")  # and bpe-SIZE
OPTIMIZERS = ("adamw", "muon")


def is_tokenizer_name(name: str) -> bool:
    """Whether this is the name of a tokenizer: one of `TOKENIZERS`, or bpe-SIZE."""
    return name in TOKENIZERS or is_bpe_name(name)


def is_remote_address(address: str) -> bool:
    """Whether a text is empty or the address of a server, to which a key is sent only encrypted or on this machine."""
    try:
        parts = urlsplit(address)
        is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and address.isprintable()
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK_NAMES)
        return not address or bool(parts.hostname and parts.port != 0 and is_plain and is_safe)
    except ValueError:  # of a port that is no number
        return False


def is_bpe_name(tokenizer: str) -> bool:
    """Whether this is the name of a byte-pair tokenizer: gpt2, or bpe-SIZE with a size from 256 to 999999."""
    match = re.fullmatch("bpe-([1-9][0-9]{2,5})", tokenizer)
    return tokenizer == "gpt2" or (match is not None and int(match[1]) >= 256)


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Options):
    """The device, the number format, and the seed."""

    device: str = call_option("auto", "auto: a GPU if there is one, else the CPU; or cpu, cuda, cuda:1, mps", NOT_EMPTY)
    dtype: str = bits_option(
        "auto",
        "number format of matrix products: auto, float32, bfloat16, or float16 (with loss scaling)",
        one_of("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = bits_option(
        0,
        "CPU threads; 0: all that this process may use, at most 16",
        bounds(ge=0, le=1024),
        unit="threads",
    )
    tf32: bool = bits_option(
        True, "on NVIDIA GPUs, for float32: faster matrix products of less precision, as in nanoGPT", absent=False
    )
    seed: int = bits_option(1337, "seed of all random numbers", bounds(ge=0, le=2**63 - 1))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """The text, and how it is split into tokens."""

    dataset: str = training_option(
        "shakespeare_char", "shakespeare_char, python_docs, or a text: a file, folder, glob or URL", NOT_EMPTY
    )
    tokenizer: str = network_option(
        "auto",
        "char: one token per character; byte: one per UTF-8 byte; bpe-4096: byte-pair encoding with 4096 tokens, "
        "trained on the text; gpt2: the byte-pair encoding of GPT-2; auto: char, but of a prepared folder its own",
        Rule(
            lambda name: name == "auto" or is_tokenizer_name(name),
            f"one of auto, {', '.join(TOKENIZERS)}, or bpe- and a size from 256 to 999999",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Options):
    """The architecture of the network. A run can only be resumed with the architecture that it has."""

    block_size: int = network_option(256, "context length", bounds(ge=1, le=2**20), unit="tokens")
    n_layer: int = network_option(6, "number of transformer blocks", bounds(ge=1, le=1000))
    n_head: int = network_option(6, "attention heads per block", bounds(ge=1, le=1024))
    n_embd: int = network_option(
        384, "width of the network: channels per token, a multiple of n_head", bounds(ge=1, le=2**16)
    )
    bias: bool = network_option(False, "biases in Linear and LayerNorm, as in GPT-2")
    dropout: float = training_option(0.2, "dropout probability in training", bounds(ge=0, lt=1))
    fast_dropout: bool = bits_option(
        True, "on a CPU, draw the masks of dropout three times as fast as PyTorch does", absent=False, part_of="dropout"
    )
    checkpoint_activations: bool = bits_option(
        False,
        "keep less for the backward pass, which computes each block again, and the loss of many tokens in parts: less "
        "memory, slower steps",
        absent=False,
    )
    position: str = network_option(
        "learned", "position encoding: learned, or rotary (RoPE)", one_of("learned", "rotary")
    )
    rope_theta: float = network_option(
        0.0,
        "base of the rotation angles with position=rotary; 0: ten times block_size, which is then stored",
        Rule(lambda theta: theta == 0 or 1 <= theta <= 1e12, "0, or from 1 to 10^12"),
        absent=0.0,
        part_of="position",
    )
    norm: str = network_option(
        "layer", "normalisation: layer (LayerNorm), or rms (RMSNorm without learned gains)", one_of("layer", "rms")
    )
    qk_norm: bool = network_option(False, "apply LayerNorm to queries and keys")
    activation: str = network_option(
        "gelu",
        "activation function of the MLP: gelu, gelu_tanh (the tanh formula, as in GPT-2), or relu2 (ReLU squared)",
        one_of("gelu", "gelu_tanh", "relu2"),
    )
    tied: bool = network_option(True, "share the weights of the token embedding and the output layer")
    zero_init: bool = training_option(
        False, "start with zeros in the last layer of each residual branch, and in the output layer if it is not tied"
    )
    ngram: int = network_option(1, "also embed the last 2..N tokens as n-grams; 1: off", bounds(ge=1, le=16))
    ngram_rows: int = network_option(
        16384, "hash buckets per n-gram length", bounds(ge=1, le=2**31 - 1), part_of="ngram"
    )
    ngram_dropout: float = training_option(
        0.0,
        "probability of dropping the n-gram embeddings of a token in training",
        bounds(ge=0, lt=1),
        part_of="ngram",
    )
    ngram_expert: int = network_option(
        0,
        "mix the network's probabilities with those of counted n-grams of up to N tokens, in evaluation and sampling; "
        "0: off",
        bounds(ge=0, le=16),
        absent=0,
    )
    ngram_expert_weight: float = network_option(
        0.0,
        "weight of the counted n-grams in the mixture; 0: chosen on at most a fiftieth of the train split, which is "
        "not trained on",
        bounds(ge=0, lt=1),
        absent=0.0,
        part_of="ngram_expert",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            step = self.n_head * (2 if self.position == "rotary" else 1)  # rotary: heads of an even size
            raise UserError(
                f"`n_embd={self.n_embd}` is not a multiple of `n_head={self.n_head}`, and each head has an equal part "
                f"of the width; try `n_embd={-(-self.n_embd // step) * step}`"
            )
        if self.block_size * self.n_embd > MAX_CONTEXT_ELEMENTS:
            raise UserError(
                f"`block_size={self.block_size}` and `n_embd={self.n_embd}` are too large together: the activations of "
                f"one context would not fit into memory; try `block_size={MAX_CONTEXT_ELEMENTS // self.n_embd}`"
            )
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise UserError(
                f"`n_embd={self.n_embd}` and `n_head={self.n_head}` give heads of an odd size, and rotary position "
                f"encoding rotates pairs of channels; try `n_embd={2 * self.n_embd}`"
            )
        if self.position == "rotary" and not self.rope_theta:
            # Over one context, the slowest pair of channels rotates by at least 0.1 radian. The paper's base is 10000.
            object.__setattr__(self, "rope_theta", 10.0 * self.block_size)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, NetworkConfig, RuntimeConfig):
    """All options of a training run."""

    out_dir: str = call_option("", "the run's folder; empty: the next free runs/DATASET-N")
    init_from: str = training_option(
        "scratch",
        "scratch; resume: continue the run in out_dir; runs/OTHER: start from the weights of that run; gpt2, "
        "gpt2-medium, gpt2-large, gpt2-xl, or a Hugging Face folder: start from the weights of GPT-2",
        NOT_EMPTY,
    )
    max_iters: int = training_option(5000, "optimizer steps", count(ge=1), unit="steps")
    batch_size: int = bits_option(64, "sequences per micro-batch", bounds(ge=1, le=2**20), unit="sequences")
    batch_sampling: str = training_option(
        "random",
        "where in the train split the sequences begin: random, as in nanoGPT, or spread, so that all steps together "
        "see each token about equally often",
        one_of("random", "spread"),
        absent="random",
    )
    gradient_accumulation_steps: int = bits_option(1, "micro-batches per optimizer step", bounds(ge=1, le=2**20))
    learning_rate: float = training_option(1e-3, "peak learning rate", bounds(gt=0, le=1000))
    min_lr: float = training_option(1e-4, "learning rate at the end of the decay", bounds(ge=0))
    warmup_iters: int = training_option(
        100, "length of the linear warm-up of the learning rate", count(ge=0), unit="steps"
    )
    decay_lr: bool = training_option(True, "warm-up, then decay of the learning rate; False: constant learning rate")
    lr_decay_iters: int = training_option(0, "step at which the decay ends; 0: max_iters", count(ge=0), unit="steps")
    cooldown: float = training_option(
        0.0,
        "fraction of the steps, at the end, over which the learning rate falls linearly; 0: cosine decay",
        bounds(ge=0, le=1),
    )
    optimizer: str = training_option(
        "adamw", "adamw; muon: Muon for the weight matrices of the blocks, AdamW for the rest", one_of(*OPTIMIZERS)
    )
    muon_learning_rate: float = training_option(
        0.02,
        "peak learning rate of Muon; its schedule is that of learning_rate",
        bounds(gt=0, le=1000),
        part_of="optimizer",
    )
    muon_momentum: float = training_option(0.95, "momentum of Muon", bounds(ge=0, lt=1), part_of="optimizer")
    weight_decay: float = training_option(0.1, "weight decay, of matrices and embeddings only", bounds(ge=0, le=1000))
    beta1: float = training_option(0.9, "beta1 of AdamW: decay of the running mean of the gradient", bounds(ge=0, lt=1))
    beta2: float = training_option(
        0.99, "beta2 of AdamW: decay of the running mean of the squared gradient", bounds(ge=0, lt=1)
    )
    grad_clip: float = training_option(1.0, "largest norm of the gradient; 0: no clipping", bounds(ge=0))
    eval_interval: int = training_option(
        250, "steps between two evaluations; each is followed by a checkpoint", count(ge=1), unit="steps"
    )
    eval_iters: int = training_option(
        0,
        "0: loss on the val split, see eval_tokens; N: nanoGPT's estimate from N random batches",
        count(ge=0),
        unit="batches",
    )
    eval_tokens: int = training_option(
        100_000,
        "of a val split more than twice as long, evaluate only this many evenly spread tokens while training; 0: the "
        "whole split",
        count(ge=0),
        unit="tokens",
        absent=0,
    )
    log_interval: int = training_option(10, "steps between two reports of the train loss", count(ge=1), unit="steps")
    sample_interval: int = training_option(
        0, "steps between two samples that are shown in training; 0: none", count(ge=0), unit="steps"
    )
    keep_every: int = training_option(
        0, "steps between two numbered checkpoints (step_001000), which are kept; 0: none", count(ge=0), unit="steps"
    )
    keep_early: float = call_option(
        0.0,
        "keep the weights of the network, in float16, after step 5 and some later steps, in equal ratios of about 2 or "
        "more, and after the last one if there is an n-gram expert, together at most this much; 0: none",
        bounds(ge=0, le=1e6),
        unit="megabytes",
    )
    patience: int = training_option(
        0, "stop after this many evaluations without a new best val loss; 0: never", count(ge=0), unit="evaluations"
    )
    target_loss: float = training_option(0.0, "stop at this val loss; 0: never", bounds(ge=0), unit="nats per token")
    max_seconds: float = call_option(0.0, "stop this call after this time; 0: never", bounds(ge=0), unit="seconds")
    minutes: float = call_option(
        0.0,
        "train a new run for about this time: 20 steps are timed, and decide max_iters; 0: max_iters is not timed",
        bounds(ge=0, le=525_600),
        unit="minutes",
    )
    compile: bool = bits_option(False, "use torch.compile: a slow start, then faster steps on a GPU")
    compile_whole: bool = bits_option(
        False,
        "use torch.compile with one graph for the whole network instead of one that serves each block: several times "
        "as many kernels to compile, then steps with fewer kernels and less memory traffic",
        absent=False,
    )
    trace: str = call_option("", "folder for a profiler trace of a few steps, to open in ui.perfetto.dev; empty: none")
    tensorboard: bool = call_option(False, "write TensorBoard events to out_dir")
    wandb_log: bool = call_option(False, "log the run to Weights & Biases")
    wandb_project: str = call_option("nanogpt-lite", "project in Weights & Biases", NOT_EMPTY)
    wandb_run_name: str = call_option("", "name of the run in Weights & Biases; empty: the name of out_dir")

    @property
    def rows_per_step(self) -> int:
        """The number of sequences in one optimizer step, on all ranks together."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """The number of tokens in one optimizer step, on all ranks together."""
        return self.rows_per_step * self.block_size

    def require_divisible_by(self, world_size: int) -> None:
        """`UserError` if the sequences of a step cannot be divided equally among `world_size` ranks."""
        if self.rows_per_step % world_size:
            raise UserError(
                f"a step of {self.rows_per_step} rows (batch_size * gradient_accumulation_steps) cannot be shared "
                f"equally by {world_size} ranks; start a number of ranks that divides it, or give "
                f"`batch_size={-(-self.rows_per_step // world_size) * world_size}`"
            )

    def require_minutes_usable(self, given: Collection[str], world_size: int) -> None:
        """`UserError` if the explicit options, whose names are `given`, or several ranks forbid `minutes`."""
        if self.minutes and "max_iters" in given:
            raise UserError("`minutes` decides how many steps are made, and so does `max_iters`; give one of them")
        if self.minutes and world_size > 1:
            raise UserError(
                f"`minutes` times the steps of a single process, and there are {world_size} ranks; give `max_iters` or "
                "`max_seconds`"
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise UserError(
                f"`min_lr={self.min_lr}` is above `learning_rate={self.learning_rate}`, so the rate would rise; "
                f"give `min_lr` too (usually a tenth: {self.learning_rate / 10:g}), or `decay_lr=False`"
            )


@dataclass(frozen=True, kw_only=True)
class LoadConfig(RuntimeConfig):
    """Which checkpoint of a run to load, and how."""

    checkpoint: str = call_option("best", "best, last, or the name of a numbered one (step_001000)", NOT_EMPTY)
    int8: bool = call_option(
        False, "weight matrices of the blocks in 8 bits: faster sampling on a CPU, almost the same network"
    )


@dataclass(frozen=True, kw_only=True)
class FilterConfig(LoadConfig):
    """How the probabilities of a network are changed before a token is drawn from them."""

    temperature: float = call_option(
        0.8, "below 1: less random; above 1: more random; 0: always the most likely token", bounds(ge=0)
    )
    top_k: int = call_option(200, "sample from the k most likely tokens; 0: from all", count(ge=0), unit="tokens")
    top_p: float = call_option(
        1.0, "sample from the most likely tokens whose probabilities add up to this; 1: from all", bounds(ge=0, le=1)
    )
    min_p: float = call_option(
        0.0, "leave out tokens less likely than this fraction of the most likely one; 0: none", bounds(ge=0, le=1)
    )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(FilterConfig):
    """How to generate text with a trained network."""

    start: str = call_option("\n", "the prompt; FILE:prompt.txt reads it from a file", NOT_EMPTY)
    num_samples: int = call_option(1, "number of samples", count(ge=1), unit="samples")
    max_new_tokens: int = call_option(500, "length of a sample", count(ge=1), unit="tokens")
    stop: str = call_option("", "end a sample before this text; empty: never")


@dataclass(frozen=True, kw_only=True)
class InspectConfig(FilterConfig):
    """What to show of a network that reads a text."""

    top: int = call_option(10, "how many of the likeliest next tokens to give", bounds(ge=1, le=1000), unit="tokens")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(LoadConfig):
    """How to answer requests for text by HTTP."""

    remote: str = call_option(
        "",
        "address of another such server, to which all requests are passed on; such as https://NAME.modal.run",
        Rule(is_remote_address, "an address such as https://a.example, or of this machine http://localhost:8000"),
    )
    host: str = call_option(
        "127.0.0.1", "address to listen on; another one than this machine's own needs a token", NOT_EMPTY
    )
    port: int = call_option(8000, "port to listen on; 0: any free one", bounds(ge=0, le=65535))
    token: str = call_option("", "secret that each request must bring; FILE:token.txt reads it from a file")
    chat_template: str = call_option(
        "",
        "how one message of a chat is written, such as {role}: {content}\\n with \\n for a line break; empty: no chat",
        Rule(lambda text: not text or "{content}" in text, "empty, or a text with {content} in it"),
    )
    max_waiting: int = call_option(
        100, "requests that may wait for the one that is computed; further ones are refused", bounds(ge=1, le=10_000)
    )
    training: bool = call_option(True, "let the page start, stop and continue trainings on this machine")
    answer_seconds: float = call_option(
        0.0,
        "longest time of an answer, from its request on; its texts end then; 0: no limit",
        bounds(ge=0),
        unit="seconds",
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainConfig, SampleConfig):
    """The options of the whole pipeline: prepare, train, sample."""


def read_prompt(start: str, *, what: str = "prompt") -> str:
    """A prompt, or the text of the file that it names: what the option `start` gives.

    `what`: its name in an error.

    `UserError` if the file cannot be read or is empty.
    """
    if not start.startswith("FILE:"):
        return start
    path = start.removeprefix("FILE:")
    try:
        prompt = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} file {path!r} cannot be read ({error}); give a file of UTF-8 text") from error
    if not prompt:
        raise UserError(f"the {what} file {path!r} is empty; write at least one character into it")
    return prompt
