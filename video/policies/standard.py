"""The policies that the settings of a batch ask for."""

from __future__ import annotations

from video.config import ParallelConfig
from video.policies.base import Policy


def standard(config: ParallelConfig) -> list[Policy]:
    """In their order: answers first, the spender last."""
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
    if config.circuit_breaker_enabled:
        from video.policies.breaker import BreakerPolicy, BreakerRules

        policies.append(
            BreakerPolicy(
                BreakerRules(
                    failure_threshold=config.failure_threshold,
                    recovery_timeout_seconds=config.recovery_timeout_seconds,
                )
            )
        )
    return policies
