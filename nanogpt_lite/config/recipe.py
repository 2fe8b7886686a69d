"""The recipe that fits a text: option values that follow from the number of training tokens and the vocabulary.

It completes the presets of `RECIPES`, of which one is the default on each kind of device. It is a pure function of the
text, the options, and whether a CPU is faster in bfloat16, and a run stores its values as plain numbers. Those of
`modern-cpu` were chosen with tiny Shakespeare and tuning texts of `benchmarks/texts.py`; the limits of the steps follow
from the time of nanoGPT's recipe for a CPU: see docs/benchmarks.md. Those of `modern` were not measured on a GPU.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from nanogpt_lite.config.schema import Value

MIN_STEPS = 20  # fewer would hardly change the weights
EVALUATIONS = 8  # during the steps of the recipe; a longer run is evaluated as often, so that its best step is seen
PATIENCE = 5  # evaluations without a new best val loss; fewer, if there are fewer than `EVALUATIONS`
UNSEEN_EPOCHS = 4  # a network that sees its text no more often does not learn it by heart
PATIENCE_SHARE = 1 / 12  # of a run that is given more steps: patience is that many of them at least, not a moment
LARGE_VOCAB = 512  # above it few n-grams occur often enough, and a network learns the rare ones by heart

Points = tuple[tuple[float, float], ...]
"""A piecewise linear function: (x, y) in ascending order of x. Before the first and after the last x it is constant."""


@dataclass(frozen=True)
class StepLimit:
    """How many steps the time of a recipe is enough for, with steps of its `tokens_per_step`."""

    small_vocab: int  # with a vocabulary of few tokens
    half_steps_vocab: float = math.inf  # half as many with this vocabulary; it makes nanoGPT slower too

    def steps(self, vocab_size: int) -> float:
        """The number of steps with a vocabulary."""
        return self.small_vocab / (1 + vocab_size / self.half_steps_vocab)


@dataclass(frozen=True)
class Recipe:
    """How long to train on a text, and how to regularise a network that sees it for a number of epochs."""

    epochs: float  # passes over the train split, if they need no more steps than the limit
    limit: StepLimit
    tokens_per_step: int  # of the preset
    by_epochs: Mapping[str, Points]  # regularisation: the value of an option at a number of epochs
    ngram: int = 1  # the longest n-grams of a small vocabulary, and of one above `LARGE_VOCAB`
    ngram_of_large_vocab: int = 1
    # of a text that is seen at most `UNSEEN_EPOCHS` times, so that its best step is usually the last one
    evaluations_of_long_text: int = EVALUATIONS
    limit_bfloat16: StepLimit | None = None  # instead of `limit` in bfloat16, on a CPU that is faster in it


RECIPES: dict[str, Recipe] = {
    "modern-cpu": Recipe(
        epochs=14,
        limit=StepLimit(430, half_steps_vocab=16384),
        tokens_per_step=4096,
        by_epochs={
            "dropout": ((UNSEEN_EPOCHS, 0.0), (10, 0.2), (20, 0.3)),
            "ngram_dropout": ((UNSEEN_EPOCHS, 0.4), (10, 0.6), (20, 0.7)),
            "weight_decay": ((UNSEEN_EPOCHS, 0.2), (10, 0.5), (20, 0.8)),
        },
        ngram=4,
        ngram_of_large_vocab=2,
        evaluations_of_long_text=4,
        limit_bfloat16=StepLimit(979, half_steps_vocab=5120),
    ),
    # not measured on a GPU: for one million characters these are the numbers of `shakespeare_char`, for fewer steps
    "modern": Recipe(
        epochs=33,
        limit=StepLimit(5000),
        tokens_per_step=16384,
        by_epochs={"dropout": ((2, 0.0), (10, 0.2))},
    ),
}


def fit_options(
    preset: str,
    *,
    train_tokens: int,
    vocab_size: int,
    tokens_per_step: int,
    has_fast_bfloat16: bool = False,
    max_iters: int = 0,
) -> dict[str, Value]:
    """The options of a preset that follow from the text; empty if the preset is the same for all texts.

    `has_fast_bfloat16`: whether it is trained in bfloat16, on a CPU that computes faster in it. `max_iters`: the number
    of steps if it is decided already, else 0. More steps mean more regularisation.

    >>> fit_options("modern-cpu", train_tokens=54_000, vocab_size=60, tokens_per_step=4096)["max_iters"]
    185
    >>> fit_options("cpu", train_tokens=54_000, vocab_size=60, tokens_per_step=768)
    {}
    """
    if preset not in RECIPES:
        return {}
    recipe, steps_per_epoch = RECIPES[preset], train_tokens / tokens_per_step
    max_steps = _max_steps(recipe, vocab_size, tokens_per_step, has_fast_bfloat16)
    steps = min(_most_steps(recipe, steps_per_epoch), max_steps)
    max_iters = max_iters or steps
    is_unseen = steps <= UNSEEN_EPOCHS * steps_per_epoch
    evaluations = recipe.evaluations_of_long_text if is_unseen else EVALUATIONS
    patience = min(PATIENCE, evaluations - 2)  # so that a training that only gets worse can end before its last step
    eval_interval = math.ceil(min(max_iters, steps) / evaluations)
    return {
        "max_iters": max_iters,
        "eval_interval": eval_interval,
        "patience": max(patience, math.ceil(PATIENCE_SHARE * max_iters / eval_interval)),
        **fit_regularisation(preset, max_iters / steps_per_epoch),
        "ngram": recipe.ngram if vocab_size <= LARGE_VOCAB else recipe.ngram_of_large_vocab,
    }


def fit_regularisation(preset: str, epochs: float) -> dict[str, Value]:
    """The options that regularise a network of a preset in `RECIPES`, if it sees its text that many times."""
    return {name: round(interpolate(points, epochs), 2) for name, points in RECIPES[preset].by_epochs.items()}


def fitted_names(preset: str) -> list[str]:
    """The names of the options of a preset that follow from the text."""
    return list(fit_options(preset, train_tokens=1, vocab_size=1, tokens_per_step=1))


def steps_for_text(
    device: str, *, train_tokens: int, vocab_size: int, tokens_per_step: int, has_fast_bfloat16: bool
) -> tuple[int, int]:
    """The steps of the recipe for a kind of device ("cpu", "cuda", …), and those that help if time does not matter."""
    recipe = RECIPES[default_preset(device)]
    most_steps = _most_steps(recipe, train_tokens / tokens_per_step)
    return min(most_steps, _max_steps(recipe, vocab_size, tokens_per_step, has_fast_bfloat16)), most_steps


def default_preset(device: str) -> str:
    """The preset for a kind of device ("cpu", "cuda", …) if the call names none."""
    return "modern-cpu" if device == "cpu" else "modern"


def interpolate(points: Points, x: float) -> float:
    """The value of a piecewise linear function at `x`.

    >>> [interpolate(((1, 0.0), (3, 0.5)), x) for x in (0, 1, 2, 3, 4)]
    [0.0, 0.0, 0.25, 0.5, 0.5]
    """
    if x <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1]


def _most_steps(recipe: Recipe, steps_per_epoch: float) -> int:
    """The steps that help if time does not matter."""
    return max(math.ceil(recipe.epochs * steps_per_epoch), MIN_STEPS)


def _max_steps(recipe: Recipe, vocab_size: int, tokens_per_step: int, has_fast_bfloat16: bool) -> int:
    """The steps that the time of the recipe is enough for."""
    limit = (recipe.limit_bfloat16 if has_fast_bfloat16 else None) or recipe.limit
    return max(math.ceil(limit.steps(vocab_size) * recipe.tokens_per_step / tokens_per_step), MIN_STEPS)
