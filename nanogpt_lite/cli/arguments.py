"""What stands after a command: its options, read from the command line, and their help.

`tyro` splits the line and formats the help; `options` turns texts into values and judges them. Which commands there
are is the business of `cli`.
"""

import contextlib
import dataclasses
import difflib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Annotated, Any

import tyro

from nanogpt_lite.config import presets
from nanogpt_lite.config.schema import Options, parse_values, type_of
from nanogpt_lite.errors import UserError

UNSET = "\0"  # no command line can hold this character

Given = dict[str, Any]
"""The options of one call that were given explicitly, checked and of their own type; switches are all there."""


@dataclass(frozen=True)
class Command:
    """A command: what it does, and its options: those of `kind`, further texts, and switches."""

    help: str
    call: Callable[[Given], None]
    kind: type[Options] = Options
    texts: dict[str, str] = field(default_factory=dict)
    switches: dict[str, str] = field(default_factory=dict)


def parse_options(name: str, command: Command, argv: Sequence[str]) -> Given:
    """The options in `argv`. `UserError` if they cannot be understood; `SystemExit` after printing help."""
    found, unknown = _split(name, command, argv)
    if unknown:
        raise UserError(_unknown(unknown[0], command))
    texts = {name: text for name, text in found.items() if text != UNSET}
    of_kind = {name: str(text) for name, text in texts.items() if name in command.kind.names()}
    return {**texts, **parse_values(command.kind, of_kind)}


def format_help(name: str, command: Command) -> str:
    """What `--help` after a command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        _split(name, command, ["--help"])
    return text.getvalue()


def _split(name: str, command: Command, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The text of each option (NOT_GIVEN if it was not), whether each switch was, and what is neither."""
    groups = [(title, _group(title, fields)) for title, fields in _groups(command).items()]
    form = dataclasses.make_dataclass(name, [(t, kind, field(default_factory=kind)) for t, kind in groups])
    form.__doc__ = command.help
    found: Any
    with _one_line_errors():
        found, unknown = tyro.cli(
            form,
            config=[tyro.conf.OmitArgPrefixes],
            prog=f"nanogpt-lite {name}",
            description=command.help,
            args=argv,
            use_underscores=True,
            return_unknown_args=True,
        )
    flat = {key.removesuffix("_"): value for group in vars(found).values() for key, value in vars(group).items()}
    return flat, unknown


def _groups(command: Command) -> dict[str, list[tuple[str, Any, Any]]]:
    """The command's options as (name, type, default), under the headings of its help, in the order of the road."""
    titles = ("command", "data", "network", "train", "load", "sample", "runtime")
    groups: dict[str, list[tuple[str, Any, Any]]] = {title: [] for title in titles}
    for name, words in command.texts.items():
        safe = f"{name}_" if iskeyword(name) else name  # no field can be called `from`
        groups["command"].append((safe, _text_option(words, "TEXT", "", name=name), UNSET))
    for name, words in command.switches.items():
        groups["command"].append(
            (name, Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help=words)], False)
        )
    for option in dataclasses.fields(command.kind):
        owner = next(
            kind for kind in reversed(command.kind.__mro__) if option.name in getattr(kind, "__annotations__", {})
        )
        title = owner.__name__.removesuffix("Config").lower()
        if option.name not in command.texts:
            metavar = {int: "INT", float: "FLOAT", bool: "True|False", str: "TEXT"}[type_of(option)]
            described = _text_option(option.metadata["help"], metavar, _default(option))
            groups[title].append((option.name, described, UNSET))
    return {title: options for title, options in groups.items() if options}


def _text_option(words: str, metavar: str, hint: str, name: str | None = None) -> Any:
    return Annotated[str, tyro.conf.arg(help=words, metavar=metavar, help_behavior_hint=hint, name=name)]


def _default(option: "dataclasses.Field[Any]") -> str:
    """The default, and what presets have instead."""
    others = [f"{name}: {values[option.name]}" for name, values in presets.PRESETS.items() if option.name in values]
    shown = repr(option.default) if option.type is str else f"{option.default} {option.metadata['unit']}".rstrip()
    return f"(default: {'; '.join([shown, *others])})"


def _group(title: str, fields: list[tuple[str, Any, Any]]) -> type:
    return dataclasses.make_dataclass(title, fields)


def _unknown(argument: str, command: Command) -> str:
    """What to say of an argument that nobody asked for."""
    name = argument.split("=")[0].lstrip("-").replace("-", "_")
    known = [*command.texts, *command.switches, *command.kind.names()]
    near = difflib.get_close_matches(name, known, n=1) if argument.startswith("-") else []
    remedy = f"did you mean --{near[0]}?" if near else "--help lists the options"
    if not argument.startswith("-") and "dataset" in command.kind.names():
        remedy = f"did you mean --dataset {argument}? A recipe is chosen by --preset"
    elif not argument.startswith("-") and "out_dir" in command.texts:
        remedy = f"did you mean --out_dir {argument}?"
    return f"unknown argument {argument!r}; {remedy}"


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the box in which tyro explains what it could not split into a `UserError` of one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        frame = "│╭╮╰╯─|+ "  # and lines of dashes where the terminal has no such characters
        lines = [line.strip(frame) for line in box.getvalue().splitlines() if line.strip(frame + "-")]
        text, _, see = " ".join(lines[1:]).partition(" For full helptext, run")
        raise UserError(f"{text.rstrip('.')}; see{see}") from None
