"""Training, put together: the request, the data, the loop, its result, and where records go.

The command line and `import nanogpt_lite` call this module. How a run starts or resumes is in `api.setup`; what a
trained run is used for is in `api.inference`, and prepare, train and sample in one call in `api.main_job`.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Unpack

from nanogpt_lite.api import inference, result, setup
from nanogpt_lite.api.request import TrainRequest, read_request, request_for_restart
from nanogpt_lite.config.keyword_types import PresetName, TrainOptions
from nanogpt_lite.config.options import SampleConfig, TrainConfig
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.data import verification
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices, distributed, generators, memory, signals
from nanogpt_lite.errors import Interrupted
from nanogpt_lite.generation import text_stream
from nanogpt_lite.runs import run_files
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tracking import trackers
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.metrics_file import MetricsFile
from nanogpt_lite.tracking.records import (
    DoneRecord,
    Record,
    ResultRecord,
    SampleRecord,
    Sink,
    StartRecord,
    StepRecord,
    StopReason,
)
from nanogpt_lite.trainer import loop
from nanogpt_lite.trainer.state import TrainState

PREVIEW_TOKENS = 200  # length of a sample generated during training


@with_options(TrainConfig)
def train(
    dataset: Dataset | str | Path | None = None,
    *,
    preset: PresetName | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    verify: bool = False,
    console: Console | None = None,
    **options: Unpack[TrainOptions],
) -> Run:
    """Train a network, show the progress, and return the run. Any option of `TrainConfig` is a keyword argument.

    `dataset`: what `prepare` returned, or anything that `prepare` takes. `preset`: a name in `PRESETS`; without it (and
    without `config`) the one that fits the device. `config`: a run's config.json, to repeat that run. `overwrite`:
    replace the run in `out_dir` by a new one. `verify`: check the whole prepared data, also files that have not changed
    since they were checked. `console`: where to show the progress, instead of a new `Console`.

    `UserError`: a mistake in the options or the data. `ExternalError`: the data cannot be downloaded, or the loss is no
    longer finite. `Interrupted` (a KeyboardInterrupt): Ctrl-C or SIGTERM, after the state has been saved.
    """
    with closing(console or Console(silent=not distributed.launched_as_main_process())) as console:
        records = training_to_end(
            dataset,
            preset=preset,
            config=config,
            overwrite=overwrite,
            verify=verify,
            console=console,
            **options,
        )
        with closing(records):
            return show_records(records, console)


@with_options(TrainConfig)
def training(
    dataset: Dataset | str | Path | None = None,
    *,
    preset: PresetName | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    verify: bool = False,
    console: Console | None = None,
    **options: Unpack[TrainOptions],
) -> Generator[Record, None, None]:
    """The same as `train`, as a generator of records: one for each event, when it has happened.

    A checkpoint is on disk when its record is yielded. Progress before the first record is shown on `console`, if
    given. When a signal stopped the training, `Interrupted` is raised after the last record.

    Signals are handled, and PyTorch's number of threads is set, only while the generator runs. Ctrl-C during a step
    ends the step, then come the last checkpoint and `Interrupted`. Between two records a signal means what it means to
    the caller, and what was trained since the last checkpoint is lost unless the caller takes more records. The folder
    of the run stays locked until the end: close the generator if you leave it early (`contextlib.closing`).

    Under torchrun every rank makes this call and gets the records; only the main process writes files. Ranks that
    torchrun restarts, because one has died, continue from the last checkpoint of the run that they had started.
    """
    request = read_request(dataset, preset, config, overwrite, verify, options)
    yield from _train(request, console, generators.context_per_item)


@with_options(TrainConfig)
def training_to_end(
    dataset: Dataset | str | Path | None = None,
    *,
    preset: PresetName | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    verify: bool = False,
    console: Console | None = None,
    **options: Unpack[TrainOptions],
) -> Generator[Record, None, None]:
    """The same as `training`, for a caller that takes all records, or closes the generator at once.

    From the first record to the last, signals are requests to stop, also while the caller shows or stores a record: the
    state is saved.
    """
    request = read_request(dataset, preset, config, overwrite, verify, options)
    yield from _train(request, console, generators.context_for_all)


def show_records(records: Iterable[Record], console: Console) -> Run:
    """Show records as they come, and return the run that they describe."""
    out_dir = Path()
    for record in records:
        console.write(record)
        if isinstance(record, StartRecord):
            out_dir = Path(record.out_dir)
    return Run(out_dir)


def _train(
    request: TrainRequest, console: Console | None, settings_for: generators.Wrapper[Record]
) -> Generator[Record, None, None]:
    """The records of a training. `settings_for` decides when the settings of the process are those of training."""
    with ExitStack() as stack:
        group = stack.enter_context(distributed.process_group())
        request = request_for_restart(request, group.load_attempt_dir())
        with group.main_process_first():
            state, data, out_dir = setup.start_or_resume(request, group, stack, console)
            sinks = [stack.enter_context(closing(sink)) for sink in _make_sinks(state, data, out_dir, console)]
        out_dir = Path(group.broadcast(str(out_dir)))
        if group.is_main_process:
            group.save_attempt_dir(str(out_dir))
        stop = signals.StopRequest()
        stack.callback(memory.trim_heap)
        train_tokens, val_tokens = stack.enter_context(verification.open_verified(data))
        records = loop.train_loop(
            state,
            train_tokens,
            val_tokens,
            out_dir=out_dir,
            chars_per_token=None if data.val_characters is None else data.val_characters / len(data.val),
            stop=stop.requested,
        )
        note = console.note if console else lambda text: None
        make_result = partial(
            result.make_result, state, data, train_tokens, val_tokens, out_dir, note=note, stop=stop.requested
        )
        stored = _store_records(_with_result(state, _with_previews(state, records), make_result), sinks)
        yield from settings_for(stored, lambda: _training_settings(state, stop))
        signum = int(*group.all_reduce_max(stop.signum or 0))
    if signum:
        raise Interrupted(signum, "the state is saved", out_dir=str(out_dir))


@contextmanager
def _training_settings(state: TrainState, stop: signals.StopRequest) -> Iterator[None]:
    """The settings of the process while a training computes: signal handlers, threads, memory."""
    is_memory_short = state.micro_batch < state.config.batch_size  # then freed memory goes back to the system at once
    with (
        signals.stop_on_signals(stop),
        devices.compute_settings(state.config.threads, tf32=state.config.tf32),
        nullcontext() if is_memory_short else memory.retain_heap(),
    ):
        yield


def _store_records(records: Iterable[Record], sinks: Sequence[Sink]) -> Generator[Record, None, None]:
    """The records, each after all sinks have it."""
    for record in records:
        for sink in sinks:
            sink.write(record)
        yield record


def _make_sinks(state: TrainState, data: Dataset, out_dir: Path, console: Console | None) -> list[Sink]:
    """Where the main process writes the records: the metrics file, and the trackers that the config asks for."""
    if not state.group.is_main_process:
        return []
    metrics = MetricsFile(out_dir / "metrics.jsonl", keep_until=state.step if state.step else -1)
    if loop.stop_reason(state):
        return [metrics]
    run_files.write_run_config(state, data, out_dir)
    warn = console.note if console else warnings.warn
    return [metrics, *trackers.make_trackers(state.config, out_dir, step=state.step, warn=warn)]


def _with_previews(state: TrainState, records: Iterable[Record]) -> Iterator[Record]:
    """The records of a training, with a sample after every `sample_interval` steps."""
    for record in records:
        yield record
        if isinstance(record, StepRecord) and loop.is_due(state.config.sample_interval, state.step):
            yield _preview(state)


def _with_result(
    state: TrainState, records: Iterable[Record], make_result: Callable[..., ResultRecord | None]
) -> Iterator[Record]:
    """The records of a training, with its result before the last one, if it has trained and was not asked to stop."""
    first_step = state.step
    for record in records:
        if isinstance(record, DoneRecord) and first_step < state.step and state.best_val_loss is not None:
            is_interrupted = record.reason is StopReason.INTERRUPTED
            final = None if is_interrupted else make_result(in_hurry=record.reason is StopReason.MAX_SECONDS)
            if final is not None:
                yield final
        yield record


def _preview(state: TrainState) -> SampleRecord:
    """A short sample from the network in its present state. No recording is kept: the steps may need its memory."""
    settings = SampleConfig(seed=state.config.seed, max_new_tokens=PREVIEW_TOKENS)
    prompt = state.tokenizer.encode(inference.default_prompt(state.tokenizer))
    chunks = text_stream.stream_texts(state.model, state.tokenizer, prompt, settings)
    return SampleRecord(step=state.step, text=text_stream.join_texts(chunks)[0])
