"""The commands: for each one its help, its options, and the function that executes it.

A command calls the public functions and prints their results to standard output. How options are parsed is in
`arguments`; how errors are reported is in `main`. PyTorch is imported only when a command runs.
"""

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, TextIO

from nanogpt_lite.cli.arguments import Command, GivenOptions
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import (
    DataConfig,
    InspectConfig,
    LoadConfig,
    RunConfig,
    SampleConfig,
    ServeConfig,
    TrainConfig,
)
from nanogpt_lite.config.schema import require_known
from nanogpt_lite.config.spelling import for_command_line
from nanogpt_lite.errors import UserError

if TYPE_CHECKING:
    from nanogpt_lite.runs.run_folder import Run


EXPORT_FORMATS = ("nanogpt", "hf")
COPYING_TEXTS = {
    "samples": "samples",
    "network_samples": "samples of the network alone",
    "val": "parts of the val split",
}


def _run(given: GivenOptions) -> None:
    from nanogpt_lite.api import main_job
    from nanogpt_lite.generation.text_stream import print_samples
    from nanogpt_lite.tracking.console import Console

    run, stream = main_job.run(**given, console=Console(spell=for_command_line))
    print_samples(stream)
    print(f"for other samples: nanogpt-lite sample --out_dir {run.out_dir} --seed 1", file=sys.stderr)
    print(f"to look inside: nanogpt-lite serve --open --out_dir {run.out_dir}", file=sys.stderr)


def _prepare(given: GivenOptions) -> None:
    from nanogpt_lite.data.preparation import prepare
    from nanogpt_lite.tracking.console import Console

    with contextlib.closing(Console(spell=for_command_line)) as console:
        dataset = prepare(given.pop("dataset", DataConfig.dataset), report=console.report, **given)
    print(dataset)


def _train(given: GivenOptions) -> None:
    from nanogpt_lite.api import pipeline
    from nanogpt_lite.device import distributed
    from nanogpt_lite.tracking.console import Console

    is_main_process = distributed.launched_as_main_process()
    run = pipeline.train(**given, console=Console(silent=not is_main_process, spell=for_command_line))
    if is_main_process:
        print(run.out_dir)


def _sample(given: GivenOptions) -> None:
    from nanogpt_lite.api import inference
    from nanogpt_lite.generation.text_stream import print_samples

    print_samples(inference.stream_batch(_pick_run(given), **given))


def _inspect(given: GivenOptions) -> None:
    from nanogpt_lite.api import inspection
    from nanogpt_lite.readout import coloured_text

    if "text" not in given:
        raise UserError("what to read? give a text: --text 'To be', or a file: --text FILE:letter.txt")
    as_json, as_table = given.pop("json"), given.pop("table") or not _shows_colours(sys.stdout)
    reading = inspection.inspect(_pick_run(given), **given)
    if as_json:
        print(json.dumps(reading.to_dict()))
    elif as_table:
        print(coloured_text.as_table(reading.tokens, reading.surprise, reading.expected_instead()))
    else:
        print(coloured_text.as_ansi(reading.tokens, reading.surprise))
        print(coloured_text.ansi_legend())
    print(reading, file=sys.stderr)


def _serve(given: GivenOptions) -> None:
    from nanogpt_lite.server import serving

    open_browser = given.pop("open")
    serving.serve(given.pop("out_dir", None), open_browser=open_browser, **given)


def _shows_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal, and NO_COLOR (no-color.org) is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _eval(given: GivenOptions) -> None:
    from nanogpt_lite.api import run_evaluation

    as_json = given.pop("json")
    run = _pick_run(given)
    if given["copies"] and "dataset" not in given:
        print("after the evaluation, samples are generated and compared with the train split", file=sys.stderr)
    result = run_evaluation.evaluate(run, **given)
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if value is None or name == "copies":
            continue
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        print(f"{name}: {for_command_line(text) if name == 'verdict' else text}")
    for kind, copied in (result["copies"] or {}).items():
        print(
            f"longest span that the train split has too, of each of {copied['texts']} {COPYING_TEXTS[kind]}: "
            f"{copied['mean_characters']:.1f} characters on average, {copied['longest_characters']} at most: "
            f"{copied['longest']!r}"
        )


def _plot(given: GivenOptions) -> None:
    print(_pick_run(given).save_plot())


def _info(given: GivenOptions) -> None:
    from nanogpt_lite.runs import run_summary

    as_json = given.pop("json")
    content = run_summary.summary(_pick_run(given), **given)
    print(json.dumps(content) if as_json else for_command_line(run_summary.format_text(content)))


def _import(given: GivenOptions) -> None:
    from nanogpt_lite.interop import conversion

    if "from" not in given:
        raise UserError("what to import? give a checkpoint of nanoGPT: --from ckpt.pt")
    run = conversion.from_nanogpt(given["from"], meta=given.get("meta"), out_dir=given.get("out_dir"))
    print(f"continue with: nanogpt-lite train --out_dir {run.out_dir} --init_from resume", file=sys.stderr)
    print(run.out_dir)


def _export(given: GivenOptions) -> None:
    from nanogpt_lite.interop import conversion
    from nanogpt_lite.runs import run_folder

    weights_only, with_dataset, program = given["weights"], given["dataset"], given.get("to")
    options = {"checkpoint": given.get("checkpoint", LoadConfig.checkpoint), "overwrite": given["overwrite"]}
    if weights_only == (program is not None):
        raise UserError("what to export? give one of --to nanogpt, --to hf, and --weights for the weights only")
    if with_dataset and program != "nanogpt":
        raise UserError("--dataset is for --to nanogpt, which can get the tokens too; leave it out")
    run = _pick_run(given)
    print(f"exporting {run_folder.find_checkpoint(run, options['checkpoint'])}", file=sys.stderr)
    if program is None:
        print(conversion.export_weights(run, given.get("path"), **options))
        return
    require_known([program], EXPORT_FORMATS, "program to export to")
    run_dir = run.out_dir.parent if run.out_dir.is_file() else run.out_dir
    folder = given.get("path", run_dir / program)
    if program == "nanogpt":
        print(conversion.to_nanogpt(run, folder, dataset=with_dataset, **options))
    else:
        assert program == "hf", program
        print(conversion.to_huggingface(run, folder, **options))


def _pick_run(given: GivenOptions) -> "Run":
    """The run in --out_dir, else the newest run, which is named on standard error. Removes out_dir from `given`."""
    from nanogpt_lite.runs import run_folder

    if out_dir := given.pop("out_dir", None):
        return run_folder.existing_run(out_dir)
    run = run_folder.newest_run()
    print(f"using the newest run: {run.out_dir}", file=sys.stderr)
    return run


_MAIN_JOB, _PIPELINE, _INFERENCE, _EVALUATION = (
    f"nanogpt_lite.api.{name}" for name in ("main_job", "pipeline", "inference", "run_evaluation")
)
_PRESET = {"preset": f"a set of option values: {', '.join(presets.PRESETS)}; without it, one that fits the device"}
_CONFIG = {"config": "JSON file of options; with the config.json of a run, that run is repeated"}
_OVERWRITE_RUN = {"overwrite": "replace the run in out_dir"}
_VERIFY = {"verify": "check the whole prepared data, also what has not changed since it was checked"}
_CHECKPOINT = {"checkpoint": "best (the default), last, or the name of a numbered one (step_001000)"}
_OUT_DIR = {"out_dir": "the run's folder; without it, the newest run under runs/"}
_COPIES = {"copies": "also report the longest spans of samples that the train split has as well; not with --dataset"}
_JSON = {"json": "print one JSON object"}

COMMANDS = {
    "run": Command(
        "prepare a text, train on it, and sample, on this machine",
        _run,
        _MAIN_JOB,
        RunConfig,
        _PRESET | _CONFIG,
        _OVERWRITE_RUN | _VERIFY,
    ),
    "prepare": Command(
        "convert a text to token ids, for training",
        _prepare,
        "nanogpt_lite.data.preparation",
        DataConfig,
        {"out_dir": "the dataset's folder; without it, data/NAME for characters, else data/NAME-TOKENIZER"},
        {"overwrite": "download and convert again, even if nothing changed"},
    ),
    "train": Command(
        "train a network, or continue training",
        _train,
        _PIPELINE,
        TrainConfig,
        _PRESET | _CONFIG,
        _OVERWRITE_RUN | _VERIFY,
    ),
    "sample": Command("generate text with a trained network", _sample, _INFERENCE, SampleConfig, _OUT_DIR),
    "eval": Command(
        "compute the loss on the whole val and train splits",
        _eval,
        _EVALUATION,
        LoadConfig,
        _OUT_DIR | {"dataset": "another dataset than the one used for training"},
        _JSON | _VERIFY | _COPIES,
    ),
    "inspect": Command(
        "show how much each token of a text surprises a network, and what it expected",
        _inspect,
        "nanogpt_lite.api.inspection",
        InspectConfig,
        _OUT_DIR | {"text": "the text to read; FILE:letter.txt reads it from a file"},
        _JSON | {"table": "print a table, also where the terminal has colours"},
    ),
    "serve": Command(
        "show runs on a page, and answer requests for text by HTTP, in the form of OpenAI's API",
        _serve,
        "nanogpt_lite.server.serving",
        ServeConfig,
        _OUT_DIR,
        {"open": "open the page in a browser"},
    ),
    "plot": Command("plot the loss curves of a run to loss.png", _plot, "nanogpt_lite.runs.run_folder", texts=_OUT_DIR),
    "info": Command(
        "summarise a run: its network, costs, data and result",
        _info,
        "nanogpt_lite.runs.run_summary",
        texts=_OUT_DIR | _CHECKPOINT,
        switches=_JSON,
    ),
    "import": Command(
        "make a run from a nanoGPT checkpoint",
        _import,
        "nanogpt_lite.interop.conversion",
        texts={
            "from": "nanoGPT's ckpt.pt",
            "meta": "the meta.pkl of its data, or GPT-2's merges.txt; without it, the file that nanoGPT would read",
            "out_dir": "the new run's folder; without it, the next free runs/DATASET-N",
        },
    ),
    "export": Command(
        "write a run in the format of another program",
        _export,
        "nanogpt_lite.interop.conversion",
        texts=_OUT_DIR
        | _CHECKPOINT
        | {
            "to": "nanogpt, or hf: Hugging Face transformers",
            "path": "the folder to write, or with --weights the file; without it, a place in the run's folder",
        },
        switches={
            "weights": "write the weights only, without the optimizer's state: enough for sample and load",
            "dataset": "for nanoGPT, write the tokens too",
            "overwrite": "replace existing files",
        },
    ),
}
