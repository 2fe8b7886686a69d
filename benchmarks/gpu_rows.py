"""The rows of `on_gpu.py`, and the table of what its parts have measured so far.

How each part measures is in `gpu_parts`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from table import Row, Values

LITE, NANOGPT = "nanogpt_lite", "nanoGPT"  # the programs
SEEDS = 5
GOAL = 1.4697  # nanoGPT's README
NOT_YET = "not measured yet"

STEP = {
    False: Row(
        part="gpu",
        name="shakespeare_char, eager",
        unit="tokens/s",
        note="training, from the median time of a step; the same network in both",
        least_ratio=1,
    ),
    True: Row(
        part="gpu",
        name="shakespeare_char, compiled",
        unit="tokens/s",
        note="the same with `torch.compile` in both",
        least_ratio=1.0,  # it is the same network, and nearly the same kernels: docs/benchmarks.md
    ),
}
MODERN_STEP = {
    False: Row(part="gpu", name="modern, eager", unit="tokens/s", note="the same of the preset `modern`"),
    True: Row(part="gpu", name="modern, compiled", unit="tokens/s", note="the same with `torch.compile`"),
}
MEMORY = Row(
    part="gpu",
    name="shakespeare_char, memory",
    unit="MB",
    note="of the eager training: the peak of what PyTorch allocates on the GPU; on a CPU, of the process",
    least_ratio=1,
)
MODERN_MEMORY = Row(part="gpu", name="modern, memory", unit="MB", note="the same of the preset `modern`")
ONE_SAMPLE = Row(
    part="gpu",
    name="one sample of 500 tokens",
    unit="tokens/s",
    note="10.65M parameters in bfloat16",
    least_ratio=1,
)
TEN_SAMPLES = Row(
    part="gpu",
    name="ten samples of 500 tokens",
    unit="tokens/s",
    note="at once in nanogpt_lite, one after the other in nanoGPT, which has no other way",
    least_ratio=50,
)
SECONDS = Row(
    part="gpu",
    name="shakespeare_char, training",
    unit="s",
    note="the number of steps times the median time of a step, compiled in both; without start and evaluations",
)
LOSS = Row(
    part="gpu",
    name="shakespeare_char, best val loss",
    unit="nats",
    note="of nanogpt_lite over the whole val split; of nanoGPT its own estimate from 200 random batches",
)
MODERN_SECONDS = Row(
    part="gpu",
    name="modern, training",
    unit="s",
    note="the preset `modern`, compiled, beside the recipe of nanoGPT as above",
    least_ratio=1,
)
SPRINT = Row(
    part="gpu",
    name=f"modern, training to {GOAL}",
    unit="s",
    note="until an evaluation of the whole val split is at or below it; in nanoGPT until its own best evaluation",
    least_ratio=10,
)
MODERN_LOSS = Row(
    part="gpu",
    name="modern, best val loss",
    unit="nats",
    note=f"of up to {SEEDS} seeds: fewer if the time was over",
    most=1.38,
)
MODERN_LAST = Row(part="gpu", name="modern, last val loss", unit="nats", note="of the last evaluations of these runs")
ROWS = (
    *STEP.values(),
    *MODERN_STEP.values(),
    MEMORY,
    MODERN_MEMORY,
    ONE_SAMPLE,
    TEN_SAMPLES,
    SECONDS,
    LOSS,
    MODERN_SECONDS,
    SPRINT,
    MODERN_LOSS,
    MODERN_LAST,
)
LITE_ONLY = (*MODERN_STEP.values(), MODERN_MEMORY)


@dataclass
class Measurements:
    """What the parts have measured so far, and why values are missing. By program; reasons also by row."""

    values: dict[str, list[Values]] = field(default_factory=lambda: {LITE: [], NANOGPT: []})
    reasons: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, program: str, rows: tuple[Row, ...], values: Values) -> None:
        """Add what a part measured. A row of the part that is not in `values` was not reached."""
        self.values[program].append(values)
        for row in rows:
            if row.name not in values:
                self.reasons[program][row.name] = "not reached"

    def add_failure(self, program: str, rows: tuple[Row, ...], reason: str) -> None:
        """Note why a part has measured nothing."""
        for row in rows:
            self.reasons[program][row.name] = reason

    def note_no_time(self, program: str, rows: tuple[Row, ...]) -> None:
        """Note that a part was left out because the time was over. It counts for a row without any value."""
        for row in rows:
            if not any(row.name in values for values in self.values[program]):
                self.reasons[program].setdefault(row.name, "the time was over")

    def rows(self, estimates: Mapping[str, float]) -> list[dict[str, Any]]:
        """The rows as JSON, each with the estimate of its value, if there is one, and the reason for missing values."""
        return [
            {
                **row.line(self.values[LITE], self.values[NANOGPT]),
                "estimate": estimates.get(row.name),
                "reason": self._reason(row),
            }
            for row in ROWS
        ]

    def _reason(self, row: Row) -> str:
        reasons = []
        for program in (LITE,) if row in LITE_ONLY else (LITE, NANOGPT):
            if reason := self.reasons[program].get(row.name):
                reasons.append(f"{program}: {reason}")
            elif not any(row.name in values for values in self.values[program]):
                reasons.append(f"{program}: {NOT_YET}")
        return "; ".join(reasons)
