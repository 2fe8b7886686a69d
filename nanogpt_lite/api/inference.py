"""What a trained run is used for: generated text, its loss over a whole dataset, the network itself.

How a run is trained is in `api.pipeline`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypedDict, Unpack
from weakref import WeakKeyDictionary

import torch

from nanogpt_lite.api.result import Comparison, compare
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.restore import load_weights, read_config
from nanogpt_lite.config.keyword_types import LoadOptions, SampleOptions, StreamOptions
from nanogpt_lite.config.options import LoadConfig, NetworkConfig, SampleConfig, TrainConfig, read_prompt
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.data import preparation, verification
from nanogpt_lite.data.batching import Tokens
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices, fast_paths, generators, memory, seeding
from nanogpt_lite.errors import UserError
from nanogpt_lite.generation import cpu_linear, text_stream
from nanogpt_lite.generation.cuda_graph import Recordings
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.shallow_copy import copy_modules
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import Run, RunLike
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.trainer import evaluation

Loaded = tuple[GPT, Tokenizer]
"""A trained network and its tokenizer, as `load` returns them."""

# Of networks that were loaded once for many calls.
_recordings: WeakKeyDictionary[GPT, Recordings] = WeakKeyDictionary()


class _SplitLosses(NamedTuple):
    """The evaluation of the train and the val split of a dataset."""

    losses: list[float]  # nats per token; on the train split, which an n-gram expert has counted, of the network alone
    sizes: list[int]  # tokens
    network_val_loss: float | None  # without the n-gram expert; None if there is none
    comparison: Comparison  # of the val loss
    dataset_sha256: str


class EvalResult(TypedDict):
    """What `evaluate` returns. Losses are in nats per token."""

    step: int  # of the checkpoint
    val_loss: float
    network_val_loss: float | None  # of the network alone, if it has an n-gram expert
    val_tokens: int  # in the split
    train_loss: float  # of the network alone: an n-gram expert has counted these tokens
    train_tokens: int
    perplexity: float  # per token of the val split, like the next three
    nats_per_character: float
    bits_per_character: float
    bits_per_byte: float  # of UTF-8
    unigram_loss: float  # of n-gram models that count the train split, on the val split
    bigram_loss: float
    five_gram_loss: float
    verdict: str  # one sentence about the loss; empty for another text or checkpoint than the best, and without metrics
    dataset: str
    checkpoint: str  # its path


@with_options(SampleConfig)
def sample(run: RunLike | Loaded = None, **options: Unpack[SampleOptions]) -> list[str]:
    """Generate `num_samples` texts, each with its prompt, from a trained run.

    Any option of `SampleConfig` is a keyword argument. `UserError` if there is no checkpoint, or if the prompt cannot
    be encoded.
    """
    return text_stream.join_texts(stream_batch(run, **options))


@with_options(SampleConfig, without=("num_samples",))
def stream(run: RunLike | Loaded = None, **options: Unpack[StreamOptions]) -> Iterator[str]:
    """One text in chunks as it is generated, the prompt first. The options of `sample` without `num_samples`."""
    one_sample: SampleOptions = {**options, "num_samples": 1}
    for chunks in stream_batch(run, **one_sample):
        yield chunks[0]


@with_options(SampleConfig)
def stream_batch(run: RunLike | Loaded = None, **options: Unpack[SampleOptions]) -> Iterator[list[str]]:
    """`num_samples` texts in chunks as they are generated: lists of the new text of each sample, the prompt first.

    `run` may be what `load` returned, to load once for many calls. The network stays as it is, also its mode (training
    or evaluation). On a CPU, a call takes as much memory as the network again, until its end: see `cpu_linear`.
    """
    settings = SampleConfig.from_dict(options)
    size = (settings.num_samples, settings.max_new_tokens)
    recordings = None
    if isinstance(run, tuple):
        model, tokenizer = run
        if isinstance(model, GPT):  # else it is compiled or wrapped, and its modules belong to the wrapper
            recordings = _recordings.setdefault(model, Recordings())
            model = cpu_linear.copy_for_generation(model, *size)
    else:
        model, tokenizer, _ = _load_model(run, settings)
        cpu_linear.optimize_linears(model, *size)
    prompt = read_prompt(settings.start) if "start" in options else default_prompt(tokenizer)
    ids = tokenizer.encode(prompt, what="prompt")
    threads = devices.resolve_threads(settings.threads)
    yield [prompt] * settings.num_samples
    texts = text_stream.stream_texts(model, tokenizer, ids, settings, recordings=recordings)
    yield from generators.context_per_item(texts, lambda: devices.compute_settings(threads, tf32=settings.tf32))


pieces = stream_batch  # its name in version 0.1


@with_options(LoadConfig)
def load(run: RunLike = None, **options: Unpack[LoadOptions]) -> Loaded:
    """The trained network of a run, in evaluation mode, and its tokenizer.

    Any option of `LoadConfig` is a keyword argument. `dtype` is that of the weights, float32 for "auto". `UserError` if
    there is no such checkpoint, or if it is damaged.
    """
    model, tokenizer, _ = _load_model(run, LoadConfig.from_dict(options))
    return model, tokenizer


@with_options(LoadConfig)
def evaluate(
    run: RunLike = None, *, dataset: str | Path | None = None, verify: bool = False, **options: Unpack[LoadOptions]
) -> EvalResult:
    """The loss of a checkpoint over both whole splits of its dataset (or of another dataset), each target once.

    `verify`: check the whole prepared data first, also files that have not changed since they were checked. Any option
    of `LoadConfig` is a keyword argument.
    """
    settings = LoadConfig.from_dict(options)
    model, tokenizer, saved = _load_model(run, settings.replace({"dtype": "float32"}))
    device = model.lm_head.weight.device
    trained_with = read_config(saved, {})
    dtype = settings.dtype
    if dtype == "auto":
        dtype = devices.resolve_stored_dtype(
            trained_with.dtype, saved.metadata.device, device, width=trained_with.n_embd
        )
    with ExitStack() as stack:
        stack.callback(memory.trim_heap)
        # ignore_cleanup_errors: after an error its traceback keeps the maps, and Windows removes no file that is mapped
        folder = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)) if dataset is not None else ""
        open_data = partial(_open_evaluation_data, dataset, folder, saved, trained_with, tokenizer, verify=verify)
        stack.enter_context(devices.compute_settings(devices.resolve_threads(settings.threads), tf32=settings.tf32))
        stack.enter_context(memory.retain_heap())
        fast_paths.check(device, dtype, head_size=trained_with.n_embd // trained_with.n_head)
        losses, sizes, network_val_loss, comparison, sha256 = _split_losses(model, open_data, dtype)
    verdict = ""
    is_best = saved.metadata.best_step == saved.metadata.step  # the sentence is about the best checkpoint
    if is_best and sha256 == saved.metadata.dataset_sha256:
        verdict = comparison.verdict(
            Run(saved.path.parent),
            config=trained_with,
            device=saved.metadata.device,
            train_tokens=sizes[0],
            val_tokens=sizes[1],
            vocab_size=tokenizer.vocab_size,
        )
    return {
        "step": saved.metadata.step,
        "val_loss": losses[1],
        "network_val_loss": network_val_loss,
        "val_tokens": sizes[1],
        "train_loss": losses[0],
        "train_tokens": sizes[0],
        "perplexity": comparison.measures.perplexity,
        "nats_per_character": comparison.measures.nats_per_character,
        "bits_per_character": comparison.measures.bits_per_character,
        "bits_per_byte": comparison.measures.bits_per_byte,
        "unigram_loss": comparison.baselines.unigram,
        "bigram_loss": comparison.baselines.bigram,
        "five_gram_loss": comparison.baselines.five_gram,
        "verdict": verdict,
        "dataset": str(dataset or trained_with.dataset),
        "checkpoint": str(saved.path),
    }


def default_prompt(tokenizer: Tokenizer) -> str:
    """A newline, as in nanoGPT; if the text had none, the first character of the vocabulary."""
    try:
        tokenizer.encode("\n")
        return "\n"
    except UserError:
        return tokenizer.decode([0])


def _load_model(run: RunLike, settings: LoadConfig) -> tuple[GPT, Tokenizer, Checkpoint]:
    """The network of a checkpoint, on the device and in the number format that the settings ask for."""
    saved, config, tokenizer = load_checkpoint(run, settings.checkpoint, weights_only=True)
    with seeding.seeded(torch.device("cpu")):  # the initial weights are random, and replaced at once
        model = GPT(config.subset(NetworkConfig), tokenizer.vocab_size)
    load_weights(model, saved)
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    device = devices.resolve_device(settings.device)
    fast_paths.check(device, dtype, head_size=config.n_embd // config.n_head)
    model.to(device, devices.DTYPES[dtype])
    if settings.int8:
        cpu_linear.quantize_int8(model)
    return model.eval(), tokenizer, saved


def _split_losses(model: GPT, open_data: Callable[[], Dataset], dtype: str) -> _SplitLosses:
    """The loss over the whole training and validation split, and what it means.

    The dataset is opened here, so that its memory maps are closed at the end, and its files can be removed on Windows.
    """
    network = model
    if model.expert is not None:
        network = copy_modules(model)
        network.expert = None
    data = open_data()
    with verification.open_verified(data) as (train, val):
        losses = [_split_loss(network, train, dtype), _split_loss(model, val, dtype)]
        network_val_loss = None if model is network else _split_loss(network, val, dtype)
        comparison = compare(losses[1], data, train, val)
        return _SplitLosses(losses, [len(train), len(val)], network_val_loss, comparison, data.sha256)


def _split_loss(model: GPT, tokens: Tokens, dtype: str) -> float:
    """The loss over a whole split."""
    windows = evaluation.split_windows(tokens, model)
    loss = evaluation.mean_loss(model, windows, model.lm_head.weight.device, dtype)
    assert loss is not None  # None is for an evaluation that was asked to stop
    return loss


def _open_evaluation_data(
    dataset: str | Path | None,
    folder: str,
    saved: Checkpoint,
    trained_with: TrainConfig,
    tokenizer: Tokenizer,
    *,
    verify: bool,
) -> Dataset:
    """The dataset to evaluate on, verified: the one of the run, or `dataset` with the run's tokenizer.

    The latter is written to `folder` unless it is prepared: an evaluation replaces no prepared data.
    """
    if dataset is None:
        sha256 = saved.metadata.dataset_sha256 or None
        return preparation.open_or_prepare(trained_with.dataset, tokenizer=tokenizer, sha256=sha256, verify=verify)
    return preparation.open_or_prepare(dataset, tokenizer=tokenizer, temporary_dir=folder, verify=verify)
