"""What a trained run is for: text from it, its loss on a whole text, the network itself.

How it was trained is the business of `pipeline`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nanogpt_lite import checkpoint as checkpoints
from nanogpt_lite import datasets, decoding, evaluation, integrity, runs, runtime, sampling
from nanogpt_lite.checkpoint import Checkpoint
from nanogpt_lite.config import LoadConfig, NetworkConfig, SampleConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.inspection import require_weights
from nanogpt_lite.model import GPT
from nanogpt_lite.options import Value
from nanogpt_lite.runs import RunLike
from nanogpt_lite.signatures import with_options
from nanogpt_lite.state import config_of, load_weights, network_of
from nanogpt_lite.tokenizer import Tokenizer

Loaded = tuple[GPT, Tokenizer]
"""A trained network and its tokenizer, as `load` returns them."""


@with_options(SampleConfig)
def sample(run: RunLike | Loaded = None, **options: Value) -> list[str]:
    """Draw `num_samples` texts, each with its prompt, from a trained run. Any option of `SampleConfig` is a keyword.

    `UserError` if there is no checkpoint, or if the prompt cannot be encoded.
    """
    return sampling.texts(pieces(run, **options))


@with_options(SampleConfig)
def stream(run: RunLike | Loaded = None, **options: Value) -> Iterator[str]:
    """One text as it is made, piece by piece, its prompt first. The options of `sample`, but `num_samples`."""
    for piece in pieces(run, **{**options, "num_samples": 1}):
        yield piece[0]


@with_options(SampleConfig)
def pieces(run: RunLike | Loaded = None, **options: Value) -> Iterator[list[str]]:
    """`num_samples` texts at once as they are made: lists of what is new in each, the prompt first.

    `run` may be what `load` returned, for many calls after one loading.
    """
    settings = SampleConfig.from_dict(options)
    if isinstance(run, tuple):
        model, tokenizer = run
    else:
        model, tokenizer, _ = _load(run, settings)
        decoding.prepare_for_decoding(model, settings.num_samples)
    prompt = read_prompt(settings.start) if "start" in options else default_prompt(tokenizer)
    ids = tokenizer.encode(prompt, what="prompt")
    with runtime.use_threads(runtime.resolve_threads(settings.threads)):
        yield [prompt] * settings.num_samples
        yield from sampling.stream_texts(model, tokenizer, ids, settings)


@with_options(LoadConfig)
def load(run: RunLike = None, **options: Value) -> Loaded:
    """The trained network of a run, ready to draw from, and its tokenizer. Any option of `LoadConfig` is a keyword.

    `dtype` is that of the weights, float32 for "auto". `UserError` if there is no such checkpoint, or if it is
    damaged.
    """
    model, tokenizer, _ = _load(run, LoadConfig.from_dict(options))
    return model, tokenizer


@with_options(LoadConfig)
def evaluate(run: RunLike = None, *, dataset: str | None = None, **options: Value) -> dict[str, Any]:
    """The loss of a checkpoint over both whole splits of its dataset (or of another one), each target once.

    A dict of step, val_loss and train_loss (nats per token), the number of tokens in each split, the dataset and
    the checkpoint. Any option of `LoadConfig` is a keyword.
    """
    settings = LoadConfig.from_dict(options)
    model, tokenizer, saved = _load(run, settings.replace({"dtype": "float32"}))
    device = model.lm_head.weight.device
    trained_on = config_of(saved, {})
    dtype = settings.dtype
    if dtype == "auto":
        same = saved.about["device"] == device.type
        dtype = trained_on.dtype if same else runtime.resolve_dtype("auto", device, width=trained_on.n_embd)
    with ExitStack() as stack:
        if dataset is None:
            data = datasets.prepare(
                trained_on.dataset, tokenizer=tokenizer, sha256=saved.about["dataset_sha256"] or None
            )
        else:  # in a place of its own: data/NAME may be prepared with another tokenizer
            folder = stack.enter_context(TemporaryDirectory())
            data = datasets.prepare(dataset, tokenizer=tokenizer, out_dir=folder)
        integrity.require_intact(data)
        result: dict[str, Any] = {"step": saved.about["step"]}
        stack.enter_context(runtime.use_threads(runtime.resolve_threads(settings.threads)))
        train_tokens, val_tokens = stack.enter_context(integrity.guarded(data))
        for split, tokens in (("val", val_tokens), ("train", train_tokens)):
            windows = evaluation.split_windows(tokens, trained_on.block_size)
            result[f"{split}_loss"] = evaluation.mean_loss(model, windows, device, dtype)
            result[f"{split}_tokens"] = len(tokens)
    return {**result, "dataset": dataset or trained_on.dataset, "checkpoint": str(saved.path)}


def _load(run: RunLike, settings: LoadConfig) -> tuple[GPT, Tokenizer, Checkpoint]:
    saved = checkpoints.load(runs.find_checkpoint(run, settings.checkpoint), prefix="model.")
    config, tokenizer = network_of(saved)
    require_weights(config, tokenizer.vocab_size, saved)
    with runtime.seeded(torch.device("cpu")):  # its first weights are drawn, and at once replaced
        model = GPT(config.part(NetworkConfig), tokenizer.vocab_size)
    load_weights(model, saved)
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    model.to(runtime.resolve_device(settings.device), runtime.DTYPES[dtype])
    if settings.int8:
        decoding.round_to_int8(model)
    return model.eval(), tokenizer, saved


def read_prompt(start: str) -> str:
    """The prompt that `start` is or names. `UserError` if its file cannot be read or is empty."""
    if not start.startswith("FILE:"):
        return start
    path = start.removeprefix("FILE:")
    try:
        prompt = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the prompt file {path!r} cannot be read ({error}); give one of UTF-8 text") from error
    if not prompt:
        raise UserError(f"the prompt file {path!r} is empty; write at least one character into it")
    return prompt


def default_prompt(tokenizer: Tokenizer) -> str:
    """A newline, as in nanoGPT; where the text had none, its first character in order."""
    try:
        tokenizer.encode("\n")
        return "\n"
    except UserError:
        return tokenizer.decode([0])
