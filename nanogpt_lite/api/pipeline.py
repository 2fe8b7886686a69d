"""The road, put together: prepare, train, sample.

The only place that joins the parts. `cli` calls it, and so does who imports the package. What a trained run is good
for without that is in `inference`.
"""

import itertools
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nanogpt_lite.api import inference, setup
from nanogpt_lite.config.options import RunConfig, SampleConfig, TrainConfig, read_config_file
from nanogpt_lite.config.schema import Value, require_known
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.data import preparation, verification
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.download import DownloadError
from nanogpt_lite.device import distributed, signals
from nanogpt_lite.errors import Interrupted
from nanogpt_lite.generation import text_stream
from nanogpt_lite.runs import run_folder
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tracking import trackers
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.metrics_file import MetricsFile
from nanogpt_lite.tracking.records import Record, SampleRecord, Sink, StartRecord, StepRecord
from nanogpt_lite.trainer import loop
from nanogpt_lite.trainer.state import TrainState

LONG_VAL_TOKENS = 1_000_000  # tokens, which a laptop's evaluation takes ten seconds for
PREVIEW_TOKENS = 200  # the length of a sample in the middle of training


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
    with closing(Console(silent=not distributed.launched_as_main_process())) as console:
        return show_records(
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
    wishes = setup.read_request(dataset, preset, config, overwrite, options)
    with ExitStack() as stack:
        group = stack.enter_context(distributed.process_group())
        wishes = setup.request_for_restart(wishes, group.load_attempt_dir())
        with group.main_process_first():
            state, data, out_dir = setup.start_or_resume(wishes, group, stack, console)
            sinks = [stack.enter_context(closing(sink)) for sink in _make_sinks(state, data, out_dir, console)]
        if console and not state.config.eval_iters and len(data.val) > LONG_VAL_TOKENS:
            console.note(f"each evaluation reads all {len(data.val):,} val tokens; --eval_iters 200 takes 200 batches")
        out_dir = Path(group.broadcast(str(out_dir)))
        if group.is_main_process:
            group.save_attempt_dir(str(out_dir))
        stop = stack.enter_context(signals.stop_on_signals())
        train_tokens, val_tokens = stack.enter_context(verification.open_verified(data))
        records = loop.train_loop(state, train_tokens, val_tokens, out_dir=out_dir, stop=stop.requested)
        for record in _with_previews(state, records):
            for sink in sinks:
                sink.write(record)
            yield record
        signum = int(*group.all_reduce_max(stop.signum or 0))
    if signum:
        raise Interrupted(signum, "the state is saved", out_dir=str(out_dir))


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
    prompt = inference.read_prompt(settings.start) if "start" in options else None
    chosen = {**(read_config_file(config) if config else {}), **options}
    with closing(Console()) as console:
        start = partial(training, preset=preset, config=config, overwrite=overwrite, console=console)
        records = start(**for_training)
        try:
            first = next(records)
        except DownloadError as error:
            if "dataset" in chosen or chosen.get("init_from") == "resume":
                raise
            console.close()
            console.note(f"warning: {error}. Going on with python_docs, the documentation inside Python.")
            records = start(**{**for_training, "dataset": "python_docs"})
            first = next(records)
        assert isinstance(first, StartRecord)
        if prompt is not None:
            preparation.prepare(Run(Path(first.out_dir)).data_folder).tokenizer.encode(prompt, what="prompt")
        trained = show_records(itertools.chain([first], records), console)
        if find_spec("matplotlib"):
            console.note(f"loss curves: {trained.save_plot()}")
    return trained, inference.stream_batch(trained, **for_sampling)


def show_records(records: Iterable[Record], console: Console) -> Run:
    """Show records as they come; the run that they tell of."""
    out_dir = Path()
    for record in records:
        console.write(record)
        if isinstance(record, StartRecord):
            out_dir = Path(record.out_dir)
    return Run(out_dir)


def _make_sinks(state: TrainState, data: Dataset, out_dir: Path, console: Console | None) -> list[Sink]:
    """Where the first rank writes what happens."""
    if not state.group.is_main_process:
        return []
    metrics = MetricsFile(out_dir / "metrics.jsonl", keep_until=state.step if state.step else -1)
    if loop.stop_reason(state):
        return [metrics]
    run_folder.write_run_config(state, data, out_dir)
    warn = console.note if console else warnings.warn
    return [metrics, *trackers.make_trackers(state.config, out_dir, step=state.step, warn=warn)]


def _with_previews(state: TrainState, records: Iterable[Record]) -> Iterator[Record]:
    """The records of a training, and a sample every so many steps."""
    for record in records:
        yield record
        if isinstance(record, StepRecord) and loop.is_due(state.config.sample_interval, state.step):
            yield _preview(state)


def _preview(state: TrainState) -> SampleRecord:
    """A short sample from the network as it is."""
    settings = SampleConfig(seed=state.config.seed, max_new_tokens=PREVIEW_TOKENS)
    prompt = state.tokenizer.encode(inference.default_prompt(state.tokenizer))
    drawn = text_stream.stream_texts(state.model, state.tokenizer, prompt, settings)
    return SampleRecord(step=state.step, text=text_stream.join_texts(drawn)[0])
