"""What an engine costs to start: seconds to the first answer of cold workers, in a fresh interpreter.

Imports of the names that a user writes are not counted, and nothing but them has been imported; our
engines load their own parts within the time. The peers' fork server has nothing to import either, since
the program is not a file; a worker of `multiprocessing` would import a user's `__main__`, ours would not.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
from conftest import Table, Versus, reported

WORKERS = 2
ROUNDS = 7
TARGETS = {"forkserver": 1.2}

PROGRAM = """
import time
{imports}
start = time.perf_counter()
{first}
print(time.perf_counter() - start, flush=True)
{end}
"""


def ours(backend: str, **settings: str) -> Callable[[], float]:
    more = "".join(f", {name}={value!r}" for name, value in settings.items())
    return fresh(
        "from video import ParallelConfig, Runner",
        f"""
        runner = Runner(ParallelConfig(backend={backend!r}, max_workers={WORKERS}{more}))
        assert runner.map(abs, [-1])[0].value == 1
        """,
        "runner.close()",
    )


def pool(name: str, context: str) -> Callable[[], float]:
    return fresh(
        f"import multiprocessing\nfrom concurrent.futures import {name}",
        f"""
        pool = {name}({WORKERS}{context})
        assert list(pool.map(abs, [-1])) == [1]
        """,
        "pool.shutdown()",
    )


def fresh(imports: str, first: str, end: str) -> Callable[[], float]:
    """A new interpreter that says how long `first` took in it."""
    program = PROGRAM.format(imports=imports, first=textwrap.dedent(first).strip(), end=end)

    def run() -> float:
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return float(done.stdout)

    return run


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table(f"First answer of {WORKERS} cold workers, in a fresh interpreter: ms", "ms")


@pytest.mark.parametrize("backend", ["serial", "thread", "async"])
def test_in_one_process(versus: Versus, backend: str) -> None:
    versus(
        (backend, ours(backend)),
        {"ThreadPoolExecutor": pool("ThreadPoolExecutor", "")},
        rounds=ROUNDS,
        meter=reported,
    )


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_in_processes(versus: Versus, method: str) -> None:
    context = f", multiprocessing.get_context({method!r})"
    versus(
        (f"process, {method}", ours("process", start_method=method)),
        {f"ProcessPoolExecutor, {method}": pool("ProcessPoolExecutor", context)},
        rounds=ROUNDS,
        meter=reported,
        target=TARGETS.get(method),
    )
