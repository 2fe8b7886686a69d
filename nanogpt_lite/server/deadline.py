"""When an answer has to end: some hosts cut requests that take long."""

import math
import time

from starlette.exceptions import HTTPException

from nanogpt_lite.server.error_answers import RETRY_AFTER


class Deadline:
    """A moment, `seconds` from now on; 0: never."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds if seconds else math.inf

    def is_over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self._end

    def require_time_left(self) -> None:
        """`HTTPException` 503 if it has passed."""
        if self.is_over():
            message = f"no answer was possible within {self._seconds:g} s; ask for less, or again when fewer ask"
            raise HTTPException(503, message, {"Retry-After": str(RETRY_AFTER)})
