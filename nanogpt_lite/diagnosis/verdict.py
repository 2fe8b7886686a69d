"""Whether a val loss is normal for its text, in one sentence: compared with n-gram models, and by its curve."""

import math
from collections.abc import Sequence

from nanogpt_lite.diagnosis.ngram_baseline import NgramLosses

RISE = 0.01  # nats per token above the best loss: less is noise
FALL = 0.005  # of the loss, in the last quarter of a run: less is the end of the curve
FAR = 0.1  # of the loss of the 5-gram model; a network that trains well on a short text may be less above it
FAR_NATS = 0.02  # per token, where that is less: of a text that is almost completely predictable
PREDICTABLE = 0.01  # nats per token: the val split is in the train split


def give_verdict(
    loss: float,
    curve: Sequence[tuple[int, float]],
    baselines: NgramLosses,
    *,
    vocab_size: int,
    could_learn_more: bool,
    minutes: int,
) -> str:
    """One sentence about a run. Options in it are spelled as `name=value`.

    `loss`: of the best checkpoint, in nats per token like all others. `curve`: the step and the val loss of each
    evaluation, at least one; they may cover less of the val split than `loss`.
    `could_learn_more`: whether the run saw its text less often than the recipe for it would, given the time.
    `minutes`: a time for a longer run, which the sentence proposes.
    """
    best_step, best = min(curve, key=lambda point: point[1])
    last_step, last = curve[-1]
    overfits = last > best + RISE and best_step < last_step
    falls = could_learn_more and best_step == last_step and _falls(curve)
    if loss < PREDICTABLE:
        return (
            "there is nothing more to learn: the text repeats itself, and its val split is predicted almost without "
            "error; so this loss says nothing about other text"
        )
    if falls:
        remedy = f"train a new run for longer: `minutes={minutes}`"
        return f"{_compare(loss, baselines)}, and still falling; {remedy}"
    if loss >= min(baselines.unigram, math.log(vocab_size)):
        return _explain_nothing_learned(baselines)
    if overfits:
        return (
            f"overfitting since step {best_step}: the loss of the best checkpoint, which is used, is "
            f"{_compare(loss, baselines)}, and the last one is {last - best:.2f} worse. Give more text, fewer "
            "`max_iters`, or more `dropout`"
        )
    if loss > baselines.five_gram + max(baselines.five_gram * FAR, FAR_NATS):
        return (
            f"something may be wrong: {_compare(loss, baselines)}; likely reasons: a `learning_rate` that is too high "
            "or too low, a network that is too large or too small for the text, or text that is mostly random"
        )
    return f"normal: {_compare(loss, baselines)}; more text would help more than more steps"


def _falls(curve: Sequence[tuple[int, float]]) -> bool:
    """Whether the loss still falls in the last quarter of a run, or was evaluated too rarely to know."""
    last_step, last = curve[-1]
    before = [loss for step, loss in curve if step <= last_step * 3 / 4]
    return not before or last < before[-1] * (1 - FALL)


def _explain_nothing_learned(baselines: NgramLosses) -> str:
    """What to say about a network that is no better than the frequencies of single tokens."""
    other_kind = "a val split (the end of the text) of another kind than the train split"
    if min(baselines.bigram, baselines.five_gram) >= baselines.unigram - RISE:
        return (
            "something is wrong: neither the network nor n-gram models are better than the frequencies of single "
            f"tokens; likely reasons: random text, or {other_kind}"
        )
    return (
        "something is wrong: the network is no better than the frequencies of single tokens, and n-gram models are; "
        f"likely reasons: a `learning_rate` that is too high or too low, a text that is too short, or {other_kind}"
    )


def _compare(loss: float, baselines: NgramLosses) -> str:
    """The loss beside that of the 5-gram model."""
    difference = loss - baselines.five_gram
    return f"{abs(difference):.2f} nats {'below' if difference < 0 else 'above'} the 5-gram model, which only counts"
