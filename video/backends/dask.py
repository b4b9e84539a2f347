"""A Dask cluster: the user's own, or one on this machine that starts and ends with the engine.

    submit -> our loop --> scheduler --> worker: run_call
    the call <- our thread <- our loop <-- answer; events of the call: TAKEN, BEGAN, ENDED, ...

Everything that speaks to the cluster runs on one event loop: that of the user's client, or else one in a
thread of ours. Answers are unpickled, and futures finished, in another thread, so that callbacks may block.
What a call does in its worker is in `_dask_call`, what its caller has of it in `_dask_future`, a cluster on
this machine in `_dask_cluster`.

The scheduler knows which worker has a call, not whether it has begun. So each call says so itself, by an
event: its time limit starts when that arrives, by our own clock, and it names the worker for `kill`. A
worker that dies fails the call that had begun on it; those that only waited there are sent again.

What the scheduler has cannot be taken back for certain, so it has only what its workers run now and next:
that counts as running. The rest waits here, where it can be cancelled.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import importlib.util
import itertools
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ClassVar

import video.scope as scope
from video import resources
from video.backends import _pickling
from video.backends._dask_call import (
    BEGAN,
    DONE,
    ENDED,
    GONE,
    GRACE_SECONDS,
    MADE,
    REPORT,
    TAKEN,
    Parcel,
    end_call,
    end_worker,
    forget_topic,
    hooks_plugin,
    open_topic,
    parcel_of,
    run_call,
)
from video.backends._dask_cluster import LEAVE_SECONDS, Cluster
from video.backends._dask_future import Call, Unreadable, chunk_lost, sized, unavailable, value_of, without_us
from video.backends._dask_loop import Quiet, address_of, loop_of, turn
from video.backends.base import Traits
from video.config import ParallelConfig
from video.errors import (
    BackendUnavailable,
    NotPicklable,
    described,
)

if importlib.util.find_spec("distributed") is None:  # to import it takes 0.3 s, which is for `open`
    raise ModuleNotFoundError("No module named 'distributed'", name="distributed")

CONNECT_SECONDS = 5.0
"""How long a scheduler may take to answer at first."""
LOST_SECONDS = 10.0
"""A cluster whose scheduler is silent, or which lost all its workers, is given up after this long."""
NO_WORKER_SECONDS = 60.0
"""The same for one that never had a worker: it may be starting some for us."""
WATCH_SECONDS = 1.0
STOP_SECONDS = 2.0
"""A worker that does not answer for this long is stuck in foreign code; its nanny then kills it."""
LOAD_SECONDS = 60.0
"""How long a call may take to import what it needs before its time limit starts all the same."""
TRANSFER_SECONDS = 600.0
"""How long a result may take to cross: the time limit is for the item, not for the size of its result."""
SEND_SECONDS = 0.002
"""Our client's pause between messages. With its own, 10 ms, 30 short calls took 160 ms instead of 110."""
SENT_EACH = 2
"""Calls with the scheduler for each thread of its workers: one that runs, and one to hide the way."""
FETCH_SECONDS = 1.0
"""How long a connection to a worker of our own may take, for a result: one that has just died is tried for as
long, before the scheduler has the call run again."""
MOST_RESENT = 3
"""How often a call may lose its worker before it began, until that is taken for its own fault."""


class DaskExecutor:
    """Calls on a cluster, of which they may use all workers.

    :raises BackendUnavailable: if there is no cluster to be had.
    """

    def __init__(self, workers: int, config: ParallelConfig) -> None:
        self._workers = workers
        self._config = config
        self._hooks = b""
        if config.initializer is not None or config.finalizer is not None:
            self._hooks = _pickling.dumps_by_value((config.initializer, config.finalizer))
        self._cluster: Cluster | None = None
        if config.cluster is None and address_of(None) is None:
            self._cluster = self._start_cluster()  # at once: it imports the same as we do next, beside us
        self._distributed: Any = importlib.import_module("distributed")
        of_user = isinstance(config.cluster, self._distributed.Client)
        self._foreign = config.cluster if of_user else None
        self._topic = f"video-{uuid.uuid4().hex}"
        self._numbers = itertools.count()
        self._closed = False
        self._closing = threading.Lock()
        self._ending: threading.Thread | None = None
        self._calls: set[Call] = set()
        """Those that are not done."""

        # Of the loop's thread alone:
        self._client: Any = None
        self._waiting: deque[Call] = deque()
        self._most_sent = SENT_EACH * workers
        self._sending: set[Call] = set()
        """Large ones whose data is on its way."""
        self._sent: dict[int, Call] = {}
        self._files: dict[int, set[str]] = {}
        """Unfinished files, by the sending of the call that made them."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._kills: set[asyncio.Task[None]] = set()
        self._mending = asyncio.Lock()
        self._lost: BackendUnavailable | None = None
        self._next_try = 0.0
        self._watched = False
        self._had_workers = False

        self._outbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._quiet: Quiet | None = None
        self._loop = self._start_loop() if self._foreign is None else loop_of(self._foreign)
        self._postman = threading.Thread(target=self._deliver, name="video-dask-answers", daemon=True)
        self._postman.start()
        try:
            self._do(self._connect())
        except BaseException:
            self.shutdown()
            raise

    # Called by anyone

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """
        :raises RuntimeError: once it is shut down.
        :raises BackendUnavailable: if the user has closed his client.
        """
        call = Call(fn, args)
        with self._closing:
            if self._closed:
                raise RuntimeError("this executor is closed")
            self._calls.add(call)
        call.add_done_callback(self._over)
        try:
            call.packed = sized(parcel_of(DONE, call.call))
        except NotPicklable as error:
            call.finish(None, error)
            return call
        try:
            self._loop.call_soon_threadsafe(self._accept, call)
        except RuntimeError:
            self._calls.discard(call)
            raise self._gone() from None
        return call

    def running(self, call: Future[Any]) -> tuple[int, float] | None:
        """As `backends.base` says; of a chunk it knows when it began, and not which item it is on."""
        assert isinstance(call, Call)
        started = call.started
        return None if started is None or call.done() else (0, started)

    def watch(self, call: Future[Any], listener: Callable[[float, str], None]) -> None:
        """Pass on what the call reports; `listener` is called in another thread."""
        assert isinstance(call, Call)
        call.listener = listener

    def kill(self, call: Future[Any]) -> None:
        """Give up a running call, and kill its worker if it does not end by itself. Returns at once."""
        assert isinstance(call, Call)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._give_up, call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, and end it if it is ours, once all calls are done. With `cancel_futures`, what
        waits is cancelled, and what runs is given up."""
        with self._closing:
            self._closed = True
            if self._ending is None:
                self._ending = threading.Thread(target=self._end, name="video-dask-end", daemon=True)
                self._ending.start()
        if cancel_futures:
            # All first: the worker of a killed call would take another at once.
            for call in [call for call in list(self._calls) if not call.cancel()]:
                self.kill(call)
        if wait and threading.current_thread() not in (self._thread, self._postman):
            self._ending.join()

    # In the thread of answers

    def _deliver(self) -> None:
        while (act := self._outbox.get()) is not None:
            with contextlib.suppress(Exception):  # a listener may raise, and must not end this thread
                act()
            del act

    def _settle(self, call: Call, answer: Parcel | None, error: BaseException | None) -> None:
        value = None
        if answer is not None:
            try:
                value = value_of(answer)
            except Unreadable as failure:
                if self._send_by_value(call):
                    return
                error = failure.for_caller()
            except BaseException as failure:  # noqa: BLE001  # it belongs to the call, not to this thread
                error = failure
        call.finish(value, error)

    def _send_by_value(self, call: Call) -> bool:
        """Send it again with what it needs of `__main__`, which a worker does not have.

        :return: False if that was tried already.
        """
        if call.by_value or call.call is None:
            return False
        call.by_value = True
        try:
            call.packed = sized(Parcel(DONE, _pickling.dumps_by_value(call.call)))
            self._loop.call_soon_threadsafe(self._send, call)
        except (NotPicklable, RuntimeError):
            return False
        return True

    # On the loop: calls

    def _accept(self, call: Call) -> None:
        self._waiting.append(call)
        self._fill()

    def _fill(self) -> None:
        """Send what waits, as far as workers will soon be free for it."""
        while self._waiting and len(self._sent) + len(self._sending) < self._most_sent:
            call = self._waiting.popleft()
            if call.begin():
                self._send(call)

    def _send(self, call: Call) -> None:
        if call.dropped:
            return
        if self._lost is not None or self._client.status != "running":
            self._keep(self._send_after_mending(call))
        elif isinstance(call.packed, bytes):
            self._submit(call, call.packed)
        else:
            self._keep(self._send_large(call, call.packed))

    async def _send_after_mending(self, call: Call) -> None:
        try:
            async with self._mending:
                if self._lost is not None or self._client.status != "running":
                    await self._mend()
        except BackendUnavailable as error:
            self._answer(call, None, error)
        except asyncio.CancelledError:  # as in `_collect`
            self._answer(call, None, self._gone())
            raise
        else:
            self._send(call)

    async def _send_large(self, call: Call, packed: Parcel) -> None:
        self._sending.add(call)
        self._watch_calls()
        try:
            data = await self._placed(packed)
        except Exception as error:  # noqa: BLE001  # distributed's or the network's
            self._answer(call, None, unavailable(f"a call cannot be sent to a worker ({described(error)})"))
        except asyncio.CancelledError:  # as in `_collect`
            self._answer(call, None, self._gone())
            raise
        else:
            self._submit(call, data)
        finally:
            self._sending.discard(call)
            self._fill()

    async def _placed(self, packed: Parcel) -> Any:
        """The call's data, on a worker."""
        for _ in range(MOST_RESENT):
            with contextlib.suppress(OSError):  # a worker that died a moment ago is still offered
                try:
                    return (await self._client.scatter([packed], hash=False, timeout=LOST_SECONDS))[0]
                except TimeoutError as error:  # an OSError too
                    raise RuntimeError("it has no workers") from error
            await asyncio.sleep(0.1)
        raise RuntimeError("its workers do not take it")

    def _submit(self, call: Call, data: Any) -> None:
        if call.dropped:
            return
        call.number = number = next(self._numbers)
        call.address = call.started = None
        call.confirmed = False
        about = (self._topic, number, self._config.timeout is not None, bool(self._hooks))
        try:
            # One group of keys: so the scheduler keeps back what no worker is free for.
            call.remote = self._client.submit(run_call, about, data, key=(self._topic, number), pure=False)
        except Exception as error:  # noqa: BLE001  # distributed's or the network's
            self._answer(call, None, unavailable(f"its scheduler is lost ({described(error)})"))
            return
        self._sent[number] = call
        self._keep(self._collect(call, number, call.remote))
        self._watch_calls()

    async def _collect(self, call: Call, number: int, remote: Any) -> None:
        answer: Parcel | None = None
        error: Exception | None = None
        try:
            answer = await remote
        except asyncio.CancelledError:  # the loop ends: the user has closed his client
            error = self._gone()
            while self._waiting:
                self._answer(self._waiting.popleft(), None, error)
            raise
        except Exception as failure:  # noqa: BLE001  # distributed's: the call itself never raises
            error = failure
        finally:
            if self._sent.pop(number, None) is call:
                self._conclude(call, answer, error)
            remote.release()
            self._fill()

    def _conclude(self, call: Call, answer: Parcel | None, error: Exception | None) -> None:
        call.remote = None
        if error is not None and not isinstance(error, BackendUnavailable):
            error = self._judged(call, error)
            if error is None:
                call.resent += 1
                self._send(call)
                return
        if error is not None:
            self._clear_away(call.number)
        self._files.pop(call.number, None)
        self._answer(call, answer, error)

    def _judged(self, call: Call, error: Any) -> Exception | None:
        """What a call fails with that the cluster failed with `error`; None: it is to be sent again."""
        waited = call.address is None and call.resent < MOST_RESENT
        if isinstance(error, self._distributed.KilledWorker):
            # Each call is heard of before it does anything, so this one did nothing.
            return None if waited else chunk_lost("its worker died", certain=False)
        if isinstance(error, concurrent.futures.CancelledError):
            reason = getattr(error, "reason", "")
            if reason == "scheduler-connection-lost" or self._client.status != "running":
                return unavailable("the connection to its scheduler is lost")
            if waited:  # its data was on a worker that died
                return None
            return chunk_lost("the cluster has dropped it", certain=False)
        if isinstance(error.__cause__ or error, ImportError):
            return without_us(error.__cause__ or error)
        return unavailable(f"it cannot run the call ({described(error)})")

    def _answer(self, call: Call, answer: Parcel | None, error: BaseException | None) -> None:
        if isinstance(error, BackendUnavailable) and call.address is not None:
            error = BackendUnavailable(error.cause, subject=error.subject, cure=error.cure, begun=True)
        self._outbox.put(functools.partial(self._settle, call, answer, error))

    def _hear(self, event: tuple[float, tuple[Any, ...]]) -> None:
        """An event of a call. Its time is its arrival here: the worker's clock may be another one."""
        what, number, *more = event[1]
        call = self._sent.get(number)
        now = time.monotonic()
        if what == MADE:
            self._files.setdefault(number, set()).add(more[0])
        elif what == GONE:
            self._files.get(number, set()).discard(more[0])
        elif call is None:
            if what in (TAKEN, BEGAN):  # it was given up on its way
                self._end_on(more[0], number)
        elif what == TAKEN:
            call.address = more[0]
            if not call.confirmed:  # the two events come on different ways, and this one may be the later
                call.started = now + LOAD_SECONDS
        elif what == BEGAN:
            call.address = more[0]
            call.started = now
            call.confirmed = True
        elif what == ENDED:
            call.started = now + TRANSFER_SECONDS
        elif what == REPORT and call.listener is not None:
            self._outbox.put(functools.partial(call.listener, *more))

    def _over(self, call: Future[Any]) -> None:
        """In whichever thread the call ended, or was cancelled."""
        assert isinstance(call, Call)
        self._calls.discard(call)
        if call.cancelled():
            call.begin()  # so that its waiters hear of it

    def _give_up(self, call: Call) -> None:
        if not call.done():
            self._drop(call, chunk_lost("it was given up"))
            self._fill()

    def _drop(self, call: Call, error: Exception) -> None:
        """Fail a call, take it back from the cluster, and stop it where it runs."""
        call.dropped = True
        self._answer(call, None, error)
        if self._sent.pop(call.number, None) is not call:
            return
        remote, call.remote = call.remote, None
        # First, so that the scheduler does not run it elsewhere once its worker is dead.
        self._keep(remote.cancel())
        if call.address is not None:
            self._end_on(call.address, call.number)

    def _end_on(self, address: str, number: int) -> None:
        """End a call that was withdrawn, if need be with its worker; those that wait there are sent again."""
        if not (self._closed and self._cluster is not None):  # then all is about to end
            self._kills.add(task := self._keep(self._end_there(address, number)))
            task.add_done_callback(self._kills.discard)

    async def _end_there(self, address: str, number: int) -> None:
        run = functools.partial(self._client.run, workers=[address], on_error="ignore")
        with contextlib.suppress(Exception):  # a worker, or a scheduler, that is gone
            try:
                await asyncio.wait_for(run(end_call, self._topic, number), GRACE_SECONDS + STOP_SECONDS)
            except TimeoutError:
                await asyncio.wait_for(run(end_worker, address, nanny=True), LEAVE_SECONDS)
        self._clear_away(number)

    def _clear_away(self, number: int) -> None:
        """Remove what a dead call left unfinished on this machine."""
        files = self._files.pop(number, ())
        if self._cluster is not None:
            for path in files:
                self._outbox.put(functools.partial(scope.remove, path))

    def _watch_calls(self) -> None:
        if not self._watched:
            self._watched = True
            self._keep(self._watch())

    async def _watch(self) -> None:
        """While calls are under way, see that there is a scheduler, and that it has workers."""
        heard = staffed = time.monotonic()
        while self._sent or self._sending:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                threads = await asyncio.wait_for(self._client.nthreads(), LOST_SECONDS / 2)
            except Exception:  # noqa: BLE001  # distributed's or the network's
                threads = None
            now = time.monotonic()
            if threads is None:
                if now - heard > LOST_SECONDS - WATCH_SECONDS:
                    self._lost = unavailable("its scheduler does not answer")
                    self._fail_all(self._lost)
                continue
            heard = now
            self._had_workers |= bool(threads)
            self._most_sent = SENT_EACH * max(self._workers, sum(threads.values()))
            if threads:
                staffed = now
            elif now - staffed > (LOST_SECONDS if self._had_workers else NO_WORKER_SECONDS) - WATCH_SECONDS:
                self._fail_all(unavailable("it has no workers", cure="Start workers for its scheduler."))
        self._watched = False

    def _fail_all(self, error: BackendUnavailable) -> None:
        calls = [*self._sent.values(), *self._sending, *self._waiting]
        self._waiting.clear()
        for call in calls:
            self._drop(call, error)

    # On the loop: the connection

    async def _connect(self) -> None:
        """
        :raises BackendUnavailable: after a few seconds at most.
        """
        if self._foreign is not None:
            self._client = self._foreign
        else:
            address = address_of(self._config.cluster)
            if address is None:
                self._cluster = self._cluster or self._start_cluster()
                address = await self._cluster.address()
            self._client = await self._new_client(address)
        try:
            threads = await asyncio.wait_for(self._client.nthreads(), CONNECT_SECONDS)
            self._had_workers = bool(threads)
            self._most_sent = SENT_EACH * max(self._workers, sum(threads.values()))
            await asyncio.wait_for(self._client.run_on_scheduler(open_topic, self._topic), CONNECT_SECONDS)
            self._client.subscribe_topic(self._topic, self._hear)
            if self._hooks:
                plugin = hooks_plugin(self._topic, self._hooks)
                await asyncio.wait_for(
                    self._client.register_plugin(plugin, name=self._topic), CONNECT_SECONDS
                )
        except ImportError as error:
            raise without_us(error) from error
        except Exception as error:
            raise unavailable(f"its scheduler does not answer ({described(error)})") from error

    async def _new_client(self, address: str) -> Any:
        client = None
        try:
            client = self._distributed.Client(
                address,
                asynchronous=True,
                set_as_default=False,
                timeout=CONNECT_SECONDS,
                direct_to_workers=True if self._cluster is not None else None,
            )
            await asyncio.wait_for(client, 2 * CONNECT_SECONDS)
            client.scheduler_comm.interval = SEND_SECONDS
            if self._cluster is not None:
                client.rpc.timeout = FETCH_SECONDS
        except Exception as error:
            if client is not None:
                with contextlib.suppress(Exception):
                    await client.close()
            raise BackendUnavailable(
                f"no scheduler answers there ({described(error)})",
                subject=repr(address),
                cure="Start it, or correct the address; without one, a cluster is started on this machine.",
            ) from error
        return client

    async def _mend(self) -> None:
        """Connect again: the scheduler may be back."""
        if self._lost is not None and time.monotonic() < self._next_try:
            raise self._lost
        await self._disconnect()
        try:
            await self._connect()
        except BackendUnavailable as error:
            self._lost, self._next_try = error, time.monotonic() + LOST_SECONDS
            raise
        self._lost = None

    async def _leave(self) -> None:
        """Wait for calls that are being killed, and take back what we brought into the cluster."""
        client = self._client
        if self._kills:
            await asyncio.wait(self._kills, timeout=GRACE_SECONDS + STOP_SECONDS + LEAVE_SECONDS)
        if client is not None and client.status == "running":
            if self._hooks:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(client.unregister_worker_plugin(self._topic), LEAVE_SECONDS)
            if self._cluster is None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(client.run_on_scheduler(forget_topic, self._topic), LEAVE_SECONDS)
                    await asyncio.sleep(0.05)  # a client logs an error of events that it has no handler for
                    client._event_handlers.pop(self._topic, None)
        for task in self._tasks:
            task.cancel()
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._client is not None and self._foreign is None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.close(), LEAVE_SECONDS)
        if self._cluster is not None:
            cluster, self._cluster = self._cluster, None
            await asyncio.to_thread(cluster.end)
            for path in itertools.chain.from_iterable(self._files.values()):
                self._outbox.put(functools.partial(scope.remove, path))

    # Processes and threads

    def _start_cluster(self) -> Cluster:
        threads = self._config.threads_per_worker or max(1, resources.usable_cpus() // self._workers)
        return Cluster(self._workers, threads, self._config.use_numba)

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=turn, args=(loop,), name="video-dask-loop", daemon=True)
        self._thread.start()
        self._quiet = Quiet(self._thread.ident)
        return loop

    def _do(self, work: Coroutine[Any, Any, None], seconds: float | None = None) -> None:
        """Run it on the loop, and wait for it."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()
            raise
        future.result(seconds)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside; the loop alone would not keep it alive."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self) -> None:
        concurrent.futures.wait(list(self._calls))
        with contextlib.suppress(Exception):
            self._do(self._leave(), 5 * LEAVE_SECONDS)  # more than all its steps may take
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if self._cluster is not None:  # a step took too long
            self._cluster.end()
        self._outbox.put(None)
        self._postman.join()
        if self._quiet is not None:
            self._quiet.remove()

    def _gone(self) -> BackendUnavailable:
        return unavailable("its client is closed", cure="Keep the client open while the engine uses it.")


class DaskBackend:
    traits: ClassVar[Traits] = Traits(
        start=0.9, call=4e-3, own_gil=True, pickles=True, coroutines=False, kills=True, remote=True
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> DaskExecutor:
        return DaskExecutor(workers, self._config)
