"""The policies that the settings of a batch ask for."""

from __future__ import annotations

from collections.abc import Sequence

from video.config import ParallelConfig
from video.events import Event, Kind, Observer, emit
from video.policies.base import Policy


def standard(config: ParallelConfig, observers: Sequence[Observer] = ()) -> list[Policy]:
    """In their order: answers first, the spender last.

    :param observers: told when a circuit opens or closes, and when a service refuses.
    """
    policies: list[Policy] = []
    if config.max_retries:
        from video.policies.retry import Retry

        policies.append(
            Retry(
                config.max_retries,
                config.retry_delay_seconds,
                exponential=config.exponential_backoff,
                deadline=config.retry_deadline_seconds,
            )
        )
    if (limit := config.memory_limit_bytes) is not None:
        from video.policies.memory import MemoryPolicy

        policies.append(MemoryPolicy(limit, collect=config.enable_garbage_collection))
    if config.circuit_breaker_enabled:
        from video.policies.breaker import BreakerPolicy, BreakerRules

        def tell(key: str, old: str, new: str, why: str) -> None:
            emit(observers, Event(Kind.BREAKER_CHANGED, "", message=f"{key}: {old} -> {new} ({why})"))

        rules = BreakerRules(
            failure_threshold=config.failure_threshold,
            recovery_timeout_seconds=config.recovery_timeout_seconds,
        )
        policies.append(BreakerPolicy(rules, listeners=[tell]))
    if config.rate_limit_rpm is not None:
        from video.policies.rate import DistributedRateLimiter, RatePolicy

        def tell_of_rate(key: str, words: str) -> None:
            emit(observers, Event(Kind.RATE_CHANGED, "", message=f"{key}: {words}" if key else words))

        limiter = DistributedRateLimiter(config.rate_limit_rpm, mode="independent")
        policies.append(RatePolicy(limiter, listeners=[tell_of_rate]))
    return policies
