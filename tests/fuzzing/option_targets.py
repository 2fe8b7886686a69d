"""Fuzz targets: options, command lines, and sampling with any options."""

import contextlib
import io
import itertools
import random
from typing import Any, NoReturn
from unittest.mock import patch

import nanogpt_lite as ng
from fuzzing.fixtures import MODERN_OPTIONS, PLAIN_OPTIONS, RUN, train
from fuzzing.mutations import any_json, any_text
from fuzzing.target import Snapshot, Target
from nanogpt_lite.api import main_job, pipeline
from nanogpt_lite.cli import main
from nanogpt_lite.cli.commands import COMMANDS
from nanogpt_lite.cloud import sweeps
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import RunConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.schema import Options, parse_values, type_of
from nanogpt_lite.config.spelling import for_command_line, for_modal
from nanogpt_lite.data import download
from nanogpt_lite.errors import shorten
from nanogpt_lite.server import serving

NUMBERS = ["3", "0", "-1", "1", "7", "64", "1e9", "0.5", "1e-9", "nan", "inf", "-inf", "1_000", "٣", " 3", "+3", "0x10"]
NUMBERS += ["9" * 30, "9" * 5000, "1e400", "-0.0", "2147483648", "9223372036854775808", "1e-400"]
WORDS = ["true", "False", "cpu", "cuda:7", "meta", "auto", "bottles.txt", "FILE:x", "runs", "resume", "gpt-2", "", "\0"]
WORDS += ["char", "bpe-260", "bpe-0", "float32", "rotary", "muon", "best", "step_000001", "cpu,cuda", "1,2", "a,"]


def option_text(rng: random.Random) -> str:
    """The text of an option's value: a number, a word, or any text."""
    return rng.choice([rng.choice(NUMBERS), rng.choice(WORDS), any_text(rng, 3)])


def option_name(rng: random.Random, kind: type[Options]) -> str:
    """The name of an option, sometimes with a mistake."""
    name = rng.choice(kind.names())
    return name if rng.random() < 0.97 else name[:-1] + any_text(rng, 1)


def valid_looking_value(rng: random.Random, kind: type[Options], name: str) -> Any:
    """A value of the option's type, or any JSON."""
    field = kind.__dataclass_fields__.get(name)
    if field is None or rng.random() < 0.15:
        return any_json(rng)
    if type_of(field) is int:
        return rng.choice([0, 1, 2, 7, 64, 10**6, 10**12, 2**63 - 1, -1, rng.randint(0, 300)])
    if type_of(field) is float:
        return rng.choice([0, 0.0, 1.0, 0.5, 1e-9, 1e30, 1e-320, rng.random(), rng.uniform(0, 1000), float("nan")])
    return rng.choice([True, False]) if type_of(field) is bool else rng.choice([*WORDS, any_text(rng, 2)])


class OptionTexts(Target[tuple[str, dict[str, str]]]):
    """The options of a command line, of a preset and of a sweep, as texts."""

    name, share = "option-texts", 50

    def generate(self, rng: random.Random) -> tuple[str, dict[str, str]]:
        preset = rng.choice([*ng.PRESETS, any_text(rng, 1)]) if rng.random() < 0.3 else rng.choice(list(ng.PRESETS))
        texts = {option_name(rng, RunConfig): option_text(rng) for _ in range(rng.randint(1, 3))}
        return preset, texts

    def run(self, example: tuple[str, dict[str, str]]) -> None:
        preset, texts = example
        try:
            sweeps.make_trials({**texts, "seed": "1,2"}, preset=preset, sweep_iters=1, name="sweep")
        except ng.UserError as error:
            for_modal(str(error))
        values = parse_values(RunConfig, texts)
        of_training = {name: value for name, value in values.items() if name in TrainConfig.names()}
        config = presets.config_with_preset(preset, of_training)
        assert TrainConfig.from_dict(config.stored()).stored() == config.stored()


class OptionValues(Target[dict[str, Any]]):
    """Options as keyword arguments: a config with any values is refused or can be stored and read again."""

    name, share = "option-values", 50

    def generate(self, rng: random.Random) -> dict[str, Any]:
        names = [option_name(rng, TrainConfig) for _ in range(rng.randint(1, 4))]
        return {name: valid_looking_value(rng, TrainConfig, name) for name in names}

    def run(self, example: dict[str, Any]) -> None:
        try:
            config = TrainConfig.from_dict(example)
        except ng.UserError as error:
            for_command_line(str(error))
            raise
        assert TrainConfig.from_dict(config.stored()).stored() == config.stored()


class CommandLine(Target[list[str]]):
    """Any words as a command line: the exit status is 0, 1 or 2, and no traceback is shown. Nothing is trained."""

    name, share = "command-line", 25

    def __init__(self) -> None:
        train(PLAIN_OPTIONS)
        self.files = {folder: Snapshot(folder) for folder in (RUN.parent, RUN.parents[1] / "data")}

    def generate(self, rng: random.Random) -> list[str]:
        command = rng.choice(list(COMMANDS)) if rng.random() < 0.95 else self._word(rng)
        names = COMMANDS[command].option_names() if command in COMMANDS else RunConfig.names()
        words = [command]
        if command == "sample":  # its default length would take long
            words += ["--max_new_tokens", "3"]
        for _ in range(rng.randint(0, 3)):
            flag = f"--{rng.choice(names)}"
            words += rng.choice([[flag, self._word(rng)], [f"{flag}={self._word(rng)}"], [flag], [self._word(rng)]])
        return words

    def _word(self, rng: random.Random) -> str:
        """A word that is no path to another folder: commands write to the path that they are given."""
        word = option_text(rng).replace("/", "-").replace("\\", "-").replace("~", "-").replace("..", ".")
        return word if rng.random() < 0.9 else f"--{word}"

    def run(self, example: list[str]) -> None:
        for files in self.files.values():
            files.restore()
        error = io.StringIO()
        with (
            patch.object(pipeline, "train", _validate_only(TrainConfig)),
            patch.object(main_job, "run", _validate_only(RunConfig)),
            patch.object(serving, "_run", lambda *arguments, **options: None),
            patch.object(download, "fetch", _offline),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(error),
        ):
            try:
                status: object = main.main(example)
            except SystemExit as ended:
                status = ended.code
        assert status in (0, 1, 2), f"exit status {status}"
        assert "Traceback" not in error.getvalue()
        if status:
            _, _, message = error.getvalue().partition("error: ")  # notes may come before it
            for word in itertools.chain.from_iterable(argument.split("=") for argument in example):  # may be repeated
                message = message.replace(word, shorten(word, 100))
            raise ng.UserError(message.strip())


def _validate_only(kind: type[Options]) -> Any:
    def validate(**arguments: Any) -> NoReturn:
        switches = {"preset", "config", "overwrite", "verify", "console"}
        kind.from_dict({name: value for name, value in arguments.items() if name not in switches})
        raise ng.UserError("the arguments are valid, and the fuzz target stops here")

    return validate


def _offline(*_arguments: object, **_options: object) -> NoReturn:
    raise ng.ExternalError("no network while fuzzing")


class Sampling(Target[dict[str, Any]]):
    """Sampling from a tiny network with any options: text, or a `UserError`."""

    name, share = "sampling", 40

    def __init__(self) -> None:
        self.network = ng.load(train(MODERN_OPTIONS), device="cpu")

    def generate(self, rng: random.Random) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for _ in range(rng.randint(1, 5)):
            name = option_name(rng, SampleConfig)
            if name not in ("num_samples", "threads"):
                options[name] = valid_looking_value(rng, SampleConfig, name)
        # a large number of rows uses up the memory, as it is asked to
        return {**options, "num_samples": rng.choice([0, 1, 1, 1, 3]), "threads": 1}

    def run(self, example: dict[str, Any]) -> None:
        chunks = list(itertools.islice(ng.stream_batch(self.network, **example), 5))
        assert all(len(texts) == example["num_samples"] for texts in chunks)
        if 0 < example.get("temperature", 1) < 1e-9:
            greedy = ng.stream_batch(self.network, **{**example, "temperature": 0})
            assert chunks == list(itertools.islice(greedy, 5)), "not the most likely tokens"
