"""The command line: argv -> options -> pipeline. Results go to standard output, everything else to standard error.

The options of a command are the fields of a class in `config`; `arguments` reads them. PyTorch is imported only after
that.
"""

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from nanogpt_lite.cli import arguments
from nanogpt_lite.cli.arguments import Command, Given
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import DataConfig, LoadConfig, RunConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.schema import require_known
from nanogpt_lite.errors import ExternalError, Interrupted, UserError
from nanogpt_lite.files import DISK_FULL_ERRNOS

if TYPE_CHECKING:
    from nanogpt_lite.runs.run_folder import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 a fault of the world, 2 of the user, 130/143 interrupted."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()  # None where a shell closed them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows '?'
    argv = sys.argv[1:] if argv is None else argv
    try:
        command, given = parse_command(argv)
        if "WORLD_SIZE" in os.environ:
            _require_right_for_ranks(argv[0])
        command.call(given)
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _fail(2, error)
    except Interrupted as interrupted:
        return _fail(128 + interrupted.signum, f"interrupted: {interrupted}", kind="")
    except KeyboardInterrupt:
        kept = "; what was saved before is as it was, go on from there: --init_from resume"
        return _fail(130, f"interrupted{kept if argv[0] in ('train', 'run') else ''}", kind="")
    except ExternalError as error:
        return _fail(1, error)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        remedy = "free some space" if error.errno in DISK_FULL_ERRNOS else "check the path and its permissions"
        if error.errno == errno.EFBIG:
            remedy = "raise the limit on the size of a file"
        return _fail(1, f"{what}; {remedy}")
    except (MemoryError, RuntimeError) as error:
        from nanogpt_lite.device.memory import is_out_of_memory

        smaller = "give a smaller --block_size, --n_embd or --n_layer, or --batch_size"
        remedies = {"run": smaller, "train": smaller, "sample": "give fewer --num_samples"}
        if is_out_of_memory(error):
            return _fail(
                1,
                f"out of memory; {remedies.get(argv[0], 'close other programs')}",
            )
        raise


def parse_command(argv: Sequence[str]) -> tuple[Command, Given]:
    """The command and its options. `UserError` if they cannot be understood; `SystemExit` after printing help."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        raise SystemExit(0)
    if argv[0] == "--version":
        from nanogpt_lite import __version__

        print(__version__)
        raise SystemExit(0)
    require_known([argv[0]], COMMANDS, "command")
    command = COMMANDS[argv[0]]
    return command, arguments.parse_options(argv[0], command, argv[1:])


def _run(given: Given) -> None:
    from nanogpt_lite.api import pipeline

    run, pieces = pipeline.run(**given)
    print_samples(pieces)
    print(f"for more: nanogpt-lite sample --out_dir {run.out_dir}", file=sys.stderr)


def _prepare(given: Given) -> None:
    from nanogpt_lite.data.preparation import prepare
    from nanogpt_lite.data.verification import verify_checksum
    from nanogpt_lite.tracking.console import Console

    with contextlib.closing(Console()) as console:
        dataset = prepare(given.pop("dataset", DataConfig.dataset), report=console.report, **given)
        verify_checksum(dataset, console.report)
    print(dataset)


def _train(given: Given) -> None:
    from nanogpt_lite.api import pipeline
    from nanogpt_lite.device import distributed

    run = pipeline.train(**given)
    if distributed.launched_as_main_process():
        print(run.out_dir)


def _sample(given: Given) -> None:
    from nanogpt_lite.api import inference

    print_samples(inference.stream_batch(_pick_run(given), **given))


def _eval(given: Given) -> None:
    from nanogpt_lite.api import inference

    as_json = given.pop("json")
    result = inference.evaluate(_pick_run(given), **given)
    if as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


def _plot(given: Given) -> None:
    run = _pick_run(given)
    print(run.save_plot())


def _import(given: Given) -> None:
    from nanogpt_lite.interop import conversion

    if "from" not in given:
        raise UserError("what to import? give a checkpoint of nanoGPT: --from ckpt.pt")
    run = conversion.from_nanogpt(given["from"], meta=given.get("meta"), out_dir=given.get("out_dir"))
    print(f"go on: nanogpt-lite train --init_from resume --out_dir {run.out_dir}", file=sys.stderr)
    print(run.out_dir)


def _export(given: Given) -> None:
    from nanogpt_lite.interop import conversion
    from nanogpt_lite.runs import run_folder

    weights, dataset = given["weights"], given["dataset"]
    how = {"checkpoint": given.get("checkpoint", LoadConfig.checkpoint), "overwrite": given["overwrite"]}
    if weights == ("to" in given):
        raise UserError("what to export? give one of --to nanogpt, --to hf, and --weights for the weights alone")
    if dataset and given.get("to") != "nanogpt":
        raise UserError("--dataset goes with --to nanogpt, which needs the tokens too; leave it out")
    run = _pick_run(given)
    print(f"exporting {run_folder.find_checkpoint(run, how['checkpoint'])}", file=sys.stderr)
    if weights:
        print(conversion.export_weights(run, given.get("path"), **how))
        return
    require_known([given["to"]], ["nanogpt", "hf"], "program to export to")
    there = run.out_dir.parent if run.out_dir.is_file() else run.out_dir
    folder = given.get("path", there / given["to"])
    if given["to"] == "hf":
        print(conversion.to_huggingface(run, folder, **how))
    else:
        print(conversion.to_nanogpt(run, folder, dataset=dataset, **how))


def _info(given: Given) -> None:
    from nanogpt_lite.runs import run_summary

    as_json = given.pop("json")
    run = _pick_run(given)
    content = run_summary.summary(run, **given)
    print(json.dumps(content) if as_json else run_summary.format_text(content))


def _pick_run(given: Given) -> "Run":
    """The run in --out_dir, else the newest one; which that is, it says."""
    from nanogpt_lite.runs import run_folder

    if out_dir := given.pop("out_dir", None):
        return run_folder.existing_run(out_dir)
    run = run_folder.newest_run()
    print(f"using the newest run: {run.out_dir}", file=sys.stderr)
    return run


def print_samples(pieces: Iterator[list[str]]) -> list[str]:
    """Print the first sample as it comes, the others after it, in order, with a line between two; all of them."""
    samples: list[list[str]] = []
    for new in pieces:
        print(new[0], end="", flush=True)
        samples.append(new)
    print()
    texts = ["".join(row) for row in zip(*samples, strict=True)]
    for text in texts[1:]:
        print("---------------")
        print(text)
    return texts


_PRESET = {"preset": f"named values: {', '.join(presets.PRESETS)}; without one, what fits the device"}
_CONFIG = {"config": "JSON file of options, such as a run's config.json, to repeat that run"}
_OVERWRITE_RUN = {"overwrite": "replace the run that out_dir holds"}
_CHECKPOINT = {"checkpoint": "best (without it), last, or the name of a kept one"}
_OUT_DIR = {"out_dir": "the run's folder; without one, the newest run under runs/"}

COMMANDS = {
    "run": Command(
        "prepare, train and sample, on whatever this machine has",
        _run,
        RunConfig,
        _PRESET | _CONFIG,
        _OVERWRITE_RUN,
    ),
    "prepare": Command(
        "write a text as token ids, for training",
        _prepare,
        DataConfig,
        {"out_dir": "where to; without it data/NAME"},
        {"overwrite": "fetch and write again, even if nothing changed"},
    ),
    "train": Command("train a network, or go on training it", _train, TrainConfig, _PRESET | _CONFIG, _OVERWRITE_RUN),
    "sample": Command("draw text from a trained network", _sample, SampleConfig, _OUT_DIR),
    "eval": Command(
        "the loss over the whole val and train splits",
        _eval,
        LoadConfig,
        _OUT_DIR | {"dataset": "another dataset than the one trained on"},
        {"json": "print one JSON object"},
    ),
    "plot": Command("draw the loss curves into loss.png", _plot, texts=_OUT_DIR),
    "info": Command(
        "what a run is: its network, costs, data and result",
        _info,
        texts=_OUT_DIR | _CHECKPOINT,
        switches={"json": "print one JSON object"},
    ),
    "import": Command(
        "make a run of a checkpoint of nanoGPT",
        _import,
        texts={
            "from": "nanoGPT's ckpt.pt",
            "meta": "the meta.pkl of its data, or GPT-2's merges.txt; without it, what nanoGPT would take",
            "out_dir": "the run's folder; without one, the next free runs/DATASET-N",
        },
    ),
    "export": Command(
        "write a run for other programs",
        _export,
        texts=_OUT_DIR
        | _CHECKPOINT
        | {
            "to": "nanogpt, or hf: Hugging Face's transformers",
            "path": "where to: a folder, or with --weights a file; without it, a place in the run's folder",
        },
        switches={
            "weights": "the weights alone, without the optimizer's state: what sample and load need",
            "dataset": "for nanoGPT, the tokens too",
            "overwrite": "replace files that are there",
        },
    ),
}


def _overview() -> str:
    """The help of the whole program: its commands, and every option, under the command that has them all."""
    lines = ["usage: nanogpt-lite COMMAND [OPTIONS]", "", "Train small GPTs on any text.", "", "commands:"]
    lines += [f"  {name:<9} {command.help}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "`nanogpt-lite COMMAND --help` lists the options of one command. `run` has all of them:",
        "",
    ]
    return "\n".join(lines) + arguments.format_help("run", COMMANDS["run"])


def _require_right_for_ranks(command: str) -> None:
    """`UserError` if several ranks were started for something that one process does."""
    if command != "train" and os.environ["WORLD_SIZE"] != "1":
        raise UserError(f"several ranks can train, and not {command}; use nanogpt-lite {command} without torchrun")


def _fail(status: int, message: object, kind: str = "error: ") -> int:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    number = os.environ.get("RANK", "0")
    with contextlib.suppress(OSError):  # if nobody reads it any more, the status still tells
        if number == "0":
            print(f"{kind}{message}", file=sys.stderr)
        elif kind:  # an error; that it was interrupted, one rank says for all
            print(f"rank {number}: {kind}{message}", file=sys.stderr)
    return status


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
