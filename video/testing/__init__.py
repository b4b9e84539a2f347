"""The contract as checks that ship with the package, so that anybody can prove an engine of his own.

With pytest, one line each:

    @pytest.mark.parametrize("check", backend_checks("mine"), ids=lambda check: check.__name__)
    def test_my_engine_keeps_the_contract(check):
        check()

Without it: `check_backend("mine")`, or `video check-backend mine` on the command line. Which checks are
asked follows from what the engine claims by its traits; never from its name, and never by trying.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from video.testing.base import PROMISES, Check, Result, State
    from video.testing.suite import backend_checks, check_backend, contract_table, results

__all__ = [
    "PROMISES",
    "Check",
    "Result",
    "State",
    "backend_checks",
    "check_backend",
    "contract_table",
    "results",
]


def __getattr__(name: str) -> Any:
    # Not imported before: a worker process that imports `tasks` needs none of it.
    from importlib import import_module

    if name in __all__:
        home = "base" if name[0].isupper() else "suite"
        return getattr(import_module(f"video.testing.{home}"), name)
    raise AttributeError(f"module 'video.testing' has no attribute {name!r}")
