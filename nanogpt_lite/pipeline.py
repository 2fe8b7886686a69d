"""The road, put together: prepare, train, sample.

The only place that joins the parts. `cli` calls it, and so does who imports the package.
"""

import itertools
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nanogpt_lite import checkpoint as checkpoints
from nanogpt_lite import config as configs
from nanogpt_lite import (
    datasets,
    decoding,
    evaluation,
    integrity,
    ranks,
    runs,
    runtime,
    sampling,
    starts,
    trackers,
    trainer,
)
from nanogpt_lite.checkpoint import Checkpoint
from nanogpt_lite.config import (
    LoadConfig,
    NetworkConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
from nanogpt_lite.datasets import Dataset
from nanogpt_lite.download import DownloadError
from nanogpt_lite.errors import Interrupted, UserError
from nanogpt_lite.inspection import require_weights
from nanogpt_lite.logs import Console, MetricsFile, Sink
from nanogpt_lite.metrics import Record, SampleRecord, StartRecord, StepRecord
from nanogpt_lite.model import GPT
from nanogpt_lite.options import Value, require_known
from nanogpt_lite.runs import Run, RunLike
from nanogpt_lite.signatures import with_options
from nanogpt_lite.state import TrainState, config_of, load_weights, network_of
from nanogpt_lite.tokenizer import Tokenizer

PREVIEW_TOKENS = 200  # the length of a sample in the middle of training

Loaded = tuple[GPT, Tokenizer]
"""A trained network and its tokenizer, as `load` returns them."""


@with_options(TrainConfig)
def train(
    dataset: Dataset | str | Path | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    **options: Value | Path,
) -> Run:
    """Train a network, showing progress, and return the run. Any option of `TrainConfig` is a keyword.

    `dataset`: what `prepare` returned, or anything that it takes. `preset`: a name in `PRESETS`;
    without one (and without `config`) the one that fits the device. `config`: a run's config.json, to repeat it.
    `overwrite`: begin anew in an `out_dir` that holds a checkpoint.

    `UserError`: a mistake in the options or the data. `WorldError`: the data cannot be fetched, or the loss is no
    longer finite. `Interrupted` (a KeyboardInterrupt): Ctrl-C or SIGTERM, after the state has been saved.
    """
    with closing(Console(silent=not ranks.is_first())) as console:
        return watch(
            training(dataset, preset=preset, config=config, overwrite=overwrite, console=console, **options), console
        )


@with_options(TrainConfig)
def training(
    dataset: Dataset | str | Path | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    **options: Value | Path,
) -> Generator[Record, None, None]:
    """The same as `train`, as a generator of records: the caller sees each thing when it has happened.

    A checkpoint is on disk when its record comes out. Progress before the first record is told to `console`,
    if there is one. When a signal stopped the training, `Interrupted` is raised after the last record. Until the
    end the generator holds the signals and PyTorch's number of threads: who leaves it early closes it
    (`contextlib.closing`).

    Under torchrun each rank makes this call; each gets the records, and the first one alone writes files. Ranks that
    torchrun starts anew, because one has died, go on from the last checkpoint of the run that they began.
    """
    wishes = starts.read_wishes(dataset, preset, config, overwrite, options)
    with ExitStack() as stack:
        stack.enter_context(ranks.join())
        wishes = starts.again(wishes, ranks.begun())
        with ranks.first_goes_ahead():
            state, data, out_dir = starts.begin_or_go_on(wishes, stack, console)
            sinks = [stack.enter_context(closing(sink)) for sink in _sinks(state, data, out_dir, console)]
        out_dir = Path(ranks.from_first(str(out_dir)))
        if ranks.is_first():
            ranks.note_begun(str(out_dir))
        stop = stack.enter_context(runtime.stop_on_signals())
        train_tokens, val_tokens = stack.enter_context(integrity.guarded(data))
        records = trainer.train(state, train_tokens, val_tokens, out_dir=out_dir, stop=stop.made)
        for record in _with_previews(state, records):
            for sink in sinks:
                sink.write(record)
            yield record
        signum = int(*ranks.greatest(stop.signum or 0))
    if signum:
        raise Interrupted(signum, _how_to_go_on("train", out_dir))


def run(
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    **options: Value,
) -> tuple[Run, Iterator[list[str]]]:
    """Prepare, train, and draw samples: the run, and the samples as `pieces` gives them. Options of `RunConfig`.

    If nobody chose a dataset and Shakespeare cannot be fetched, it says so and takes Python's documentation.
    """
    require_known(options, RunConfig.names(), "option")
    for_training: dict[str, Any] = {name: value for name, value in options.items() if name in TrainConfig.names()}
    for_sampling = {name: value for name, value in options.items() if name in SampleConfig.names()}
    settings = SampleConfig.from_dict(for_sampling)  # a mistake in it is told before the training, not after
    prompt = _read_prompt(settings.start) if "start" in options else None
    chosen = {**(configs.read_file(config) if config else {}), **options}
    with closing(Console()) as console:
        if "dataset" not in chosen and chosen.get("init_from") != "resume":
            for_training["dataset"] = _default_dataset(str(options.get("tokenizer", "auto")), console)
        records = training(preset=preset, config=config, overwrite=overwrite, console=console, **for_training)
        first = next(records)
        assert isinstance(first, StartRecord)
        if prompt is not None:
            datasets.prepare(Run(Path(first.out_dir)).data_folder).tokenizer.encode(prompt, what="prompt")
        try:
            trained = watch(itertools.chain([first], records), console)
        except Interrupted as interrupted:
            raise Interrupted(interrupted.signum, _how_to_go_on("run", first.out_dir)) from None
        if find_spec("matplotlib"):
            console.note(f"loss curves: {trained.save_plot()}")
    return trained, pieces(trained, **for_sampling)


def watch(records: Iterable[Record], console: Console) -> Run:
    """Show records as they come; the run that they tell of."""
    out_dir = Path()
    for record in records:
        console.write(record)
        if isinstance(record, StartRecord):
            out_dir = Path(record.out_dir)
    return Run(out_dir)


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
    prompt = _read_prompt(settings.start) if "start" in options else _default_prompt(tokenizer)
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


def _how_to_go_on(command: str, out_dir: str | Path) -> str:
    return f"the state is saved; go on with: nanogpt-lite {command} --out_dir {out_dir} --init_from resume"


def _default_dataset(tokenizer: str, console: Console) -> str:
    """Shakespeare, or Python's documentation where Shakespeare cannot be fetched."""
    try:
        starts.open_data("shakespeare_char", tokenizer, console)
        return "shakespeare_char"
    except DownloadError as error:
        console.close()
        console.note(f"warning: {error}. Going on with python_docs, the documentation inside Python.")
        return "python_docs"


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


def _read_prompt(start: str) -> str:
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


def _default_prompt(tokenizer: Tokenizer) -> str:
    """A newline, as in nanoGPT; where the text had none, its first character in order."""
    try:
        tokenizer.encode("\n")
        return "\n"
    except UserError:
        return tokenizer.decode([0])


def _sinks(state: TrainState, data: Dataset, out_dir: Path, console: Console | None) -> list[Sink]:
    """Where the first rank writes what happens."""
    if not ranks.is_first():
        return []
    metrics = MetricsFile(out_dir / "metrics.jsonl", keep_until=state.step if state.step else -1)
    if trainer.finished(state):
        return [metrics]
    runs.write_config(state, data, out_dir)
    warn = console.note if console else warnings.warn
    return [metrics, *trackers.chosen(state.config, out_dir, step=state.step, warn=warn)]


def _with_previews(state: TrainState, records: Iterable[Record]) -> Iterator[Record]:
    """The records of a training, and a sample every so many steps."""
    for record in records:
        yield record
        if isinstance(record, StepRecord) and trainer.every(state.config.sample_interval, state.step):
            yield _preview(state)


def _preview(state: TrainState) -> SampleRecord:
    """A short sample from the network as it is."""
    settings = SampleConfig(seed=state.config.seed, max_new_tokens=PREVIEW_TOKENS)
    prompt = state.tokenizer.encode(_default_prompt(state.tokenizer))
    drawn = sampling.stream_texts(state.model, state.tokenizer, prompt, settings)
    return SampleRecord(step=state.step, text=sampling.texts(drawn)[0])
