"""The daemon's life: bind, serve while the model loads, tell systemd, drain at SIGTERM and end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import uvicorn
from starlette.types import ASGIApp

from rk3588.errors import TargetError

from . import app as http
from . import connections, logs, notify
from .config import Address, Config
from .jobs import Engine, Status

_TICK_S = 1.0
_WORKER_END_S = 2.0  # for the worker, after a second signal
_BACKLOG = 1024  # connections that the kernel keeps until they are taken
_SEND_BUFFER = 128 << 10
_TICKS = 5  # of uvicorn's tenths of a second, between looks at the connections


def bind(address: Address) -> socket.socket:
    """A listening socket; TargetError says in a sentence why there is none."""
    try:
        family, _, _, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(place[:2], family=family, backlog=_BACKLOG)
        # Connections inherit it. asyncio sets it only where a socket says that it is TCP's, and create_server's does
        # not; without it, each answer on a connection that is kept waits 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # And what a client does not read waits here where it is seen, not in megabytes of the kernel's.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return listener
    except (socket.gaierror, UnicodeError) as error:  # an empty or too long label of a name is the latter
        raise TargetError(f"cannot listen on {address}: there is no address {address.host!r}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise TargetError(
                f"cannot listen on {address}: another program does already; end it, or choose another port with "
                "--listen HOST:PORT"
            ) from error
        raise TargetError(f"cannot listen on {address}: {os.strerror(error.errno or 0).lower()}") from error


def bind_all(addresses: Sequence[Address]) -> list[socket.socket]:
    """A listening socket for each address, or none."""
    with contextlib.ExitStack() as opened:
        listeners = [opened.enter_context(bind(address)) for address in addresses]
        opened.pop_all()
    return listeners


def run(config: Config, engine: Engine, greet: Optional[Callable[[Address], None]] = None) -> int:
    """Serve until told to end; the exit code. ``greet`` is told where it listens, of several addresses the first."""
    connections.allow_descriptors()
    application = http.make(engine, config)
    listeners = bind_all(config.addresses)
    if greet is not None:
        greet(_address(listeners[0]))
    logs.set_up(config.log)
    most = connections.limits_of(config).connections
    if most < config.max_connections:
        why = "this process may open too few files for more (ulimit -n, or LimitNOFILE of its unit)"
        logs.event("fewer connections", logging.WARNING, most=most, reason=why)

    async def live() -> int:
        return await _Daemon(config, engine, application, listeners).run()

    return asyncio.run(live())


def _loop_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A connection that cannot be taken for want of descriptors is tried again in a second, and is no traceback."""
    error = context.get("exception")
    if isinstance(error, OSError) and "accept" in context.get("message", ""):
        logs.event("cannot accept", logging.WARNING, reason=os.strerror(error.errno or 0).lower())
    else:
        loop.default_exception_handler(context)


def _address(listener: socket.socket) -> Address:
    return Address(*listener.getsockname()[:2])


def uvicorn_config(application: ASGIApp, config: Config) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        loop="asyncio",
        http=connections.protocol(connections.limits_of(config)),
        backlog=connections.ACCEPTS,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=65,  # above the minute that proxies keep an idle connection
        timeout_graceful_shutdown=int(config.drain_s) + 5,
    )


class Server(uvicorn.Server):
    """Leaves the signals to the daemon, and ends connections that are overdue."""

    async def startup(self, sockets: Optional[list[socket.socket]] = None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_loop_failed)
        await super().startup(sockets)
        # asyncio accepts as many connections at a time as its backlog says, and fails as many times where there are no
        # descriptors: so it was given a small backlog, and the kernel gets the large one here.
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0:
            connections.check_all(self.server_state.connections, asyncio.get_running_loop().time())
            logs.log_dropped_counts()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Daemon:
    """Made inside the event loop: before Python 3.10 an Event belongs to the loop it is made in."""

    def __init__(self, config: Config, engine: Engine, application: ASGIApp, listeners: list[socket.socket]) -> None:
        self._config, self._engine, self._listeners = config, engine, listeners
        self._server = Server(uvicorn_config(application, config))
        self._stop_asked = asyncio.Event()
        self._stop_at_once_asked = asyncio.Event()

    async def run(self) -> int:
        # 1. Listen at once: /health and the list of models never wait for a load.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        serving = asyncio.ensure_future(self._server.serve(self._listeners))
        reporting = asyncio.ensure_future(self._report_status())
        for listener in self._listeners:
            logs.event("listening", address=str(_address(listener)), bundle=str(self._config.bundle))
        await self._engine.start()
        notify.tell("READY=1")
        # 2. Until a signal comes.
        stop_asked = asyncio.ensure_future(self._stop_asked.wait())
        either: set[asyncio.Future[Any]] = {serving, stop_asked}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # 3. No new connections, no new jobs; those under way may end.
        notify.tell("STOPPING=1", "STATUS=draining")
        logs.event("draining", seconds=self._config.drain_s)
        self._server.should_exit = True
        closing = asyncio.ensure_future(self._engine.close(self._config.drain_s))
        at_once = asyncio.ensure_future(self._stop_at_once_asked.wait())
        ending: asyncio.Future[Any] = asyncio.gather(closing, serving)
        both: set[asyncio.Future[Any]] = {ending, at_once}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        reporting.cancel()
        if not ending.done():
            return await self._end_now(ending)
        at_once.cancel()
        ending.result()
        logs.event("ended")
        return 0

    def _on_signal(self) -> None:
        (self._stop_at_once_asked if self._stop_asked.is_set() else self._stop_asked).set()

    async def _end_now(self, ending: asyncio.Future[Any]) -> int:
        """After a second signal: what is under way is lost, the worker is not left behind."""
        logs.event("ended at once", logging.WARNING)
        self._server.force_exit = True
        ending.cancel()
        with contextlib.suppress(asyncio.CancelledError, asyncio.TimeoutError):
            await asyncio.wait_for(ending, _WORKER_END_S)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._engine.close(0), _WORKER_END_S)
        return 1

    async def _report_status(self) -> None:
        """Keep systemd's watchdog quiet and its status line true."""
        watchdog_s = notify.watchdog_s()
        shown: Optional[str] = None
        while True:
            status = _status_line(self._engine.status)
            if status != shown:
                notify.tell(f"STATUS={status}")
                shown = status
            if watchdog_s is not None:
                notify.tell("WATCHDOG=1")
            await asyncio.sleep(min(_TICK_S, (watchdog_s or _TICK_S) / 3))


def _status_line(status: Status) -> str:
    work = f"{'answering' if status.running else 'idle'}, {status.queued} waiting"
    return status.reason.replace("\n", " ") or (work if status.state == "ready" else status.state)
