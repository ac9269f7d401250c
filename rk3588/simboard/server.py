"""A simulated board without root: an SSH server in paramiko's server mode.

With the argument FOLDER this module returns when the board is up.

Commands run as this user with the board's own home folder and faked tree (RKBOARD_SYSROOT); nothing else is hidden from
them. The key in FOLDER/id.pub may log in, from this machine only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import paramiko
from paramiko import common

from rk3588 import simboard
from rk3588.deploy.ssh.tokens import local_user

_ACCEPT_SECONDS = 30.0
_TOLD_SECONDS = 0.2


class Login(paramiko.ServerInterface):
    """Who may do what: one key may run commands."""

    def __init__(self, key: bytes, environment: dict[str, str], home: Path) -> None:
        self._key = key
        self._environment = environment
        self._home = home

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002
        return common.AUTH_SUCCESSFUL if key.asbytes() == self._key else common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return common.OPEN_SUCCEEDED if kind == "session" else common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            ["/bin/sh", "-c", command.decode()],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            cwd=self._home,
            env=self._environment,
            start_new_session=True,
        )
        threading.Thread(target=serve, args=(channel, process), daemon=True).start()
        return True


def serve(channel: paramiko.Channel, process: subprocess.Popen[bytes]) -> None:
    """Carry bytes both ways until the command has ended."""
    assert process.stdin and process.stdout and process.stderr
    heard = threading.Event()
    feed = (channel, process.stdin.fileno(), process.stdin.close, heard)
    threading.Thread(target=_feed, args=feed, daemon=True).start()
    outputs = [
        threading.Thread(target=_pump, args=(stream.fileno(), send), daemon=True)
        for stream, send in ((process.stdout, channel.sendall), (process.stderr, channel.sendall_stderr))
    ]
    for thread in outputs:
        thread.start()
    code = process.wait()
    for thread in outputs:
        thread.join(1.0)  # a background child may hold the pipe
    # Not before paramiko has told the client that the command was started: what the client sends comes after that.
    heard.wait(_TOLD_SECONDS)
    with contextlib.suppress(OSError, EOFError):
        channel.send_exit_status(code if code >= 0 else 128 - code)
        channel.shutdown(2)
    channel.close()


def _feed(channel: paramiko.Channel, stdin: int, close: Callable[[], None], heard: threading.Event) -> None:
    """Carry what the client sends to ``stdin``; ``heard`` is set at its first word, or its end."""
    with contextlib.suppress(OSError, EOFError):
        while data := channel.recv(1 << 16):
            heard.set()
            view = memoryview(data)
            while view:
                view = view[os.write(stdin, view) :]
    heard.set()
    with contextlib.suppress(OSError):
        close()


def _pump(source: int, send: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := os.read(source, 1 << 16):
            send(data)


def session(connection: socket.socket, host_key: paramiko.PKey, login: Login) -> None:
    """One connection until it ends; its commands start in threads of their own."""
    transport = paramiko.Transport(connection)
    transport.add_server_key(host_key)
    try:
        transport.start_server(server=login)
        kept = []  # paramiko closes a channel that nobody holds
        while transport.is_active():
            channel = transport.accept(_ACCEPT_SECONDS)
            if channel is not None:
                kept.append(channel)
            kept = [open_channel for open_channel in kept if not open_channel.closed]
    except (paramiko.SSHException, EOFError, OSError):
        pass  # somebody who only knocked
    finally:
        transport.close()


def python_folder(executable: str, base_prefix: str) -> Path:
    """Where the board's ``python3`` is: ours; of a virtual environment whose path is not ASCII, the one it was made of.

    Commands run in the C locale, in which Python cannot read such folders' names in an environment's .pth files.
    """
    return Path(executable).parent if executable.isascii() else Path(base_prefix) / "bin"


def main(folder: Path) -> None:
    place = simboard.place_of(folder)
    host_key = paramiko.PKey.from_path(place / "host_key")
    key = paramiko.PKey.from_path(place / "id").asbytes()
    home = place / "home"
    environment = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{python_folder(sys.executable, sys.base_prefix)}:/usr/local/bin:/usr/bin:/bin",
        "RKBOARD_SYSROOT": str(place / "tree"),
        "USER": local_user(),
    }
    login = Login(key, environment, home)

    def ended(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, ended)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if os.fork():
            os._exit(0)  # it can be reached: whoever started it may go on
        os.setsid()
        known = f"{host_key.get_name()} {host_key.get_base64()}"
        simboard.write_description(folder, "server", os.getpid(), "127.0.0.1", port, local_user(), known)
        while True:
            select.select([listener], [], [])
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=session, args=(connection, host_key, login), daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
