"""A service that fails now and then, a host that is dead, and a rate to keep to.

python examples/flaky_service.py
"""

from collections import Counter

from video import ParallelConfig, Runner

asked: Counter[str] = Counter()


def fetch(address: str) -> str:
    asked[address] += 1
    if "dead" in address or asked[address] == 1:  # the other one answers at the second time
        raise ConnectionError("refused")
    return f"answer of {address}"


config = ParallelConfig(
    backend="thread",
    max_retries=2, retry_delay_seconds=0.05,
    circuit_breaker_enabled=True, failure_threshold=3, recovery_timeout_seconds=0.2,
    rate_limit_rpm=6_000,
)  # fmt: skip
addresses = [f"https://{host}/{number}" for number in range(3) for host in ("alive", "dead")]

with Runner(config) as runner:
    for outcome in runner.stream(fetch, addresses, key=lambda address: address.split("/")[2]):
        what = outcome.value if outcome.ok else f"{type(outcome.error).__name__}: {outcome.error}"
        print(f"{addresses[outcome.index]}: {what} ({outcome.attempts} attempts)")
