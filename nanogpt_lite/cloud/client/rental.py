"""What a call rents, for how long at most, and what that costs at most: from the flags --gpu, --timeout, --max-dollars.

The table of GPUs and their prices is in `device.gpus`.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from nanogpt_lite.config.schema import require_known
from nanogpt_lite.device.gpus import GPUS
from nanogpt_lite.errors import UserError

MINUTE, HOUR, DAY = 60, 60 * 60, 24 * 60 * 60  # in seconds
TRAIN_SECONDS = 2 * HOUR  # the limit of a training, over all attempts, if none is given
BENCHMARK_SECONDS = 40 * MINUTE  # that of the benchmark, over all attempts
OTHER_SECONDS = 15 * MINUTE  # that of every other call
MARGIN_SECONDS = 5 * MINUTE  # Modal's own limit of a training is later by this, so that the run is saved before it

# What is reserved beside each GPU, so that it does not wait for its host. Modal guarantees 0.125 cores without it.
CORES_PER_GPU, MEMORY_MIB_PER_GPU = 4, 8192
CORES_WITHOUT_GPU = 2  # of a call without a GPU: a text is prepared
WEB_CORES, WEB_MEMORY_MIB = 2, 4096  # of the container that serves a run
WEB_IDLE_SECONDS = 5 * MINUTE  # that it waits for a further request
WEB_REQUESTS = 150  # at once: more than may wait for their turn, so that the others are refused and not left waiting
# Modal's prices, as of June 2026: https://modal.com/pricing
DOLLARS_PER_CORE_SECOND, DOLLARS_PER_GIB_SECOND = 0.0000131, 0.00000222

_MODAL_GPUS = {gpu.modal_type: gpu for gpu in GPUS if gpu.modal_type}
_MODAL_GPUS |= {"A100": _MODAL_GPUS["A100-40GB"], "H100!": _MODAL_GPUS["H100"], "B200+": _MODAL_GPUS["B200"]}
_MAX_COUNT = 8  # GPUs in one container


@dataclass(frozen=True)
class GPURequest:
    """A type of GPU and how many of it."""

    type: str  # as Modal calls it
    count: int = 1

    def __str__(self) -> str:
        """As the argument `gpu` of a Function takes it."""
        return self.type if self.count == 1 else f"{self.type}:{self.count}"

    @property
    def dollars_per_second(self) -> float:
        """The price, with the reserved cores and memory of the host."""
        host = CORES_PER_GPU * DOLLARS_PER_CORE_SECOND + MEMORY_MIB_PER_GPU / 1024 * DOLLARS_PER_GIB_SECOND
        return self.count * (host + (_MODAL_GPUS[self.type].dollars_per_second or 0.0))

    @property
    def memory(self) -> int:
        """The memory of each, in bytes."""
        memory = _MODAL_GPUS[self.type].memory
        assert memory is not None
        return memory


@dataclass(frozen=True)
class Rental:
    """The GPUs of a call and the limit of its time."""

    gpus: tuple[GPURequest, ...]  # the preferred one first; none: a CPU
    seconds: int  # over all attempts
    calls: int = 1  # so many calls of this kind, such as the trials of a sweep
    margin: int = 0  # seconds: Modal's own limit is later by this

    @property
    def function_options(self) -> dict[str, Any]:
        """Arguments of `Function.with_options`. A list of GPUs can only be in the Function's decorator."""
        options: dict[str, Any] = {"timeout": min(self.seconds + self.margin, DAY)}
        if len(self.gpus) == 1:
            (gpu,) = self.gpus
            options |= {"gpu": str(gpu), "cpu": gpu.count * CORES_PER_GPU, "memory": gpu.count * MEMORY_MIB_PER_GPU}
        return options

    @property
    def world_size(self) -> int:
        """The largest number of GPUs that it may give."""
        return max((gpu.count for gpu in self.gpus), default=1)

    @property
    def dollars_per_second(self) -> float:
        """The price of the most expensive GPU."""
        cpu = CORES_WITHOUT_GPU * DOLLARS_PER_CORE_SECOND
        return max((gpu.dollars_per_second for gpu in self.gpus), default=cpu)

    @property
    def most_dollars(self) -> float:
        """What all calls cost at most, as far as Modal's limits of time can say."""
        return self.calls * self.seconds * self.dollars_per_second

    def __str__(self) -> str:
        gpus = " or ".join(f"{gpu.count} x {gpu.type}" for gpu in self.gpus) or "a CPU"
        calls = f"{self.calls} calls, each " if self.calls > 1 else ""
        attempts = " over all attempts" if self.margin else ""  # only a training counts them
        return (
            f"renting {gpus}, ${3600 * self.dollars_per_second:.2f} an hour, {calls}for at most "
            f"{format_seconds(self.seconds)}{attempts}: at most ${format_dollars(self.most_dollars)}"
        )


def make_rental(
    gpu: str,
    *,
    timeout: str = "",
    max_dollars: float | None = None,
    default_seconds: int,
    calls: int = 1,
    margin: int = 0,
) -> Rental:
    """What is rented with these flags. `UserError` on an unknown GPU, an invalid time, or too few dollars.

    `gpu` is a list with commas, the preferred one first; empty: a CPU. `timeout` and `max_dollars` both limit the time;
    `max_dollars` is for all calls together. `margin`: see `Rental`.
    """
    gpus = tuple(parse_gpu(part) for part in gpu.split(",")) if gpu else ()
    rental = Rental(gpus, parse_seconds(timeout) if timeout else default_seconds, calls, margin)
    if max_dollars is None:
        return rental
    affordable = max_dollars / calls / rental.dollars_per_second if 0 < max_dollars < math.inf else 0
    if affordable < MINUTE:
        least = calls * MINUTE * rental.dollars_per_second
        raise UserError(
            f"--max-dollars {max_dollars:g} pays for less than a minute at ${3600 * rental.dollars_per_second:.2f} an "
            f"hour; give {format_dollars(least)} or more, or a cheaper --gpu"
        )
    return Rental(gpus, int(min(affordable, rental.seconds)), calls, margin)


def parse_gpu(text: str) -> GPURequest:
    """A GPU as Modal names it, in any case, or several of it.

    >>> str(parse_gpu("a100-40gb")), str(parse_gpu("H100:2"))
    ('A100-40GB', 'H100:2')
    """
    name, separator, count = text.strip().partition(":")
    require_known([name.upper()], _MODAL_GPUS, "GPU")
    if separator and not (count.isdecimal() and 1 <= int(count) <= _MAX_COUNT):
        raise UserError(f"--gpu {text} has an invalid number of GPUs; give 1 to {_MAX_COUNT}, such as {name}:2")
    return GPURequest(name.upper(), int(count or 1))


def gpu_order(gpus: str) -> list[str]:
    """A list of GPUs with commas, the preferred one first, as the argument `gpu` of a Function takes it.

    >>> gpu_order("A100-80GB:4, H100")
    ['A100-80GB:4', 'H100']
    """
    return [gpu.strip() for gpu in gpus.split(",")]


def single_gpus(gpus: str) -> list[str]:
    """A list of GPUs with one of each: A100-80GB:4 trains on four, but samples on one.

    >>> single_gpus("A100-80GB:4, H100")
    ['A100-80GB', 'H100']
    """
    return [gpu.partition(":")[0] for gpu in gpu_order(gpus)]


def describe_web(gpu: str) -> str:
    """What the container that serves a run costs. `gpu`: its type; empty: a CPU.

    >>> describe_web("")
    'on a CPU: one container at most, $0.13 an hour while it runs; 5 min after the last request it stops, and then \
nothing is paid'
    """
    request = parse_gpu(gpu) if gpu else None
    if request is not None and request.count > 1:
        raise UserError(f"{gpu} is more than one GPU, and a run is served by one; give one")
    host = WEB_CORES * DOLLARS_PER_CORE_SECOND + WEB_MEMORY_MIB / 1024 * DOLLARS_PER_GIB_SECOND
    dollars = host + ((_MODAL_GPUS[request.type].dollars_per_second or 0.0) if request else 0.0)
    device = f"a {request.type}" if request else "a CPU"
    return (
        f"on {device}: one container at most, ${HOUR * dollars:.2f} an hour while it runs; "
        f"{format_seconds(WEB_IDLE_SECONDS)} after the last request it stops, and then nothing is paid"
    )


def training_options(gpu: str, seconds: float) -> dict[str, Any]:
    """Arguments of `Function.with_options` for a training of at most this time."""
    return make_rental(gpu, default_seconds=int(seconds), margin=MARGIN_SECONDS).function_options


def is_modal_gpu(name: str) -> bool:
    """Whether this is the name of a type of GPU that Modal has."""
    return name in _MODAL_GPUS


def parse_seconds(text: str) -> int:
    """The seconds of a time such as 90s, 30m or 2h; a number alone is seconds, as in Modal's `timeout`.

    >>> parse_seconds("2h"), parse_seconds("1.5m"), parse_seconds("90")
    (7200, 90, 90)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    seconds = float(match[1]) * {"h": HOUR, "m": MINUTE, "min": MINUTE}.get(match[2], 1) if match else 0.0
    if not MINUTE <= seconds <= DAY:
        raise UserError(f"--timeout {text} is an invalid time; give 1m to 24h, such as 90s, 30m or 2h")
    return int(seconds)


def format_dollars(least: float) -> str:
    """The least amount of whole cents that is not below this one.

    >>> format_dollars(0.041), format_dollars(1.5)
    ('0.05', '1.50')
    """
    return f"{math.ceil(round(100 * least, 6)) / 100:.2f}"


def format_seconds(seconds: float) -> str:
    """A length of time in words.

    >>> format_seconds(7200), format_seconds(900), format_seconds(75), format_seconds(5400)
    ('2 h', '15 min', '75 s', '90 min')
    """
    if seconds % HOUR == 0:
        return f"{seconds // HOUR:g} h"
    return f"{seconds // MINUTE:g} min" if seconds % MINUTE == 0 else f"{seconds:.0f} s"
