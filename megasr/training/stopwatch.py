"""A stopwatch that can be paused, for throughput."""

from __future__ import annotations

from collections.abc import Callable


class Stopwatch:
    """Seconds between two laps, without the pauses.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._elapsed = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Run on; nothing changes when it runs."""
        if self._since is None:
            self._since = self._clock()

    def pause(self) -> bool:
        """Stop counting; tells whether it was running."""
        if self._since is None:
            return False
        self._elapsed += self._clock() - self._since
        self._since = None
        return True

    def lap(self) -> float:
        """Seconds since the last lap, and begin a new one; it runs or pauses as before."""
        running = self.pause()
        elapsed, self._elapsed = self._elapsed, 0.0
        if running:
            self.start()
        return elapsed
