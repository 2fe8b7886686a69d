"""Whether a val loss is normal for its text, in one sentence: compared with n-gram models, and by its curve."""

import math
from collections.abc import Sequence

from nanogpt_lite.diagnosis.ngram_baseline import NgramLosses

RISE = 0.01  # nats per token above the best loss: less is noise
FALL = 0.005  # of the loss, in the last quarter of a run: less is the end of the curve
FAR = 0.1  # of the loss of the 5-gram model; a network that trains well on a short text may be less above it


def give_verdict(
    curve: Sequence[tuple[int, float]], baselines: NgramLosses, *, vocab_size: int, could_learn_more: bool, minutes: int
) -> str:
    """One sentence about a run. Options in it are spelled as `name=value`.

    `curve`: the step and the val loss of each evaluation, in nats per token like `baselines`, at least one.
    `could_learn_more`: whether the run saw its text less often than the recipe for it would, given the time.
    `minutes`: a time for a longer run, which the sentence proposes.
    """
    best_step, best = min(curve, key=lambda point: point[1])
    last_step, last = curve[-1]
    overfits = last > best + RISE and best_step < last_step
    falls = could_learn_more and best_step == last_step and _falls(curve)
    remedy = f"train a new run for longer: `minutes={minutes}`"
    if falls:
        return f"{_compare(best, baselines)}, and still falling; {remedy}"
    if best >= min(baselines.unigram, math.log(vocab_size)):
        return (
            "something is wrong: the network is no better than the frequencies of single tokens; likely reasons: a "
            "`learning_rate` that is too high or too low, a val split of another kind than the train split, or random "
            "text"
        )
    if overfits:
        return (
            f"overfitting since step {best_step}: {_compare(best, baselines)} there, and {last - best:.2f} worse at "
            "the end; the best checkpoint is used. Give more text, fewer `max_iters`, or more `dropout`"
        )
    if best > baselines.five_gram * (1 + FAR):
        return (
            f"something may be wrong: {_compare(best, baselines)}; likely reasons: a `learning_rate` that is too high "
            "or too low, a network that is too large or too small for the text, or text that is mostly random"
        )
    return f"normal: {_compare(best, baselines)}; more text would help more than more steps"


def _falls(curve: Sequence[tuple[int, float]]) -> bool:
    """Whether the loss still falls in the last quarter of a run, or was evaluated too rarely to know."""
    last_step, last = curve[-1]
    before = [loss for step, loss in curve if step <= last_step * 3 / 4]
    return not before or last < before[-1] * (1 - FALL)


def _compare(loss: float, baselines: NgramLosses) -> str:
    """The loss beside that of the 5-gram model."""
    difference = loss - baselines.five_gram
    return f"{abs(difference):.2f} nats {'below' if difference < 0 else 'above'} the 5-gram model, which only counts"
