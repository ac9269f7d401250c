"""One paramiko connection: its socket, its jump hosts, its commands."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Optional

import paramiko

from rk3588.deploy.connection import Ask, Connection, Data, Session
from rk3588.deploy.shell import Marks
from rk3588.errors import ConnectError

from .auth import log_in
from .config import Destination, resolve
from .failures import FAILURES, as_connect_error
from .hostkeys import Accept, KnownHosts

_KEEPALIVES = 4  # in the time of silence after which a link counts as lost
_DISK_STALL = 40.0  # a card that erases blocks takes nothing for a while
_LOGIN_SECONDS = 60.0  # a server may look up names, a user may type a password
_PROXY_SECONDS = 3.0  # for a ProxyCommand to end when it is told to
_JUMPS = 8
_ANSWER_SECONDS = 60.0  # for a board to start a command
# For the first: sshd opens no channel before PAM is done, and pam_systemd waits two minutes for a busy systemd-logind.
_FIRST_ANSWER_SECONDS = 150.0
_ENDING_SECONDS = 2.0  # for paramiko to say that a link is lost, after it has closed what went over it
_WINDOW = 1 << 24
_BLOCK = 1 << 18
# Encryption and authentication in one pass: faster than AES-CTR with a MAC (tests/bench/upload.py).
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")


def connect(
    destination: Destination, ask: Ask, accept: Accept, resolver: Callable[[str], Destination] = resolve
) -> SshConnection:
    """Log in, through the jump hosts if there are any; ConnectError or HostKeyError in one sentence.

    ``resolver`` says what is configured for a jump host.
    """
    route = Route()
    try:
        for hop in _hops(destination, resolver):
            known = KnownHosts(hop)
            route.transports.append(_transport(known, _socket(hop, route), ask, accept))
    except BaseException:
        route.close()
        raise
    return SshConnection(destination, route, ask)


def _hops(destination: Destination, resolver: Callable[[str], Destination], depth: int = 0) -> list[Destination]:
    """Where to log in, one after the other. As with OpenSSH, how the first jump host is reached may be configured."""
    if not destination.jumps:
        return [destination]
    if depth > _JUMPS:
        raise ConnectError(f"more than {_JUMPS} jump hosts lead to {destination.name}: does one go through itself?")
    first, *others = (resolver(spec) for spec in reversed(destination.jumps))
    if (first.address, first.port) == (destination.address, destination.port):
        return [destination]  # `Host *` with a ProxyJump is meant for all but the jump host
    plain = [replace(hop, jumps=(), proxy_command=None) for hop in others]
    return [*_hops(first, resolver, depth + 1), *plain, destination]


class Route:
    """What a connection goes through: jump hosts' transports, the board's last; a ProxyCommand's process."""

    def __init__(self) -> None:
        self.transports: list[paramiko.Transport] = []
        self.process: Optional[subprocess.Popen[bytes]] = None

    def close(self) -> None:
        for transport in reversed(self.transports):
            transport.close()
        if self.process:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_PROXY_SECONDS)
                    break


class StallLimitedSocket:
    """A socket, or a channel like one, that ends when a write moves nothing for a while: paramiko would try for ever.

    A socket of TCP has TCP_USER_TIMEOUT for it.
    """

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self._stuck_since = 0.0

    def send(self, data: bytes) -> int:
        try:
            sent = int(self._inner.send(data))
        except (TimeoutError, socket.timeout):
            now = time.monotonic()
            self._stuck_since = self._stuck_since or now
            if now - self._stuck_since > self._seconds:
                raise EOFError(f"nothing was taken for {self._seconds:.0f} s") from None
            raise
        self._stuck_since = 0.0
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _proxy_socket(command: str, route: Route) -> socket.socket:
    """A socket whose other end is the command's stdin and stdout; run as ssh runs it, by the user's own shell."""
    ours, theirs = socket.socketpair()
    line = [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}"]
    with theirs:
        end = theirs.fileno()
        route.process = subprocess.Popen(line, stdin=end, stdout=end, start_new_session=True)
    return ours


def _tcp_socket(destination: Destination) -> socket.socket:
    """Connected to the first of the host's addresses that answers."""
    failure = OSError("it has no address")
    try:
        places = socket.getaddrinfo(destination.address, destination.port, destination.family, socket.SOCK_STREAM)
    except UnicodeError as error:  # Python encodes names itself, and a label is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
    for family, kind, protocol, _, address in places:
        try:
            made = socket.socket(family, kind, protocol)
        except OSError as error:
            failure = error
            continue
        try:
            made.settimeout(destination.connect_timeout)
            made.connect(address)
        except OSError as error:
            made.close()
            failure = error
        else:
            made.settimeout(None)
            return made
    raise failure


def _socket(destination: Destination, route: Route) -> Any:
    """A connected socket, or a channel through the last jump host."""
    with as_connect_error(lambda error: _why_unreachable(destination, bool(route.transports), error)):
        if route.transports:
            to, origin = (destination.address, destination.port), ("127.0.0.1", 0)
            jump, seconds = route.transports[-1], destination.connect_timeout
            channel = jump.open_channel("direct-tcpip", to, origin, timeout=seconds)
            return StallLimitedSocket(channel, destination.silence)
        if destination.proxy_command:
            return StallLimitedSocket(_proxy_socket(destination.proxy_command, route), destination.silence)
        tcp = _tcp_socket(destination)
    # Without it a write blocks for ever once the cable is out.
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(destination.silence * 1000))
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp


def _why_unreachable(destination: Destination, jumps: bool, error: Exception) -> str:
    where = f"{destination.address}:{destination.port}"
    if isinstance(error, socket.gaierror):
        return (
            f"{destination.address} is not a name that can be resolved ({error.strerror}): give USER@ADDRESS, a board "
            "that `rk3588 board list` shows, or add it with `rk3588 board add`"
        )
    if isinstance(error, (TimeoutError, socket.timeout)):
        return f"{where} does not answer: is the board on, and in this network?"
    through = " through its jump host" if jumps else ""
    return f"cannot reach {where}{through}: {getattr(error, 'strerror', None) or error}"


def _transport(known: KnownHosts, sock: Any, ask: Ask, accept: Accept) -> paramiko.Transport:
    destination = known.destination
    transport = paramiko.Transport(sock, default_window_size=_WINDOW)
    where = f"{destination.address}:{destination.port}"
    try:
        with as_connect_error(lambda error: f"{where} does not speak SSH with us: {error}"):
            transport.banner_timeout = transport.auth_timeout = _LOGIN_SECONDS
            options = transport.get_security_options()
            options.ciphers = (*_CIPHERS, *(name for name in options.ciphers if name not in _CIPHERS))
            options.key_types = known.sorted_key_types(tuple(options.key_types))
            transport.start_client(timeout=destination.connect_timeout)
            key = transport.get_remote_server_key()  # none when the timeout passed, of which start_client says nothing
        known.check(key, accept)
        log_in(transport, destination, ask)
    except BaseException:
        transport.close()
        sock.close()
        raise
    transport.set_keepalive(max(1, int(destination.silence / _KEEPALIVES)))
    return transport


def _is_lost(transport: paramiko.Transport) -> bool:
    """Whether the link is gone: asked after a channel has ended without a word, which may be the first sign of it."""
    transport.join(_ENDING_SECONDS)
    return not transport.is_active()


def _close(channel: paramiko.Channel) -> None:
    with contextlib.suppress(*FAILURES):  # closing tells the server, which may be gone
        channel.close()


class SshSession(Session):
    def __init__(self, what: str, marks: Marks, channel: paramiko.Channel, patience: float) -> None:
        super().__init__(what, marks)
        self._channel = channel
        self._patience = patience
        self._read_from(channel.recv, channel.recv_stderr)

    def send(self, data: Data) -> None:
        view = memoryview(data)
        self._channel.settimeout(self._patience)  # for writes; the threads that read end with the channel
        while view:
            try:
                sent = self._channel.send(view[:_BLOCK])  # type: ignore[arg-type]
            except (TimeoutError, socket.timeout) as error:
                raise ConnectError(f"{self.what} took no data for {self._patience:.0f} s") from error
            except FAILURES as error:
                self._lost_or_ended(error)
            if not sent:
                self._lost_or_ended(None)
            view = view[sent:]

    def _lost_or_ended(self, cause: Optional[Exception]) -> None:
        if isinstance(cause, EOFError) or not self._channel.get_transport().is_active():
            raise ConnectError(f"the link to {self.what} was lost: run the same command again, it goes on from there")
        raise BrokenPipeError from cause

    def end_input(self) -> None:
        with contextlib.suppress(*FAILURES):
            self._channel.shutdown_write()

    def exit_code(self, timeout: float) -> Optional[int]:
        # recv_exit_status would wait without a timeout.
        if not self._channel.status_event.wait(timeout):
            return None
        code = self._channel.exit_status
        if code == -1:  # no status came: killed by a signal, or the link is gone
            if _is_lost(self._channel.get_transport()):
                raise ConnectError(f"the link to {self.what} was lost: run the same command again")
            return 255
        return code

    def kill(self) -> None:
        _close(self._channel)


class SshConnection(Connection):
    def __init__(self, destination: Destination, route: Route, ask: Ask) -> None:
        super().__init__(destination.name, ask)
        self.destination = destination
        self._route = route
        self._patience = _FIRST_ANSWER_SECONDS

    @property
    def transport(self) -> paramiko.Transport:
        """The board's own."""
        return self._route.transports[-1]

    def _start(self, line: str, marks: Marks) -> Session:
        with as_connect_error(self._why_not_started):
            channel = self.transport.open_session(timeout=self._patience)
            self._patience = _ANSWER_SECONDS
            # paramiko waits for the server's word without end, and a board that is stuck keeps its connections.
            impatience = threading.Timer(_ANSWER_SECONDS, _close, [channel])
            impatience.daemon = True
            impatience.start()
            try:
                channel.exec_command(line)
            finally:
                impatience.cancel()
        return SshSession(self.name, marks, channel, _DISK_STALL + self.destination.silence)

    def _why_not_started(self, error: Exception) -> str:
        if _is_lost(self.transport):
            return f"the link to {self.name} was lost: run the same command again"
        return f"{self.name} does not start a command ({error}): is the board overloaded?"

    @property
    def cipher(self) -> str:
        return str(getattr(self.transport, "remote_cipher", ""))

    def close(self) -> None:
        self._route.close()
