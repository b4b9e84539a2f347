"""The suite as a whole: the checks for an engine, what became of them, and the table of the docs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from video import registry

# Each adds its checks to `MARKED`.
from video.testing import company, deaths, inputs, leaving, limits, outcomes, workers  # noqa: F401
from video.testing.base import LIMIT_SECONDS, MARKED, PROMISES, Bench, Check, Result, State

MARKED.sort(key=lambda marked: marked.promise)


def backend_checks(backend: str, **settings: Any) -> list[Check]:
    """The checks that an engine is to pass, by what its traits claim, in the order of the contract.

    >>> [check.__name__ for check in backend_checks("thread")][0]
    'every_item_has_one_outcome_in_order'

    :param backend: its name: a built-in, registered with `video.register_backend`, or an entry point's.
    :param settings: fields of `ParallelConfig` for all of its runners, such as `start_method="spawn"`.
    :raises UnknownName, MissingDependency, BackendUnavailable: if there is no such engine here.
    """
    bench = _bench(backend, settings)
    return [Check(marked, bench) for marked in MARKED if marked.why_not(bench) is None]


def results(backend: str, *, limit: float = LIMIT_SECONDS, **settings: Any) -> Iterator[Result]:
    """`check_backend`, one result at a time, as the checks end; the next one runs when it is asked for."""
    bench = _bench(backend, settings)
    for marked in MARKED:
        reason = marked.why_not(bench)
        if reason is None:
            yield Check(marked, bench, limit).result()
        else:
            yield Result(marked.name, marked.promise, marked.says, State.NOT_ASKED, reason)


def check_backend(
    backend: str, *, strict: bool = False, limit: float = LIMIT_SECONDS, **settings: Any
) -> list[Result]:
    """Ask an engine for the whole contract: what held, what broke, and what it does not claim.

    :param strict: raise if something broke.
    :param limit: seconds after which a check that hangs is broken.
    :param settings: as in `backend_checks`.
    :raises AssertionError: with `strict`, naming all that broke.
    :raises UnknownName, MissingDependency, BackendUnavailable: if there is no such engine here.
    """
    found = list(results(backend, limit=limit, **settings))
    broken = [one for one in found if one.state is State.BROKEN]
    if strict and broken:
        lines = "".join(f"\n  {one.promise}. {one.name}: {one.message}" for one in broken)
        raise AssertionError(f"the {backend} engine breaks {len(broken)} of {len(found)} checks:{lines}")
    return found


def contract_table(backends: Sequence[str] | None = None) -> str:
    """The table of docs/contract.md, from the traits of the built-in engines and from the checks.

        python -c "from video.testing import contract_table; print(contract_table())"

    :param backends: names of engines. None: the built-in ones that can be had here.
    :return: Markdown: a row for each check, a column for each engine.
    """
    if backends is None:
        names = [name for name in registry.backends.builtin if not registry.backends.why_unavailable(name)]
    else:
        names = list(backends)
    benches = [_bench(name, {}) for name in names]
    lines = [
        f"| | promise and checks | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for number, heading in PROMISES.items():
        lines.append(f"| **{number}** | **{heading}** |{' |' * len(names)}")
        for marked in MARKED:
            if marked.promise == number:
                cells = ["-" if marked.why_not(bench) else "yes" for bench in benches]
                lines.append(f"| | `{marked.name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _bench(backend: str, settings: dict[str, Any]) -> Bench:
    name = str(backend)
    bench = Bench(name, registry.backends.get(name).traits, settings)
    bench.config()  # a wrong setting is said at once
    return bench
