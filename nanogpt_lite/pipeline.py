"""The road, put together: prepare, train, sample.

The only place that joins the parts. `cli` calls it, and so does who imports the package.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nanogpt_lite import batches, datasets, decoding, runs, runtime, sampling, trainer
from nanogpt_lite import checkpoint as checkpoints
from nanogpt_lite import config as configs
from nanogpt_lite.checkpoint import Checkpoint
from nanogpt_lite.config import (
    LoadConfig,
    NetworkConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    Value,
)
from nanogpt_lite.datasets import Dataset
from nanogpt_lite.download import DownloadError
from nanogpt_lite.errors import Interrupted, UserError
from nanogpt_lite.logs import Console, MetricsFile
from nanogpt_lite.metrics import Record, SampleRecord, StartRecord, StepRecord
from nanogpt_lite.model import GPT
from nanogpt_lite.runs import Run, RunLike
from nanogpt_lite.signatures import with_options
from nanogpt_lite.state import TrainState, config_of, load_weights, network_of, require_same_network, restore, start
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

    `dataset`: what `prepare` returned, or anything that it takes. `preset`: shakespeare_char, tutorial or cpu;
    without one (and without `config`) the one that fits the device. `config`: a run's config.json, to repeat it.
    `overwrite`: begin anew in an `out_dir` that holds a checkpoint.

    `UserError`: a mistake in the options or the data. `WorldError`: the data cannot be fetched, or the loss is no
    longer finite. `Interrupted` (a KeyboardInterrupt): Ctrl-C or SIGTERM, after the state has been saved.
    """
    with closing(Console()) as console:
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
    """
    in_file = configs.read_file(config) if config else {}
    named = configs.preset(preset) if preset else {}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    ready = dataset if isinstance(dataset, Dataset) else None
    if dataset is not None:
        given["dataset"] = ready.asked if ready else str(dataset)
    for values in (in_file, given):
        configs.require_known(values, TrainConfig.names(), "option")
    with ExitStack() as stack:
        if {**in_file, **given}.get("init_from") == "resume":
            # the checkpoint comes before preset and file, but it does not know what belongs to one call
            call = {name: value for name, value in in_file.items() if name not in TrainConfig().stored()}
            state, data, out_dir = _resume({**call, **given}, ready, stack, console)
        else:
            otherwise = {**named, **in_file}
            state, data, out_dir = _begin(given, otherwise, bool(preset or config), ready, overwrite, stack, console)
        if not trainer.finished(state):
            runs.write_config(state, data, out_dir)
        metrics_path = out_dir / "metrics.jsonl"
        metrics = stack.enter_context(closing(MetricsFile(metrics_path, keep_until=state.step if state.step else -1)))
        stop = stack.enter_context(runtime.stop_on_signals())
        for record in trainer.train(state, data.train, data.val, out_dir=out_dir, stop=stop.made):
            metrics.write(record)
            yield record
            if isinstance(record, StepRecord) and trainer.every(state.config.sample_interval, state.step):
                preview = _preview(state)
                metrics.write(preview)
                yield preview
    if stop.signum is not None:
        raise Interrupted(stop.signum, _how_to_go_on("train", out_dir))


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
    configs.require_known(options, RunConfig.names(), "option")
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
        dtype = trained_on.dtype if saved.about["device"] == device.type else runtime.resolve_dtype("auto", device)
    with ExitStack() as stack:
        if dataset is None:
            data = datasets.prepare(trained_on.dataset, tokenizer=tokenizer, sha256=saved.about["dataset_sha256"])
        else:  # in a place of its own: data/NAME may be prepared with another tokenizer
            folder = stack.enter_context(TemporaryDirectory())
            data = datasets.prepare(dataset, tokenizer=tokenizer, out_dir=folder)
        result: dict[str, Any] = {"step": saved.about["step"]}
        stack.enter_context(runtime.use_threads(runtime.resolve_threads(settings.threads)))
        for split, tokens in (("val", data.val), ("train", data.train)):
            windows = trainer.split_windows(tokens, trained_on.block_size)
            result[f"{split}_loss"] = trainer.mean_loss(model, windows, device, dtype)
            result[f"{split}_tokens"] = len(tokens)
    return {**result, "dataset": dataset or trained_on.dataset, "checkpoint": str(saved.path)}


def default_preset(device: str) -> str:
    """The preset for a device when nobody chose one."""
    return "cpu" if runtime.resolve_device(device).type == "cpu" else "shakespeare_char"


def _begin(
    given: dict[str, Value],
    otherwise: dict[str, Value],
    chosen: bool,
    ready: Dataset | None,
    overwrite: bool,
    stack: ExitStack,
    console: Console | None,
) -> tuple[TrainState, Dataset, Path]:
    """A new run, from scratch or from another run's weights; `otherwise` is what preset and file say.

    Its folder is held until `stack` is closed.
    """
    if not chosen:
        otherwise = configs.preset(default_preset(str(given.get("device", "auto"))))
    config = TrainConfig.from_dict({**otherwise, **given})
    other = None
    tokenizer: str | Tokenizer = config.tokenizer
    if config.init_from != "scratch":
        other = checkpoints.load(runs.find_checkpoint(config.init_from), prefix="model.")
        network, tokenizer = network_of(other)
        require_same_network(other, given)
        config = config.replace({name: getattr(network, name) for name in configs.SHAPE_FIELDS})
    runs.require_free(config.out_dir, overwrite)
    data = _open(ready, config.dataset, tokenizer, console)
    batches.check_length(data.train, data.val, block_size=config.block_size, sampled_val=config.eval_iters > 0)
    state = start(config, data.tokenizer, dataset_sha256=data.sha256)
    if other:
        load_weights(state.model, other)
    out_dir = runs.claim(config.out_dir, data.name)
    stack.enter_context(runs.hold(out_dir))
    if overwrite:
        runs.empty(out_dir)
    return state, data, out_dir


def _resume(
    given: dict[str, Value], ready: Dataset | None, stack: ExitStack, console: Console | None
) -> tuple[TrainState, Dataset, Path]:
    """A run that goes on from its last checkpoint; its folder is held until `stack` is closed."""
    out_dir = Path(str(given["out_dir"])) if given.get("out_dir") else runs.newest_run().out_dir
    checkpoint = runs.find_checkpoint(out_dir, "last")
    stack.enter_context(runs.hold(out_dir))
    saved = checkpoints.load(checkpoint)
    state = restore(saved, given)
    if "max_iters" in given and state.config.max_iters < state.step:
        raise UserError(
            f"{out_dir} is at step {state.step}, beyond max_iters={state.config.max_iters}; give more, or leave it out"
        )
    before = config_of(saved, {})
    changed = [name for name in ("dtype", "threads", "seed") if getattr(before, name) != getattr(state.config, name)]
    changed += ["device"] if saved.about["device"] != state.device.type else []
    if changed and console:
        console.note(
            f"warning: {', '.join(changed)} changed, so the run goes on but no longer bit for bit as it would have"
        )
    try:
        data = _open(ready, state.config.dataset, state.tokenizer, console, sha256=state.dataset_sha256)
    except UserError as error:
        raise UserError(
            f"{error} ({out_dir} was trained on {state.config.dataset!r}, as seen from the folder where it began: go "
            "on from there, or say where that text is: --dataset)"
        ) from error
    kept = [r["seconds"] for r in Run(out_dir).metrics if "seconds" in r and r["step"] <= state.step]
    state.seconds = max(kept, default=0.0)
    return state, data, out_dir


def _open(
    ready: Dataset | None,
    dataset: str,
    tokenizer: str | Tokenizer,
    console: Console | None,
    sha256: str | None = None,
) -> Dataset:
    """The dataset to train on: the one at hand if it fits, or the one of that name."""
    if ready:
        return datasets.prepare(ready.path, tokenizer=tokenizer, sha256=sha256 or ready.sha256)
    data = datasets.prepare(dataset, tokenizer=tokenizer, sha256=sha256, report=console.report if console else None)
    if console:
        console.close()
    return data


def _how_to_go_on(command: str, out_dir: str | Path) -> str:
    return f"the state is saved; go on with: nanogpt-lite {command} --out_dir {out_dir} --init_from resume"


def _default_dataset(tokenizer: str, console: Console) -> str:
    """Shakespeare, or Python's documentation where Shakespeare cannot be fetched."""
    try:
        _open(None, "shakespeare_char", tokenizer, console)
        return "shakespeare_char"
    except DownloadError as error:
        console.close()
        console.note(f"warning: {error}. Going on with python_docs, the documentation inside Python.")
        return "python_docs"


def _load(run: RunLike, settings: LoadConfig) -> tuple[GPT, Tokenizer, Checkpoint]:
    saved = checkpoints.load(runs.find_checkpoint(run, settings.checkpoint), prefix="model.")
    config, tokenizer = network_of(saved)
    with runtime.seeded(torch.device("cpu")):  # its first weights are drawn, and at once replaced
        model = GPT(config.part(NetworkConfig), tokenizer.vocab_size)
    load_weights(model, saved)
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    model.to(runtime.resolve_device(settings.device), runtime.DTYPES[dtype])
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
        raise UserError(f"the prompt file {path!r} is empty; a prompt needs at least one character")
    return prompt


def _default_prompt(tokenizer: Tokenizer) -> str:
    """A newline, as in nanoGPT; where the text had none, its first character in order."""
    try:
        tokenizer.encode("\n")
        return "\n"
    except UserError:
        return tokenizer.decode([0])


def _preview(state: TrainState) -> SampleRecord:
    """A short sample from the network as it is."""
    settings = SampleConfig(seed=state.config.seed, max_new_tokens=PREVIEW_TOKENS)
    prompt = state.tokenizer.encode(_default_prompt(state.tokenizer))
    drawn = sampling.stream_texts(state.model, state.tokenizer, prompt, settings)
    return SampleRecord(step=state.step, text=sampling.texts(drawn)[0])
