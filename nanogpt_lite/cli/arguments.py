"""The options that follow a command: parsing and help.

`argparse` splits the arguments and lays out the help; `config.schema` converts and checks the values. The table of
commands is in `commands`.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanogpt_lite.config.options import (
    DataConfig,
    FilterConfig,
    InspectConfig,
    LoadConfig,
    NetworkConfig,
    RuntimeConfig,
    SampleConfig,
    ServeConfig,
    TrainConfig,
)
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.config.schema import Options, Value, parse_values, type_of
from nanogpt_lite.config.spelling import quote
from nanogpt_lite.errors import UserError, shorten

HELP_COLUMN = 26  # where the help of an option begins; a longer option has a line of its own
MIN_HELP_WIDTH = 20
METAVARS: dict[type[Value], str] = {int: "INT", float: "FLOAT", bool: "True|False", str: "TEXT"}

# The config classes whose own fields form one group of the help, in the order of the pipeline.
GROUPS = {
    "data": DataConfig,
    "network": NetworkConfig,
    "train": TrainConfig,
    "load": LoadConfig,
    "sample": SampleConfig,
    "filter": FilterConfig,
    "inspect": InspectConfig,
    "serve": ServeConfig,
    "runtime": RuntimeConfig,
}

GivenOptions = dict[str, Any]
"""The options given on one command line, checked and converted to their types. Switches are always present."""


@dataclass(frozen=True)
class Command:
    """A command and its options: the fields of `kind`, further text options, and switches (options without a value)."""

    help: str
    call: Callable[[GivenOptions], None]
    module: str  # which `call` imports, with all that is large: PyTorch, NumPy
    kind: type[Options] = Options
    texts: dict[str, str] = field(default_factory=dict)  # name -> help
    switches: dict[str, str] = field(default_factory=dict)  # name -> help

    def option_names(self) -> list[str]:
        """The names of all options of this command."""
        return [*self.texts, *self.switches, *self.kind.names()]


def parse_options(name: str, command: Command, argv: Sequence[str]) -> GivenOptions:
    """The options in `argv`. `UserError` if they are not valid; `SystemExit` after printing the help."""
    names = command.option_names()
    arguments = [_with_underscores(argument, names) for argument in argv]
    try:
        parsed, unknown = _make_parser(name, command).parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{_explain(str(error.argument_name), command)}; see nanogpt-lite {name} --help") from None
    unknown = [argument for argument in unknown if argument != "--"]
    if unknown:
        for flag, value in itertools.pairwise(arguments):
            if flag in [f"--{switch}" for switch in command.switches] and value == unknown[0] in ("True", "False"):
                message = _explain(flag, command) if value == "True" else f"{flag} takes no value: leave {flag} out"
                raise UserError(f"{message}; see nanogpt-lite {name} --help")
        raise UserError(_unknown_argument(unknown[0], command))
    # in Python 3.11 and 3.12, argparse drops the value of "--stop=--" and leaves an empty list
    given = {option: "--" if value == [] else value for option, value in vars(parsed).items()}
    texts = {name: given[name] for name in command.kind.names() if name in given}
    return {**given, **parse_values(command.kind, texts)}


def format_help(name: str, command: Command) -> str:
    """What `nanogpt-lite NAME --help` prints."""
    return _make_parser(name, command).format_help()


def _make_parser(name: str, command: Command) -> argparse.ArgumentParser:
    """A parser that leaves out what was not given, and raises `ArgumentError` instead of ending the process."""
    width = max(shutil.get_terminal_size().columns - 2, HELP_COLUMN + MIN_HELP_WIDTH)
    parser = argparse.ArgumentParser(
        usage=f"nanogpt-lite {name} [OPTIONS]",
        description=command.help,
        # RawText: the help is wrapped here, because argparse would also break lines at hyphens ("modern-" "cpu").
        formatter_class=functools.partial(argparse.RawTextHelpFormatter, max_help_position=HELP_COLUMN, width=width),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )

    def wrap(*paragraphs: str) -> str:
        lines = (textwrap.fill(text, width - HELP_COLUMN, break_on_hyphens=False) for text in paragraphs)
        return "\n".join(lines).replace("%", "%%")  # argparse formats the help with %

    group = parser.add_argument_group("command options")
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    for text, text_help in command.texts.items():
        group.add_argument(f"--{text}", metavar="TEXT", help=wrap(text_help))
    for switch, switch_help in command.switches.items():
        group.add_argument(f"--{switch}", action="store_true", default=False, help=wrap(switch_help))
    for title, kind in GROUPS.items():
        group = parser.add_argument_group(f"{title} options")  # argparse does not show an empty group
        for option in dataclasses.fields(command.kind):
            if option.name in inspect.get_annotations(kind):
                option_help = wrap(option.metadata["help"], _describe_default(option))
                group.add_argument(f"--{option.name}", metavar=METAVARS[type_of(option)], help=option_help)
    return parser


def _describe_default(option: "dataclasses.Field[Any]") -> str:
    """The default value, and the values that presets have instead."""
    default = repr(option.default) if option.type is str else f"{option.default} {option.metadata['unit']}".rstrip()
    of_presets = [f"{name}: {values[option.name]}" for name, values in PRESETS.items() if option.name in values]
    return f"(default: {'; '.join([default, *of_presets])})"


def _with_underscores(argument: str, names: Collection[str]) -> str:
    """`--n-layer=4` as `--n_layer=4`, if that is one of `names`; any other argument unchanged."""
    flag, equals, value = argument.partition("=")
    name = flag[2:].replace("-", "_")
    return f"--{name}{equals}{value}" if flag.startswith("--") and name in names else argument


def _explain(flag: str, command: Command) -> str:
    """The message for an option without a value, or for a switch with one."""
    types = {option.name: type_of(option) for option in dataclasses.fields(command.kind)}
    if types.get(flag.removeprefix("--")) is bool:
        return f"{flag} needs a value: give {flag} True or {flag} False"
    if flag.removeprefix("--") in (*command.texts, *types):
        return f"{flag} needs a value: give {flag} VALUE, or {flag}=VALUE if the value begins with a minus sign"
    return f"{flag} takes no value: give {flag} alone"


def _unknown_argument(argument: str, command: Command) -> str:
    """The message for an argument that the command does not have, with the option that was probably meant."""
    argument = shorten(argument)
    if argument.startswith("-"):
        name = argument.split("=")[0].lstrip("-").replace("-", "_")
        nearest = difflib.get_close_matches(name, command.option_names(), n=1)
        remedy = f"did you mean --{nearest[0]}?" if nearest else "--help lists the options"
    elif "preset" in command.texts and argument in PRESETS:
        remedy = f"did you mean --preset {argument}?"
    elif "preset" in command.texts:
        remedy = f"did you mean --dataset {quote(argument)}? A preset is chosen by --preset"
    elif "dataset" in command.kind.names():
        remedy = f"did you mean --dataset {quote(argument)}?"
    else:
        remedy = f"did you mean --out_dir {quote(argument)}?"
    return f"unknown argument {argument!r}; {remedy}"
