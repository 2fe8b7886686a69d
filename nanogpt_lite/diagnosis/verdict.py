"""Whether a val loss is normal for its text, in one sentence: compared with n-gram models, and by its curve."""

import math
from collections.abc import Sequence

from nanogpt_lite.diagnosis.loss_trend import RISE, Evaluation, Trend, best_evaluation, val_loss_trend
from nanogpt_lite.diagnosis.ngram_baseline import NgramLosses

FALL = 0.005  # of the loss, in the last quarter of a run: less is the end of the curve
FAR = 0.1  # of the loss of the 5-gram model; a network that trains well on a short text may be less above it
FAR_NATS = 0.02  # per token, where that is less: of a text that is almost completely predictable
PREDICTABLE = 0.01  # nats per token: the val split is in the train split
FEW_VAL_TOKENS = 500  # the mean over so few depends on which ones they are, by a tenth of a nat and more


def give_verdict(
    loss: float,
    curve: Sequence[Evaluation],
    baselines: NgramLosses,
    *,
    network_loss: float,
    vocab_size: int,
    val_tokens: int,
    has_recipe_steps: bool,
    could_learn_more: bool,
    more_time: str,
) -> str:
    """One sentence about a run. Options in it are spelled as `name=value`.

    `loss`: of the best checkpoint, in nats per token, and `network_loss` of its network alone, without an n-gram expert
    the same. `curve`: the evaluations, at least one; they may cover less of the val split than `loss`, which is the
    mean over about `val_tokens` tokens.
    `has_recipe_steps`: whether the run took as many steps as the recipe for its text has. `could_learn_more`: whether
    that recipe would have more, given the time.
    `more_time`: the option of a longer run, which the sentence proposes, such as "`minutes=2`".
    """
    is_falling = could_learn_more and _falls(curve)
    longer = f"train a new run for longer: {more_time}"
    has_learned_nothing = network_loss >= min(baselines.unigram, math.log(vocab_size))
    so_far = "" if has_learned_nothing or _is_far(network_loss, baselines) else "normal so far: "
    still_falling = f"{so_far}{_compare(loss, baselines)}, and still falling; {longer}"
    if loss < PREDICTABLE:
        verdict = (
            "there is nothing more to learn: the text repeats itself, and its val split is predicted almost without "
            "error; so this loss says nothing about other text"
        )
    elif is_falling and not has_recipe_steps:
        verdict = still_falling
    elif has_learned_nothing:
        verdict = _explain_nothing_learned(baselines)
    elif not is_falling and (rise := _explain_rise(curve, _compare(loss, baselines))):
        verdict = rise
    elif _is_far(network_loss, baselines):
        alone = "" if network_loss == loss else "the network alone is "
        verdict = (
            f"something may be wrong: {alone}{_compare(network_loss, baselines)}; likely reasons: a `learning_rate` "
            "that is too high or too low, a network that is too large or too small for the text, or text that is "
            "mostly random"
        )
        if is_falling:
            verdict += f". If it is none of these, {longer}"
    elif is_falling:
        verdict = still_falling
    else:
        verdict = f"normal: {_compare(loss, baselines)}; more text would help, perhaps also {more_time}"
    return f"{verdict}. A loss of only {val_tokens} val tokens is rough" if val_tokens <= FEW_VAL_TOKENS else verdict


def _is_far(network_loss: float, baselines: NgramLosses) -> bool:
    """Whether the loss of a network is farther above the 5-gram model than that of a good training."""
    return network_loss > baselines.five_gram + max(baselines.five_gram * FAR, FAR_NATS)


def _falls(curve: Sequence[Evaluation]) -> bool:
    """Whether the network is the best at the end, and its loss fell in the last quarter of a run.

    Or it was evaluated too rarely to know.
    """
    losses, last = [point.network_val_loss for point in curve], curve[-1]
    interval = curve[0].step  # rounded up to whole steps, so the last one may be shorter
    end = -(-last.step // interval) * interval
    before = [point.network_val_loss for point in curve if point.step <= end * 3 / 4]
    return losses[-1] == min(losses) and (not before or losses[-1] < before[-1] * (1 - FALL))


def _explain_rise(curve: Sequence[Evaluation], compared: str) -> str:
    """What to say about a val loss that rose after its best step; empty if it did not."""
    trend, best, last = val_loss_trend(curve), best_evaluation(curve), curve[-1]
    if trend not in (Trend.OVERFITTING, Trend.STALLED):
        return ""
    facts = (
        f"since step {best.step}: the loss of the best checkpoint, which is used, is {compared}, and the last one is "
        f"{last.val_loss - best.val_loss:.2f} worse"
    )
    if trend == Trend.OVERFITTING:
        return f"overfitting {facts}. Give more text, fewer `max_iters`, or more `dropout`"
    return f"training did not get on {facts}, while the train loss did not fall. Give a lower `learning_rate`"


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
