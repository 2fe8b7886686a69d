"""Every option, once: its name, type, default, unit, rule and help.

From these fields come the command line (`cli`), the keyword arguments in Python (`pipeline`), the config
stored in a checkpoint, and every check of a value. Names are nanoGPT's. Standard library only, so that
`--help` answers at once. What an option does is the business of the module that reads it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_lite.config.schema import (
    NOT_EMPTY,
    Options,
    Rule,
    above_to,
    at_least,
    count_from,
    from_below,
    from_to,
    one_of,
    option,
)
from nanogpt_lite.errors import UserError

MAX_CONTEXT_ELEMENTS = 2**27  # channels of all its tokens: 32 Ki tokens with 4096 channels


def is_bpe_name(tokenizer: str) -> bool:
    """Whether this is the name of a tokenizer of byte pairs: gpt2, or bpe-SIZE."""
    found = re.fullmatch("bpe-([1-9][0-9]{2,5})", tokenizer)
    return tokenizer == "gpt2" or (found is not None and int(found[1]) >= 256)


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Options):
    """Where and in which arithmetic to compute."""

    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps", NOT_EMPTY, stored=False)
    dtype: str = option(
        "auto",
        "number format of the matrix products: auto, float32, bfloat16, or float16 (with a loss scaler)",
        one_of("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = option(
        0,
        "CPU threads; 0: all that this process may use, at most 16",
        from_to(0, 1024),
        unit="threads",
    )
    seed: int = option(1337, "source of all randomness", from_to(0, 2**63 - 1))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """Which text, and how it is cut into tokens."""

    dataset: str = option("shakespeare_char", "shakespeare_char, python_docs, a file, folder, glob or URL", NOT_EMPTY)
    tokenizer: str = option(
        "auto",
        "char: one token per character; byte: per UTF-8 byte; bpe-4096: so many, made of what is frequent in the text; "
        "gpt2: GPT-2's; auto: as already prepared, else char",
        Rule(
            lambda name: name in ("auto", "char", "byte") or is_bpe_name(name),
            "one of auto, char, byte, gpt2, or bpe- and a size from 256 to 999999",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Options):
    """The shape of the network. A checkpoint can only go on with the shape that it has."""

    block_size: int = option(256, "context length", from_to(1, 2**20), unit="tokens")
    n_layer: int = option(6, "transformer blocks", from_to(1, 1000))
    n_head: int = option(6, "attention heads per block", from_to(1, 1024))
    n_embd: int = option(384, "width: channels per token, a multiple of n_head", from_to(1, 2**16))
    bias: bool = option(False, "biases in Linear and LayerNorm, as GPT-2 has them")
    dropout: float = option(0.2, "probability of dropping an activation in training", from_below(0, 1))
    position: str = option("learned", "how a token knows its place: learned, or rotary", one_of("learned", "rotary"))
    norm: str = option("layer", "normalisation: layer, or rms (without gains)", one_of("layer", "rms"))
    qk_norm: bool = option(False, "LayerNorm of queries and keys")
    activation: str = option(
        "gelu",
        "in the MLP: gelu, gelu_tanh (GPT-2's formula for it), or relu2, the square of ReLU",
        one_of("gelu", "gelu_tanh", "relu2"),
    )
    tied: bool = option(True, "one matrix for the token embedding and the output")
    zero_init: bool = option(False, "begin with the ends of the residual branches, and an untied output, at zero")
    ngram: int = option(1, "embed also the last 2, 3 and so on to so many tokens together; 1: none", from_to(1, 16))
    ngram_rows: int = option(16384, "vectors for the n-grams of one length, which share them", from_to(1, 2**31 - 1))
    ngram_dropout: float = option(0.0, "probability of training on a token without its n-grams", from_below(0, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: each head gets an equal part "
                f"of the width; try n_embd={-(-self.n_embd // self.n_head) * self.n_head}"
            )
        if self.block_size * self.n_embd > MAX_CONTEXT_ELEMENTS:
            raise UserError(
                f"block_size={self.block_size} and n_embd={self.n_embd} are too large together: what is kept of one "
                f"context would not fit into memory; try block_size={MAX_CONTEXT_ELEMENTS // self.n_embd}"
            )
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise UserError(
                f"n_embd={self.n_embd} and n_head={self.n_head} give heads of an odd size, and rotary positions turn "
                f"pairs; try n_embd={2 * self.n_embd}"
            )


# What a checkpoint fixes: with another value its tensors would not fit.
SHAPE_FIELDS = (
    "block_size",
    "n_layer",
    "n_head",
    "n_embd",
    "bias",
    "position",
    "norm",
    "qk_norm",
    "activation",
    "tied",
    "ngram",
    "ngram_rows",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, NetworkConfig, RuntimeConfig):
    """Everything that decides a training run."""

    out_dir: str = option("", "the run's folder; empty: the next free runs/DATASET-N", stored=False)
    init_from: str = option(
        "scratch",
        "scratch; resume: go on in out_dir; runs/OTHER: start from its weights; gpt2, gpt2-medium, gpt2-large, "
        "gpt2-xl, or a folder of Hugging Face's: from GPT-2's",
        NOT_EMPTY,
    )
    max_iters: int = option(5000, "optimizer steps", count_from(1), unit="steps")
    batch_size: int = option(64, "sequences per micro-batch", from_to(1, 2**20), unit="sequences")
    gradient_accumulation_steps: int = option(1, "micro-batches per step", from_to(1, 2**20))
    learning_rate: float = option(1e-3, "peak learning rate", above_to(0, 1000))
    min_lr: float = option(1e-4, "learning rate at the end of the decay", at_least(0))
    warmup_iters: int = option(100, "linear warm-up", count_from(0), unit="steps")
    decay_lr: bool = option(True, "warm up, then decay by a cosine; False: constant")
    lr_decay_iters: int = option(0, "end of the decay; 0: max_iters", count_from(0), unit="steps")
    cooldown: float = option(
        0.0, "decay in a straight line over this last share of the steps; 0: by a cosine", from_to(0, 1)
    )
    optimizer: str = option("adamw", "adamw; muon: Muon for the blocks' matrices", one_of("adamw", "muon"))
    muon_learning_rate: float = option(0.02, "Muon's peak; it rises and falls as learning_rate does", above_to(0, 1000))
    muon_momentum: float = option(0.95, "Muon's decay of the mean gradient", from_below(0, 1))
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices only", from_to(0, 1000))
    beta1: float = option(0.9, "AdamW decay of the mean gradient", from_below(0, 1))
    beta2: float = option(0.99, "AdamW decay of the mean squared gradient", from_below(0, 1))
    grad_clip: float = option(1.0, "largest norm of the whole gradient; 0: no clipping", at_least(0))
    eval_interval: int = option(250, "evaluate and save every so many", count_from(1), unit="steps")
    eval_iters: int = option(
        0,
        "0: loss on the whole val split; N: nanoGPT's estimate from N random batches",
        count_from(0),
        unit="batches",
    )
    log_interval: int = option(10, "report the train loss every so many", count_from(1), unit="steps")
    sample_interval: int = option(0, "show a sample every so many; 0: never", count_from(0), unit="steps")
    keep_every: int = option(0, "keep a numbered checkpoint every so many; 0: none", count_from(0), unit="steps")
    patience: int = option(
        0, "stop after so many evaluations without a new best; 0: never", count_from(0), unit="evaluations"
    )
    target_loss: float = option(0.0, "stop at this val loss; 0: never", at_least(0), unit="nats per token")
    max_seconds: float = option(
        0.0, "stop this call after so long; 0: never", at_least(0), unit="seconds", stored=False
    )
    compile: bool = option(False, "torch.compile the network: a slow start, then faster steps on a GPU")
    trace: str = option("", "write what a few steps do, for ui.perfetto.dev, into this folder", stored=False)
    tensorboard: bool = option(False, "write events for TensorBoard into out_dir", stored=False)
    wandb_log: bool = option(False, "track the run with Weights & Biases", stored=False)
    wandb_project: str = option("nanogpt-lite", "its project there", NOT_EMPTY, stored=False)
    wandb_run_name: str = option("", "its name there; empty: that of out_dir", stored=False)

    @property
    def rows_per_step(self) -> int:
        """How many sequences one optimizer step sees, on however many ranks."""
        return self.batch_size * self.gradient_accumulation_steps

    def require_equal_shares(self, ranks: int) -> None:
        """`UserError` if that many ranks cannot share the sequences of a step equally."""
        if self.rows_per_step % ranks:
            raise UserError(
                f"a step of {self.rows_per_step} rows (batch_size * gradient_accumulation_steps) cannot be shared "
                f"equally by {ranks} ranks; start a number of ranks that divides it, or give --batch_size "
                f"{-(-self.rows_per_step // ranks) * ranks}"
            )

    @property
    def tokens_per_step(self) -> int:
        """How many tokens one optimizer step sees."""
        return self.rows_per_step * self.block_size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise UserError(
                f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}, so the rate would rise; "
                f"give min_lr too (usually a tenth: {self.learning_rate / 10:g}), or decay_lr=False"
            )


@dataclass(frozen=True, kw_only=True)
class LoadConfig(RuntimeConfig):
    """Which of a run's checkpoints to use."""

    checkpoint: str = option("best", "best, last, or the name of a kept one (step_001000)", NOT_EMPTY)
    int8: bool = option(False, "the blocks' matrices in 8 bits: draws faster on a CPU, almost the same network")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(LoadConfig):
    """How to draw text from a trained network."""

    start: str = option("\n", "the prompt, or FILE:prompt.txt", NOT_EMPTY)
    num_samples: int = option(1, "samples to draw", count_from(1), unit="samples")
    max_new_tokens: int = option(500, "length of a sample", count_from(1), unit="tokens")
    temperature: float = option(0.8, "below 1 less random, above 1 more; 0: always the likeliest token", at_least(0))
    top_k: int = option(200, "draw from the k likeliest tokens; 0: from all", count_from(0), unit="tokens")
    top_p: float = option(1.0, "draw from the likeliest tokens that sum to this probability", from_to(0, 1))
    min_p: float = option(0.0, "drop tokens less likely than this share of the likeliest one", from_to(0, 1))
    stop: str = option("", "end a sample before this text; empty: never")


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainConfig, SampleConfig):
    """The whole road, prepare, train, sample: all options."""


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The options in a JSON file: a flat object, or a run's config.json (which has them under "config").

    `UserError` if it cannot be read or is no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"config file {path} cannot be read ({error}); give a JSON object of options, "
            "for instance a run's config.json"
        ) from error
    options = content.get("config", content) if isinstance(content, dict) else content
    if not isinstance(options, dict):
        raise UserError(f"config file {path} holds no JSON object; give one of options, like a run's config.json")
    return options
