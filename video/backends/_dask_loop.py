"""Where a Dask cluster is, and the event loop on which it is spoken to."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

from video.backends._dask_cluster import LEAVE_SECONDS
from video.backends._dask_future import unavailable
from video.errors import BackendUnavailable, ConfigError, described


class Quiet(logging.Filter):
    """Drops what distributed logs in one thread, that of our own loop: all of it comes to the caller as
    errors. The user's own clients have loops, and threads, of their own."""

    def __init__(self, thread: int | None) -> None:
        super().__init__()
        self._thread = thread
        families = ("distributed", "tornado", "asyncio")
        names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in families]
        self._loggers = [logging.getLogger(name) for name in names]
        for logger in self._loggers:
            logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread

    def remove(self) -> None:
        for logger in self._loggers:
            logger.removeFilter(self)


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """The thread of our loop."""
    loop.run_forever()
    loop.run_until_complete(_cancel_tasks())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LEAVE_SECONDS)


def loop_of(client: Any) -> asyncio.AbstractEventLoop:
    """
    :raises BackendUnavailable: if the user's client is closed, or its loop is the caller's own: to wait for
        it would be to wait for ever.
    """
    if client.status != "running":
        raise unavailable(f"its client is {client.status}", cure="Pass one that is connected.")
    if client.asynchronous:
        raise unavailable(
            "its client runs on the caller's event loop",
            cure="Pass the scheduler's address, or a Client made without asynchronous=True.",
        )
    loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
    return loop


def address_of(cluster: Any) -> str | None:
    """Of the scheduler that the setting names; None: there is to be a local cluster.

    :raises BackendUnavailable: if it names a scheduler file that cannot be read.
    :raises ConfigError: if it is nothing of the kind.
    """
    if cluster is None:
        return os.environ.get("DASK_SCHEDULER_ADDRESS") or None
    named = getattr(cluster, "scheduler_address", cluster)  # a LocalCluster and its like
    if not isinstance(named, str | os.PathLike):
        raise ConfigError(
            f"cluster is {cluster!r}", cure="It takes an address, the path of a scheduler file, or a Client."
        )
    path = Path(named)
    if path.suffix != ".json" and not path.is_file():
        return str(named)
    try:
        return str(json.loads(path.read_text("utf-8"))["address"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BackendUnavailable(
            f"is no scheduler file ({described(error)})",
            subject=str(path),
            cure="Pass the file that `dask scheduler --scheduler-file` writes.",
        ) from error
