"""One call of a Function over all its attempts: the run that it trains, and the GPU time that it has used.

Modal starts a call again in a new container after a preemption or a crash. What the attempts share is in a dictionary
that outlives containers (`modal.Dict`), under the id of the call, which stays the same. It needs no PyTorch.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nanogpt_lite.cloud.client.volume_names import run_reserved_error
from nanogpt_lite.errors import UserError


class SharedDict(Protocol):
    """The methods of `modal.Dict` that are used here. `put` with `skip_if_exists` is atomic over all containers."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""

    def put(self, key: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Set a value; whether it was set."""

    def pop(self, key: str, default: Any = None) -> Any:
        """Remove a key."""


class LocalDict:
    """A `SharedDict` of this process alone, for a Function that is called by `.local()`: there is no other attempt."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def put(self, key: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        if skip_if_exists and key in self._values:
            return False
        self._values[key] = value
        return True

    def pop(self, key: str, default: Any = None) -> Any:
        return self._values.pop(key, default)


class Call:
    """One call, as each of its attempts sees it."""

    def __init__(self, call_id: str, shared: SharedDict) -> None:
        self.id, self._shared = call_id, shared

    def run_name(self) -> str:
        """The name of the run that an earlier attempt of this call reserved or resumed; empty in the first attempt."""
        return str(self._shared.get(f"run of {self.id}", ""))

    def require_own_run(self) -> None:
        """`UserError` if an earlier attempt of this call had a run, and another call has it now, or it was deleted."""
        name = self.run_name()
        if name and self._shared.get(_reservation(name)) != self.id:
            raise lost_run_error(name)

    def reserve_new_run(self, dataset: str, is_taken: Callable[[str], bool]) -> str:
        """Reserve the next free name DATASET-N: one that is not taken, and that no other call has reserved."""
        names = (f"{dataset}-{number}" for number in itertools.count(1))
        name = next(name for name in names if not is_taken(name) and self._reserve(name))
        self.note_run(name)
        return name

    def reserve_run(self, name: str) -> None:
        """Reserve a name that no run has. `UserError` if another call has reserved it."""
        if not self._reserve(name):
            raise run_reserved_error(name)
        self.note_run(name)

    def take_over_run(self, name: str) -> None:
        """Make this call the one that trains an existing run."""
        self._shared.put(_reservation(name), self.id)
        self.note_run(name)

    def note_run(self, name: str) -> None:
        """Note which run this call trains, for its later attempts."""
        self._shared.put(f"run of {self.id}", name)

    def release_run(self, name: str) -> None:
        """Give the name of a run free that was reserved and never started."""
        self._shared.pop(f"run of {self.id}", None)
        if self._shared.get(_reservation(name)) == self.id:
            self._shared.pop(_reservation(name), None)

    def _reserve(self, name: str) -> bool:
        is_new = self._shared.put(_reservation(name), self.id, skip_if_exists=True)
        return is_new or self._shared.get(_reservation(name)) == self.id

    def used_time(self) -> tuple[float, int]:
        """The seconds that the attempts before this one took, and their number."""
        seconds, attempts = self._shared.get(f"time of {self.id}", (0.0, 0))
        return float(seconds), int(attempts)

    def note_time(self, seconds: float, attempts: int) -> None:
        """Note the seconds that all attempts have taken so far, and their number."""
        self._shared.put(f"time of {self.id}", (seconds, attempts))


def call_id(function_call_id: str, options: Mapping[str, object]) -> str:
    """The id of a call with these options: that of Modal's, which the inputs of one `.map` share, and their hash.

    So two equal inputs of one `.map` are one call: give each a seed or a name of its own.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()
    return f"{function_call_id}-{digest[:8]}"


def reserved_by(shared: SharedDict, run: str) -> str:
    """Modal's id of the call that reserved a run, or took it over last; empty if there is none."""
    return str(shared.get(_reservation(run), "")).rpartition("-")[0]


def lost_run_error(run: str) -> UserError:
    """The error of a call whose run is no longer its own."""
    return UserError(
        f"another call took over the run {run}, or it was deleted, so this call stops; to train both, give each call "
        "its own `out_dir`"
    )


def _reservation(name: str) -> str:
    return f"runs/{name}"
