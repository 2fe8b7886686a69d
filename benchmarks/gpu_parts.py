"""The parts of `on_gpu.py`: what one program measures in one go. Each is tried by itself, both programs in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gpu_rows import (
    GOAL,
    LITE,
    LOSS,
    MEMORY,
    MODERN_LAST,
    MODERN_LOSS,
    MODERN_MEMORY,
    MODERN_SECONDS,
    MODERN_STEP,
    NANOGPT,
    ONE_SAMPLE,
    SECONDS,
    SEEDS,
    SPRINT,
    STEP,
    TEN_SAMPLES,
)
from harness import Harness, save_networks
from table import Row, Values
from training_logs import TrainingLog, train_lite, train_nanogpt

SPEED_STEPS = 400  # of a run that only measures the speed
NEVER = 100_000  # an interval that no run reaches
# a quick check on a CPU: the shape of the network in both programs, and the lengths of their runs
SHAPE = {"n_layer": 1, "n_head": 6, "n_embd": 48, "block_size": 32}
SHORT = {**SHAPE, "batch_size": 4}
SHORT_STEPS, SHORT_LOG_INTERVAL, SHORT_SAMPLE = 20, 2, 20
NANOGPT_SAMPLES = 2  # each takes the same time


@dataclass(frozen=True)
class Part:
    """What one program measures in one go."""

    name: str
    program: str
    rows: tuple[Row, ...]  # those that it has values for
    measure: Callable[[Harness], Values]  # `ExternalError` if it fails


def make_parts(*, short: bool) -> list[Part]:
    """The parts in the order in which they are measured. The first ones are short; the last are repeated with seeds."""
    both_samples = [(ONE_SAMPLE, "1"), (TEN_SAMPLES, "10")]
    parts = []
    for compiled in (False, True):
        rows = (STEP[compiled],) if compiled else (STEP[compiled], MEMORY)
        for program in (LITE, NANOGPT):
            parts.append(_step_part(program, "shakespeare_char", rows, compiled=compiled, short=short))
    for compiled in (False, True):
        rows = (MODERN_STEP[compiled],) if compiled else (MODERN_STEP[compiled], MODERN_MEMORY)
        parts.append(_step_part(LITE, "modern", rows, compiled=compiled, short=short))
    for row, samples in both_samples:
        parts.append(Part(row.name, LITE, (row,), partial(_sample_lite, row, samples, short=short)))
        parts.append(Part(row.name, NANOGPT, (row,), partial(_sample_nanogpt, row, short=short)))
    parts += [
        Part("shakespeare_char, training", LITE, (SECONDS, LOSS), partial(_train_recipe, short=short)),
        Part(
            "shakespeare_char, training",
            NANOGPT,
            (SECONDS, LOSS, MODERN_SECONDS, SPRINT, MODERN_LOSS, MODERN_LAST),
            partial(_train_nanogpts_recipe, short=short),
        ),
    ]
    modern_rows = (MODERN_SECONDS, SPRINT, MODERN_LOSS, MODERN_LAST)
    for seed in range(2 if short else SEEDS):
        measure = partial(_train_modern, seed=seed, short=short)
        parts.append(Part(f"modern, training with seed {seed}", LITE, modern_rows, measure))
    return parts


def lite_options(*, compiled: bool, steps: int | None, short: bool) -> list[str]:
    """Options of a training with nanogpt_lite; `steps` without evaluations, None: the recipe with its own."""
    options = _lengths(steps, short=short) | {"compile": compiled}
    if short:
        options["warmup_iters"] = 2
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def nanogpt_options(*, compiled: bool, steps: int | None, short: bool) -> list[str]:
    """The same as `lite_options`, of nanoGPT; it evaluates before the first step too."""
    options = _lengths(steps, short=short) | {"compile": compiled}
    if short or steps:
        options["eval_iters"] = 2
    return [f"--{name}={value}" for name, value in options.items()]


def _lengths(steps: int | None, *, short: bool) -> dict[str, int]:
    """The options of the same names in both programs."""
    options = {"log_interval": SHORT_LOG_INTERVAL if short else 10}
    if steps:
        options |= {"max_iters": steps, "eval_interval": NEVER}
    if short:
        options |= {"max_iters": SHORT_STEPS, "eval_interval": NEVER if steps else SHORT_STEPS // 2, **SHORT}
    return options


def _step_part(program: str, preset: str, rows: tuple[Row, ...], *, compiled: bool, short: bool) -> Part:
    """The speed of a step, and with two rows the memory too."""

    def measure(harness: Harness) -> Values:
        if program == LITE:
            options = lite_options(compiled=compiled, steps=SPEED_STEPS, short=short)
            log = train_lite(harness, preset, options)
        else:
            log = train_nanogpt(harness, nanogpt_options(compiled=compiled, steps=SPEED_STEPS, short=short))
        values = (log.tokens_per_second, log.memory)
        return {row.name: value for row, value in zip(rows, values, strict=False)}

    return Part(rows[0].name, program, rows, measure)


def _train_recipe(harness: Harness, *, short: bool) -> Values:
    """NanoGPT's recipe in nanogpt_lite."""
    log = train_lite(harness, "shakespeare_char", lite_options(compiled=True, steps=None, short=short))
    return {SECONDS.name: log.seconds, LOSS.name: log.best()[1]}


def _train_nanogpts_recipe(harness: Harness, *, short: bool) -> Values:
    """NanoGPT's recipe in nanoGPT, with which `modern` is compared too."""
    log = train_nanogpt(harness, nanogpt_options(compiled=True, steps=None, short=short))
    step, loss = log.best()
    return {
        **{row.name: log.seconds for row in (SECONDS, MODERN_SECONDS)},
        **{row.name: loss for row in (LOSS, MODERN_LOSS)},
        SPRINT.name: step * log.step_time,
        MODERN_LAST.name: log.last_loss,
    }


def _train_modern(harness: Harness, *, seed: int, short: bool) -> Values:
    """The preset `modern`. The row of the goal has no value if the run does not reach it."""
    options = [*lite_options(compiled=True, steps=None, short=short), "--seed", str(seed)]
    log: TrainingLog = train_lite(harness, "modern", options)
    sprint = log.seconds_to(GOAL)
    return {
        MODERN_SECONDS.name: log.seconds,
        MODERN_LOSS.name: log.best()[1],
        MODERN_LAST.name: log.last_loss,
        **({} if sprint is None else {SPRINT.name: sprint}),
    }


def _sample_lite(row: Row, samples: str, harness: Harness, *, short: bool) -> Values:
    """Text from random weights, `samples` texts at once."""
    checkpoint, _ = save_networks(harness, **(SHAPE if short else {}))
    words = [samples, "bfloat16", harness.device, *_sample_length(short=short)]
    return {row.name: harness.probe("sample_lite", checkpoint, *words, cwd=harness.lite_dir)["tokens_per_second"]}


def _sample_nanogpt(row: Row, harness: Harness, *, short: bool) -> Values:
    """Text from the same weights, one text after the other."""
    _, checkpoint = save_networks(harness, **(SHAPE if short else {}))
    samples = 1 if row is ONE_SAMPLE else NANOGPT_SAMPLES
    words = [str(samples), harness.device, *_sample_length(short=short)]
    return {row.name: harness.probe("sample_nanogpt", checkpoint, *words)["tokens_per_second"]}


def _sample_length(*, short: bool) -> list[str]:
    """The number of tokens of a sample as an argument, if it is not the default of `probe`."""
    return [str(SHORT_SAMPLE)] if short else []
