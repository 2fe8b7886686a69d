"""What a trained run is for: text from it, its loss on a whole text, the network itself.

How it was trained is the business of `pipeline`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.restore import load_weights, read_config, read_network
from nanogpt_lite.checkpoint.validation import validate_weights
from nanogpt_lite.config.options import LoadConfig, NetworkConfig, SampleConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.data import preparation, verification
from nanogpt_lite.device import devices, seeding
from nanogpt_lite.errors import UserError
from nanogpt_lite.generation import cpu_linear, text_stream
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.runs import run_folder
from nanogpt_lite.runs.run_folder import RunLike
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.trainer import evaluation

Loaded = tuple[GPT, Tokenizer]
"""A trained network and its tokenizer, as `load` returns them."""


@with_options(SampleConfig)
def sample(run: RunLike | Loaded = None, **options: Value) -> list[str]:
    """Draw `num_samples` texts, each with its prompt, from a trained run. Any option of `SampleConfig` is a keyword.

    `UserError` if there is no checkpoint, or if the prompt cannot be encoded.
    """
    return text_stream.join_texts(stream_batch(run, **options))


@with_options(SampleConfig)
def stream(run: RunLike | Loaded = None, **options: Value) -> Iterator[str]:
    """One text as it is made, piece by piece, its prompt first. The options of `sample`, but `num_samples`."""
    for piece in stream_batch(run, **{**options, "num_samples": 1}):
        yield piece[0]


@with_options(SampleConfig)
def stream_batch(run: RunLike | Loaded = None, **options: Value) -> Iterator[list[str]]:
    """`num_samples` texts at once as they are made: lists of what is new in each, the prompt first.

    `run` may be what `load` returned, for many calls after one loading.
    """
    settings = SampleConfig.from_dict(options)
    if isinstance(run, tuple):
        model, tokenizer = run
    else:
        model, tokenizer, _ = _load_model(run, settings)
        cpu_linear.optimize_linears(model, settings.num_samples)
    prompt = read_prompt(settings.start) if "start" in options else default_prompt(tokenizer)
    ids = tokenizer.encode(prompt, what="prompt")
    with devices.use_threads(devices.resolve_threads(settings.threads)):
        yield [prompt] * settings.num_samples
        yield from text_stream.stream_texts(model, tokenizer, ids, settings)


pieces = stream_batch  # its name in version 0.1


@with_options(LoadConfig)
def load(run: RunLike = None, **options: Value) -> Loaded:
    """The trained network of a run, ready to draw from, and its tokenizer. Any option of `LoadConfig` is a keyword.

    `dtype` is that of the weights, float32 for "auto". `UserError` if there is no such checkpoint, or if it is
    damaged.
    """
    model, tokenizer, _ = _load_model(run, LoadConfig.from_dict(options))
    return model, tokenizer


@with_options(LoadConfig)
def evaluate(run: RunLike = None, *, dataset: str | None = None, **options: Value) -> dict[str, Any]:
    """The loss of a checkpoint over both whole splits of its dataset (or of another one), each target once.

    A dict of step, val_loss and train_loss (nats per token), the number of tokens in each split, the dataset and
    the checkpoint. Any option of `LoadConfig` is a keyword.
    """
    settings = LoadConfig.from_dict(options)
    model, tokenizer, saved = _load_model(run, settings.replace({"dtype": "float32"}))
    device = model.lm_head.weight.device
    trained_on = read_config(saved, {})
    dtype = settings.dtype
    if dtype == "auto":
        same = saved.metadata["device"] == device.type
        dtype = trained_on.dtype if same else devices.resolve_dtype("auto", device, width=trained_on.n_embd)
    with ExitStack() as stack:
        if dataset is None:
            data = preparation.prepare(
                trained_on.dataset, tokenizer=tokenizer, sha256=saved.metadata["dataset_sha256"] or None
            )
        else:  # in a place of its own: data/NAME may be prepared with another tokenizer
            folder = stack.enter_context(TemporaryDirectory())
            data = preparation.prepare(dataset, tokenizer=tokenizer, out_dir=folder)
        verification.verify_checksum(data)
        result: dict[str, Any] = {"step": saved.metadata["step"]}
        stack.enter_context(devices.use_threads(devices.resolve_threads(settings.threads)))
        train_tokens, val_tokens = stack.enter_context(verification.open_verified(data))
        for split, tokens in (("val", val_tokens), ("train", train_tokens)):
            windows = evaluation.split_windows(tokens, trained_on.block_size)
            result[f"{split}_loss"] = evaluation.mean_loss(model, windows, device, dtype)
            result[f"{split}_tokens"] = len(tokens)
    return {**result, "dataset": dataset or trained_on.dataset, "checkpoint": str(saved.path)}


def _load_model(run: RunLike, settings: LoadConfig) -> tuple[GPT, Tokenizer, Checkpoint]:
    saved = checkpoint_file.read_checkpoint(run_folder.find_checkpoint(run, settings.checkpoint), prefix="model.")
    config, tokenizer = read_network(saved)
    validate_weights(config, tokenizer.vocab_size, saved)
    with seeding.seeded(torch.device("cpu")):  # its first weights are drawn, and at once replaced
        model = GPT(config.subset(NetworkConfig), tokenizer.vocab_size)
    load_weights(model, saved)
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    model.to(devices.resolve_device(settings.device), devices.DTYPES[dtype])
    if settings.int8:
        cpu_linear.quantize_int8(model)
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
