"""The main job in one call: prepare, train, sample."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Unpack, cast

from nanogpt_lite.api import inference
from nanogpt_lite.api.pipeline import show_records, training_to_end
from nanogpt_lite.config.config_file import read_config_file
from nanogpt_lite.config.keyword_types import PresetName, RunOptions, SampleOptions, TrainOptions
from nanogpt_lite.config.options import RunConfig, SampleConfig, TrainConfig, read_prompt
from nanogpt_lite.config.schema import require_known
from nanogpt_lite.data import preparation
from nanogpt_lite.data.download import DownloadError
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.records import Record, StartRecord

KEPT_EARLY = 100.0  # megabytes of early weights, to see how the network learned


def run(
    *,
    preset: PresetName | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    verify: bool = False,
    console: Console | None = None,
    **options: Unpack[RunOptions],
) -> tuple[Run, Iterator[list[str]]]:
    """Prepare, train and sample: the run, and the samples as `stream_batch` yields them. Options of `RunConfig`.

    If no dataset was chosen and Shakespeare cannot be downloaded, it says so and uses Python's documentation.
    """
    require_known(options, RunConfig.names(), "option")
    # to type checkers the values of a TypedDict are objects
    for_training = cast(_TrainArguments, {n: value for n, value in options.items() if n in TrainConfig.names()})
    for_sampling = cast(SampleOptions, {n: value for n, value in options.items() if n in SampleConfig.names()})
    settings = SampleConfig.from_dict(for_sampling)  # mistakes in it are reported before the training, not after it
    prompt = read_prompt(settings.start) if "start" in options else None
    arguments: _TrainArguments = {
        "preset": preset,
        "config": config,
        "overwrite": overwrite,
        "verify": verify,
        **({} if config else {"keep_early": KEPT_EARLY}),
        **for_training,
    }
    with closing(console or Console()) as console:
        first, records = _start_with_fallback(arguments, console)
        if prompt is not None:
            data = preparation.open_or_prepare(Run(Path(first.out_dir)).data_folder)
            data.tokenizer.encode(prompt, what="prompt")
        with closing(records):
            trained = show_records(itertools.chain([first], records), console)
        if find_spec("matplotlib"):
            console.note(f"loss curves: {trained.save_plot()}")
    return trained, inference.stream_batch(trained, **for_sampling)


class _TrainArguments(TrainOptions, total=False):
    """All keyword arguments of `training` but the console."""

    dataset: str | Path
    preset: PresetName | None
    config: str | Path | None
    overwrite: bool
    verify: bool


def _start_with_fallback(
    arguments: _TrainArguments, console: Console
) -> tuple[StartRecord, Generator[Record, None, None]]:
    """Start `training` with these arguments; with python_docs if Shakespeare, the default, cannot be downloaded."""
    records = training_to_end(console=console, **arguments)
    try:
        first = next(records)
    except DownloadError as error:
        config = arguments.get("config")
        options = {**(read_config_file(config) if config else {}), **arguments}
        if "dataset" in options or options.get("init_from") == "resume":
            raise
        console.close()
        console.note(f"warning: {error}. Using python_docs instead, the documentation inside Python.")
        arguments = {**arguments, "dataset": "python_docs"}
        records = training_to_end(console=console, **arguments)
        first = next(records)
    assert isinstance(first, StartRecord)
    return first, records
