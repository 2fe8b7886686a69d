"""Evaluates a trained run: its losses on both splits and what they mean, and what its samples copy from the text."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypedDict, Unpack

from nanogpt_lite.api.inference import load_model
from nanogpt_lite.api.result import Comparison, compare
from nanogpt_lite.api.sample_copies import Copies, measure_copies
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.restore import read_config
from nanogpt_lite.config.keyword_types import LoadOptions
from nanogpt_lite.config.options import LoadConfig, TrainConfig
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.data import preparation, verification
from nanogpt_lite.data.batching import Tokens
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices, fast_paths, memory
from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.runs.run_folder import Run, RunLike
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.trainer import evaluation
from nanogpt_lite.trainer.evaluation import Losses


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
    copies: dict[str, Copies] | None  # by the kind of the texts, as of `measure_copies`, if they were asked for
    verdict: str  # one sentence about the loss; empty for another text or checkpoint than the best, and without metrics
    dataset: str
    checkpoint: str  # its path


class _SplitLosses(NamedTuple):
    """The evaluation of the train and the val split of a dataset."""

    losses: list[float]  # nats per token; on the train split, which an n-gram expert has counted, of the network alone
    sizes: list[int]  # tokens
    network_val_loss: float | None  # without the n-gram expert; None if there is none
    comparison: Comparison  # of the val loss
    dataset_sha256: str


@with_options(LoadConfig)
def evaluate(
    run: RunLike = None,
    *,
    dataset: str | Path | None = None,
    verify: bool = False,
    copies: bool = False,
    **options: Unpack[LoadOptions],
) -> EvalResult:
    """The loss of a checkpoint over both whole splits of its dataset (or of another dataset), each target once.

    `verify`: check the whole prepared data first, also files that have not changed since they were checked. `copies`:
    also measure what samples copy from the train split of the run. Any option of `LoadConfig` is a keyword argument.
    """
    if copies and dataset is not None:
        raise UserError("`copies` is about the text that the run was trained on; leave out `dataset`")
    settings = LoadConfig.from_dict(options)
    model, tokenizer, saved = load_model(run, settings.replace({"dtype": "float32"}))
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
        copied = measure_copies(model, tokenizer, open_data(), seed=settings.seed) if copies else None
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
            world_size=saved.metadata.ranks,
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
        "copies": copied,
        "dataset": str(dataset or trained_with.dataset),
        "checkpoint": str(saved.path),
    }


def _split_losses(model: GPT, open_data: Callable[[], Dataset], dtype: str) -> _SplitLosses:
    """The loss over the whole training and validation split, and what it means.

    The dataset is opened here, so that its memory maps are closed at the end, and its files can be removed on Windows.
    """
    network = model.without_expert()
    data = open_data()
    with verification.open_verified(data) as (train, val):
        train_loss, val_losses = _losses_of_split(network, train, dtype).loss, _losses_of_split(model, val, dtype)
        network_val_loss = None if model is network else val_losses.network_loss
        comparison = compare(val_losses, data, train, val)
        losses, sizes = [train_loss, val_losses.loss], [len(train), len(val)]
        return _SplitLosses(losses, sizes, network_val_loss, comparison, data.sha256)


def _losses_of_split(model: GPT, tokens: Tokens, dtype: str) -> Losses:
    """The losses over a whole split."""
    windows = evaluation.split_windows(tokens, model)
    losses = evaluation.mean_losses(model, windows, model.lm_head.weight.device, dtype)
    assert losses is not None  # None is for an evaluation that was asked to stop
    return losses


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
