"""The program `nanogpt-lite`: runs one command, reports errors, and returns the exit status.

Results go to standard output, everything else to standard error. The commands are in `commands`, their options in
`arguments`. PyTorch is imported only after the options have been checked.
"""

import atexit
import contextlib
import errno
import gc
import importlib
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from nanogpt_lite.cli import arguments
from nanogpt_lite.cli.arguments import Command, GivenOptions
from nanogpt_lite.cli.commands import COMMANDS
from nanogpt_lite.config import recipe
from nanogpt_lite.config.schema import require_known
from nanogpt_lite.config.spelling import for_command_line, quote
from nanogpt_lite.device import signals
from nanogpt_lite.errors import ExternalError, Interrupted, UserError
from nanogpt_lite.files import DISK_FULL_ERRNOS

_SMALLER_NETWORK = "give a smaller --block_size, --n_embd or --n_layer, or --batch_size"
OUT_OF_MEMORY_REMEDIES = {
    "run": _SMALLER_NETWORK,
    "train": _SMALLER_NETWORK,
    "sample": "give fewer --num_samples",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done; 1: a failure outside the program; 2: a mistake of the user; 129, 130 or 143: interrupted by SIGHUP, Ctrl-C
    or SIGTERM; 141: the reader of the output closed it.
    """
    atexit.register(gc.freeze)  # else a last garbage collection visits all objects of PyTorch, for up to a second
    sys.stdout, sys.stderr = sys.stdout or _open_null(), sys.stderr or _open_null()  # None where a shell closed them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # '?' for a character that the terminal does not have
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    try:
        command, given = parse_command(argv)
        _require_one_process_unless_training(name)
        with signals.exit_on_interrupt():
            importlib.import_module(command.module)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command.call(given)
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _fail(2, f"error: {for_command_line(str(error))}")
    except Interrupted as error:
        return _interrupted(128 + error.signum, _resume_hint(name, error))
    except KeyboardInterrupt:
        saved = "; earlier checkpoints are unchanged: --out_dir RUN --init_from resume continues from the last one"
        return _interrupted(130, f"interrupted{saved if name in ('train', 'run') else ''}")
    except ExternalError as error:
        return _fail(1, f"error: {for_command_line(str(error))}")
    except OSError as error:
        if _is_closed_pipe(error):  # the reader of the output, such as `head`, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        return _fail(1, f"error: {_describe_os_error(error)}")
    except (MemoryError, RuntimeError) as error:
        from nanogpt_lite.device.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(1, f"error: out of memory; {OUT_OF_MEMORY_REMEDIES.get(name, 'close other programs')}")


def parse_command(argv: Sequence[str]) -> tuple[Command, GivenOptions]:
    """The command and its options. `UserError` if they are not valid; `SystemExit` after printing help or version."""
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


def _overview() -> str:
    """The help of the program: its commands, then the options of `run`, which has those of all configs."""
    of_both = recipe.fitted_names("modern")
    of_cpu = [name for name in recipe.fitted_names("modern-cpu") if name not in of_both]
    lines = ["usage: nanogpt-lite COMMAND [OPTIONS]", "", "Train small GPTs on any text.", "", "commands:"]
    lines += [f"  {name:<9} {command.help}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "nanogpt-lite COMMAND --help shows the options of one command. Those of run:",
        "",
        "A default in brackets applies without a preset; after it, the presets with another value.",
        "Without --preset, a training on a CPU has the preset modern-cpu, and one on a GPU modern.",
        *textwrap.wrap(
            f"These two follow the text, which decides {', '.join(of_both)}, and with modern-cpu also "
            f"{', '.join(of_cpu)}, unless they are given. The values below are about those for tiny Shakespeare in "
            "float32.",
            width=100,
        ),
    ]
    return "\n".join([*lines, "", arguments.format_help("run", COMMANDS["run"])]).rstrip()


def _require_one_process_unless_training(command: str) -> None:
    """`UserError` if torchrun started several processes for a command that one process executes."""
    if command != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"only training runs on several ranks; use nanogpt-lite {command} without torchrun")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning: one of this program as a line, others as Python does."""
    is_own = Path(filename).is_relative_to(Path(__file__).parents[1])
    text = f"warning: {for_command_line(str(message))}\n" if is_own else None
    (file or sys.stderr).write(text or warnings.formatwarning(message, category, filename, lineno, line))


def _resume_hint(command: str, interrupted: Interrupted) -> str:
    """What was saved, and the command that continues the run."""
    hint = f"interrupted: {for_command_line(str(interrupted))}"
    if interrupted.out_dir is not None:
        out_dir = quote(interrupted.out_dir)
        hint += f"; continue with: nanogpt-lite {command} --out_dir {out_dir} --init_from resume"
    return hint


def _is_closed_pipe(error: OSError) -> bool:
    """Whether a write failed because the reader closed the pipe."""
    if sys.platform != "win32" or error.errno != errno.EINVAL or error.filename is not None:
        return isinstance(error, BrokenPipeError)
    try:  # Windows says "invalid argument", as of other errors too; what could not be written is still in the buffer
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _describe_os_error(error: OSError) -> str:
    reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno == errno.EFBIG:
        return f"{reason}; raise the limit on the size of a file"
    if sys.platform == "win32" and isinstance(error, PermissionError):
        return f"{reason}; check the path and its permissions, and close other programs that have the file open"
    return f"{reason}; {'free some space' if error.errno in DISK_FULL_ERRNOS else 'check the path and its permissions'}"


def _fail(status: int, message: str) -> int:
    """Print a message to standard error, with the rank if there are several. The exit status is returned."""
    rank = os.environ.get("RANK", "0")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # standard error may be closed; the exit status remains
        print(message if rank == "0" else f"rank {rank}: {message}", file=sys.stderr)
    return status


def _interrupted(status: int, message: str) -> int:
    """Like `_fail`, on the first rank only: the signal reaches all of them."""
    return _fail(status, message) if os.environ.get("RANK", "0") == "0" else status


def _open_null() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
