"""One circuit breaker: a state machine over calls and the time that is passed in.

    CLOSED     -> OPEN         too many failures in a row, or too high a share of failures or of slow calls
    OPEN       -> HALF_OPEN    a call is asked for once the recovery time is over
    HALF_OPEN  -> CLOSED       so many probes went well
    HALF_OPEN  -> OPEN         one probe failed, or too many were slow
    any        -> FORCED_OPEN, DISABLED, CLOSED    by `force`

Terms and windows are those of resilience4j, which has more of this pattern than any other library; the
pattern is Nygard's ("Release It!", 2007).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from video.errors import ConfigError
from video.policies._checks import number


class State(StrEnum):
    CLOSED = "closed"
    """Calls go through, and are counted."""
    OPEN = "open"
    """None goes through until the recovery time is over."""
    HALF_OPEN = "half_open"
    """A few go through, to see whether all is well again."""
    FORCED_OPEN = "forced_open"
    """None goes through until somebody says otherwise."""
    DISABLED = "disabled"
    """All go through, and none is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """When a breaker opens and closes.

    :raises ConfigError: on construction, naming the field, its value and what it takes.
    """

    failure_threshold: int | None = 5
    """Failures in a row that open it; None: only shares count."""
    recovery_timeout_seconds: float = 60.0
    """How long it stays open before it lets probes through; above 0."""
    half_open_probes: int = 1
    """Calls that it lets through at once while half open; as many have to go well to close it."""
    failure_rate: float | None = None
    """Share of failures in the window that opens it, above 0 and at most 1; None: not looked at."""
    slow_call_seconds: float | None = None
    """A call that takes as long is slow, whether it went well or not; None: no call is."""
    slow_call_rate: float = 1.0
    """Share of slow calls, in the window or among probes, that opens it."""
    window_calls: int = 100
    """The window: so many of the last calls."""
    window_seconds: float | None = None
    """The window: the calls of so many last seconds, to a tenth of it, in place of `window_calls`."""
    minimum_calls: int = 10
    """Shares are not looked at while the window holds fewer."""

    def __post_init__(self) -> None:
        for name in ("half_open_probes", "window_calls", "minimum_calls"):
            number(name, getattr(self, name), above=0, whole=True)
        number("recovery_timeout_seconds", self.recovery_timeout_seconds, above=0)
        number("slow_call_rate", self.slow_call_rate, above=0, most=1)
        if self.failure_threshold is not None:
            number("failure_threshold", self.failure_threshold, above=0, whole=True)
        if self.failure_rate is not None:
            number("failure_rate", self.failure_rate, above=0, most=1)
        for name in ("slow_call_seconds", "window_seconds"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), above=0)
        if self.window_seconds is None and self.minimum_calls > self.window_calls:
            raise ConfigError(
                f"minimum_calls is {self.minimum_calls}, and window_calls {self.window_calls}",
                cure="A window that never holds enough calls opens nothing.",
            )
        if self.failure_threshold is None and not self.by_share:
            raise ConfigError(
                "failure_threshold, failure_rate and slow_call_seconds are None",
                cure="Give one of them, or leave the breaker out.",
            )

    @property
    def by_share(self) -> bool:
        """Whether every call counts, good ones too."""
        return self.failure_rate is not None or self.slow_call_seconds is not None

    def is_slow(self, seconds: float) -> bool:
        return self.slow_call_seconds is not None and seconds >= self.slow_call_seconds


class CircuitBreaker:
    """Not thread-safe: whoever shares it holds a lock (`BreakerPolicy` does).

    Each permit that `acquire` hands out comes back by exactly one of `success`, `failure` and `release`.
    Those of before the last change of state come back too, but say nothing about what holds now.

    :param on_change: told the old state, the new one, and why.
    """

    __slots__ = (
        "_good",
        "_on_change",
        "_period",
        "_probes",
        "_slow",
        "_window",
        "failures",
        "in_flight",
        "opened",
        "rules",
        "since",
        "state",
        "until",
        "used",
    )

    def __init__(
        self,
        rules: BreakerRules | None = None,
        on_change: Callable[[State, State, str], None] | None = None,
    ) -> None:
        self.rules = BreakerRules() if rules is None else rules
        self.state = State.CLOSED
        self.failures = 0
        """In a row, while it is closed."""
        self.until = 0.0
        """While it is open: when it lets probes through."""
        self.since: float | None = None
        """When it opened; a probe that fails does not begin this anew. None while calls go through."""
        self.opened = 0.0
        """When it opened the last time, after a probe too."""
        self.in_flight = 0
        """Permits that are out."""
        self.used = 0.0
        """When it was last asked."""
        self._on_change = on_change
        self._period = 0
        self._probes = self._good = self._slow = 0
        self._window = _Window(self.rules) if self.rules.by_share else None

    def acquire(self, now: float) -> int | None:
        """A permit for one call; None: not now."""
        self.used = now
        if self.state is State.OPEN and now >= self.until:
            self._become(State.HALF_OPEN, "its recovery time is over")
        if self.state in (State.OPEN, State.FORCED_OPEN):
            return None
        if self.state is State.HALF_OPEN:
            if self._probes + self._good >= self.rules.half_open_probes:
                return None
            self._probes += 1
        self.in_flight += 1
        return self._period

    def release(self, permit: int, now: float) -> None:
        """The call did not take place, or says nothing about what it was to use."""
        self._back(permit, now)

    def success(self, permit: int, seconds: float, now: float) -> None:
        """:param seconds: how long the call took."""
        if self._back(permit, now):
            self._judge(False, seconds, now)

    def failure(self, permit: int, seconds: float, now: float) -> None:
        if self._back(permit, now):
            self._judge(True, seconds, now)

    def suspect(self, now: float) -> None:
        """A call without a permit has failed, whose neighbours may have gone well unseen: however many there
        are, they count as one failure."""
        self.used = now
        if self.state is State.CLOSED and not self.failures:
            self._judge(True, 0.0, now)

    def force(self, state: State, now: float) -> None:
        """FORCED_OPEN, DISABLED, or CLOSED, which starts afresh.

        :raises ConfigError: for any other state.
        """
        if state not in (State.FORCED_OPEN, State.DISABLED, State.CLOSED):
            raise ConfigError(f"state is {state!r}", cure="It takes FORCED_OPEN, DISABLED or CLOSED.")
        self.used = now
        self.since = now if state is State.FORCED_OPEN else None
        self._become(state, "somebody said so")

    def learn(
        self,
        state: State,
        why: str,
        *,
        until: float = 0.0,
        opened: float = 0.0,
        since: float | None = None,
    ) -> None:
        """What others found out: OPEN, with those three times, or CLOSED. Nothing that was forced changes."""
        if self.state in (State.FORCED_OPEN, State.DISABLED):
            return
        self.until, self.opened, self.since = until, opened, since
        if state is not self.state:
            self._become(state, why)

    @property
    def healthy(self) -> bool:
        """Whether it lets everything through and nothing has failed of late."""
        return self.state is State.DISABLED or (self.state is State.CLOSED and not self.failures)

    @property
    def due(self) -> float | None:
        """When a permit may be had; None: when a probe comes back, or somebody says so."""
        return self.until if self.state is State.OPEN else None

    def _back(self, permit: int, now: float) -> bool:
        """Take a permit back; whether what its call met still counts."""
        self.used = now
        self.in_flight -= 1
        current = permit == self._period
        if current and self.state is State.HALF_OPEN:
            self._probes -= 1
        return current

    def _judge(self, failed: bool, seconds: float, now: float) -> None:
        if self.state is State.CLOSED:
            self.failures = self.failures + 1 if failed else 0
            if why := self._too_bad(failed, seconds, now):
                self._open(now, why)
        elif self.state is State.HALF_OPEN:
            self._good += 1
            self._slow += self.rules.is_slow(seconds)
            if failed:
                self._open(now, "a probe failed")
            elif self._good >= self.rules.half_open_probes:
                if self._slow and self._slow / self._good >= self.rules.slow_call_rate:
                    self._open(now, "probes were slow")
                else:
                    self.since = None
                    self._become(State.CLOSED, "probes went well")

    def _too_bad(self, failed: bool, seconds: float, now: float) -> str:
        rules = self.rules
        if self._window is not None:
            self._window.add(now, failed, rules.is_slow(seconds))
        if rules.failure_threshold is not None and self.failures >= rules.failure_threshold:
            return f"{self.failures} calls in a row failed"
        if self._window is not None and self._window.calls >= rules.minimum_calls:
            calls, bad, slow = self._window.calls, self._window.failures, self._window.slow
            if rules.failure_rate is not None and bad / calls >= rules.failure_rate:
                return f"{bad} of {calls} calls failed"
            if slow and slow / calls >= rules.slow_call_rate:
                return f"{slow} of {calls} calls were slow"
        return ""

    def _open(self, now: float, why: str) -> None:
        self.opened = now
        self.until = now + self.rules.recovery_timeout_seconds
        self.since = now if self.since is None else self.since
        self._become(State.OPEN, why)

    def _become(self, state: State, why: str) -> None:
        old, self.state = self.state, state
        self._period += 1
        self.failures = self._probes = self._good = self._slow = 0
        if self._window is not None:
            self._window = _Window(self.rules)
        if self._on_change is not None and old is not state:
            self._on_change(old, state, why)


class _Window:
    """Sums over the last calls: a cell for each, or for each tenth of the time."""

    __slots__ = ("_cell", "_cells", "_most", "calls", "failures", "slow")

    def __init__(self, rules: BreakerRules) -> None:
        self._cell = None if rules.window_seconds is None else rules.window_seconds / 10
        self._most = rules.window_calls
        self._cells: deque[list[int]] = deque()  # [which tenth, calls, failures, slow calls]
        self.calls = self.failures = self.slow = 0

    def add(self, now: float, failed: bool, slow: bool) -> None:
        tenth = 0 if self._cell is None else int(now / self._cell)
        if self._cell is not None and self._cells and self._cells[-1][0] >= tenth:
            cell = self._cells[-1]
        else:
            cell = [tenth, 0, 0, 0]
            self._cells.append(cell)
        for position, by in ((1, 1), (2, int(failed)), (3, int(slow))):
            cell[position] += by
        self._sum(1, failed, slow)
        while len(self._cells) > self._most if self._cell is None else self._cells[0][0] <= tenth - 10:
            _, calls, failures, slows = self._cells.popleft()
            self._sum(-calls, -failures, -slows)

    def _sum(self, calls: int, failures: int, slow: int) -> None:
        self.calls += calls
        self.failures += failures
        self.slow += slow
