"""What a val loss has done since its lowest value: whether a network overfits, or does not get on."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from statistics import fmean
from typing import Any, NamedTuple, Self

RISE = 0.01  # nats per token above the best loss: less is noise


class Evaluation(NamedTuple):
    """Losses at a step, in nats per token: the mean train loss since the evaluation before, and the val loss."""

    step: int
    train_loss: float
    val_loss: float
    network_val_loss: float  # of the network alone; without an n-gram expert the same

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Of an `EvalRecord` as JSON; versions before 0.3 say nothing about the network alone."""
        alone, val_loss = record.get("network_val_loss"), record["val_loss"]
        return cls(
            record["step"], record["train_loss"], val_loss, alone if isinstance(alone, int | float) else val_loss
        )


class Trend(StrEnum):
    """Where the val loss is at the end of a curve."""

    LOWEST = "lowest"  # where it has never been lower
    NOISE = "noise"  # at most `RISE` above its lowest value
    OVERFITTING = "overfitting"  # higher, while the train loss fell
    STALLED = "stalled"  # higher, and the train loss did not fall


def best_evaluation(curve: Sequence[Evaluation]) -> Evaluation:
    """The first one with the lowest val loss."""
    return min(curve, key=lambda point: point.val_loss)


def val_loss_trend(curve: Sequence[Evaluation]) -> Trend:
    """The trend of evaluations in the order of their steps, at least one."""
    best, last = best_evaluation(curve), curve[-1]
    if last.val_loss <= best.val_loss:
        return Trend.LOWEST
    if last.val_loss <= best.val_loss + RISE:
        return Trend.NOISE
    later = fmean(point.train_loss for point in curve if point.step > best.step)
    return Trend.OVERFITTING if later < max(best.train_loss, last.network_val_loss) else Trend.STALLED
