"""Parsing of the command line, and the help."""

import re
import subprocess
import sys

import pytest

from nanogpt_lite.cli import arguments
from nanogpt_lite.cli.commands import COMMANDS
from nanogpt_lite.cli.main import main, parse_command
from nanogpt_lite.config.options import RunConfig
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.errors import UserError

SWITCHES = {"overwrite": False, "verify": False}  # of train; they are always present


def parse(line):
    """The options of a command line that were given."""
    return parse_command(line.split())[1]


def print_help(argv, capsys):
    """What a command line with --help prints."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_both_spellings_of_names_and_both_ways_to_give_a_value():
    expected = {"n_layer": 4, "bias": False, "learning_rate": 1.0, "compile": False, **SWITCHES}
    for line in (
        "train --n_layer 4 --bias False --learning_rate 1 --compile=False",
        "train --n-layer=4 --bias=false --learning-rate=1 --compile False",
    ):
        assert parse(line) == expected


def test_only_given_options_are_passed_on():
    assert parse("train") == SWITCHES
    assert parse("train --max_iters 5000 --overwrite") == {**SWITCHES, "max_iters": 5000, "overwrite": True}
    assert parse_command(["sample", "--start", "\n", "--stop="])[1] == {"start": "\n", "stop": ""}


@pytest.mark.parametrize("text", ["a=b", "- a b", "-1", "-", "\0", "100 %", "@file", "`x`"])
def test_values_are_taken_as_they_are(text):
    for argv in (["--start", text], [f"--start={text}"]):
        assert parse_command(["sample", *argv, "--top_k", "3"])[1] == {"start": text, "top_k": 3}


@pytest.mark.parametrize("text", ["-x", "--stop", "--top-k", "--help"])
def test_value_that_looks_like_an_option_follows_an_equals_sign(text):
    assert parse_command(["sample", f"--start={text}"])[1] == {"start": text}
    with pytest.raises(UserError, match="--start needs a value"):
        parse_command(["sample", "--start", text])


def test_two_dashes_after_an_equals_sign_are_the_value():
    """Found by fuzzing: `argparse` drops them, and the value was an empty list."""
    assert parse_command(["sample", "--stop=--"])[1] == {"stop": "--"}
    assert parse_command(["info", "--out_dir=--"])[1] == {"out_dir": "--", "json": False}
    with pytest.raises(UserError, match="`lr_decay_iters='--'` is an invalid value"):
        parse_command(["run", "--lr_decay_iters=--"])


@pytest.mark.parametrize("argument", ["a\r\nb\nc", "9" * 5000, "--x\ny\nz"])
@pytest.mark.parametrize("command", ["train", "prepare", "sample", "import", "eval"])
def test_message_about_an_unknown_argument_is_one_short_line(command, argument):
    """Found by fuzzing: the remedy repeated an argument with line breaks as it is."""
    with pytest.raises(UserError, match="unknown argument") as caught:
        parse_command([command, argument])
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_the_last_value_of_a_repeated_option_counts():
    expected = {**SWITCHES, "n_layer": 5, "overwrite": True}
    assert parse("train --n_layer 4 --overwrite --n-layer=5 --overwrite") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --n_lay 4", "unknown argument '--n_lay'; did you mean --n_layer?"),
        ("train -n_layer 4", "unknown argument '-n_layer'; did you mean --n_layer?"),
        ("train --no-overwrite", "unknown argument '--no-overwrite'; did you mean --overwrite?"),
        ("train --zzz=1", "unknown argument '--zzz=1'; --help lists the options"),
        ("train --json", "unknown argument '--json'; --help lists the options"),
        ("train my.txt", "unknown argument 'my.txt'; did you mean --dataset my.txt? A preset is chosen by --preset"),
        ("train -- my.txt", "unknown argument 'my.txt'; did you mean --dataset my.txt? A preset is chosen by --preset"),
        ("run modern", "unknown argument 'modern'; did you mean --preset modern?"),
        ("prepare my.txt", "unknown argument 'my.txt'; did you mean --dataset my.txt?"),
        ("plot runs/a", "unknown argument 'runs/a'; did you mean --out_dir runs/a?"),
        (
            "train --n_layer",
            "--n_layer needs a value: give --n_layer VALUE, or --n_layer=VALUE if the value begins with a minus sign; "
            "see nanogpt-lite train --help",
        ),
        (
            "sample --start --stop x",
            "--start needs a value: give --start VALUE, or --start=VALUE if the value begins with a minus sign; "
            "see nanogpt-lite sample --help",
        ),
        (
            "eval --json=True",
            "--json takes no value: give --json alone; see nanogpt-lite eval --help",
        ),
        ("eval --copies True", "--copies takes no value: give --copies alone; see nanogpt-lite eval --help"),
        ("eval --copies False", "--copies takes no value: leave --copies out; see nanogpt-lite eval --help"),
        (
            "train --overwrite True --compile True",
            "--overwrite takes no value: give --overwrite alone; see nanogpt-lite train --help",
        ),
        ("eval True --copies", "unknown argument 'True'; did you mean --out_dir True?"),
        ("eval --dataset json True", "unknown argument 'True'; did you mean --out_dir True?"),
    ],
)
def test_message_for_an_argument_that_cannot_be_parsed(line, message):
    with pytest.raises(UserError) as caught:
        parse(line)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_lists_its_options(capsys, name):
    printed = print_help([name, "--help"], capsys)
    assert printed.startswith(f"usage: nanogpt-lite {name} [OPTIONS]\n\n{COMMANDS[name].help}\n")
    for option in COMMANDS[name].option_names():
        assert len(re.findall(rf"^  --{option}( |$)", printed, re.M)) == 1, option
    assert print_help([name, "-h"], capsys) == printed


def test_help_explains_every_option_with_unit_and_default_and_imports_no_torch():
    script = """if True:
        import sys
        from nanogpt_lite.cli.main import main
        try:
            main(["--help"])
        finally:
            assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    printed = re.sub(r"\s+", " ", done.stdout)
    for name in RunConfig.names():
        field = RunConfig.__dataclass_fields__[name]
        assert f"--{name} " in printed
        assert re.sub(r"\s+", " ", field.metadata["help"]) in printed
        default = repr(field.default) if field.type is str else f"{field.default} {field.metadata['unit']}".strip()
        assert f"(default: {default}" in printed, name
    assert all(f" {name} " in printed for name in COMMANDS)


def test_help_shows_the_values_of_presets():
    printed = re.sub(r"\s+", " ", arguments.format_help("train", COMMANDS["train"]))
    for preset, values in PRESETS.items():
        for name, value in values.items():
            defaults = re.findall(rf" --{name} .*?\(default: (.*?)\)", printed)
            assert f"{preset}: {value}" in defaults[0].split("; ")[1:]


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_help_is_wrapped_to_the_width_of_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = arguments.format_help("run", COMMANDS["run"]).splitlines()
    assert columns - 10 < max(map(len, lines)) < columns
    assert {len(line) - len(line.lstrip()) for line in lines if line.startswith("  ")} == {2, arguments.HELP_COLUMN}
    assert not [line for line in lines if line.endswith("-")]  # no line ends within "modern-cpu"
