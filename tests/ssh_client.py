"""What tests of SSH share: a real sshd, an empty home folder, and connections to the one from the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rk3588.deploy.connection import Ask
from rk3588.deploy.local import LocalConnection
from rk3588.deploy.ssh import config, connection, hostkeys
from rk3588.deploy.ssh.config import Destination
from tests import sshd

needs_sshd = pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)


def nobody(_question: str) -> None:
    return None


def no(_question: str, _new: bool) -> bool:
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    if sshd.MISSING:
        pytest.skip(sshd.MISSING)
    started = sshd.start(tmp_path_factory.mktemp("sshd"), "AllowTcpForwarding yes")
    yield started
    started.stop()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, without an agent, on a machine that configures nothing for ssh."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "absent")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def destination_of(server: sshd.Sshd, known: Path | None = None) -> Destination:
    file = known or server.folder / "known_hosts"
    if known is None:
        file.write_text(server.known)
    return Destination(
        name="board",
        address="127.0.0.1",
        port=server.port,
        user=sshd.USER,
        keys=(server.key,),
        only_these_keys=True,
        jumps=(),
        proxy_command=None,
        known_hosts=(file,),
        hash_names=False,
        key_alias=None,
        connect_timeout=10.0,
    )


PLAIN = Destination("board", "board", 22, "me", (), True, (), None, (), False, None, 10.0)


def connect(target: Destination, ask: Ask = nobody, accept: hostkeys.Accept = no) -> connection.SshConnection:
    return connection.connect(target, ask, accept)


class Ordinary(LocalConnection):
    """This machine, as somebody who is not root."""

    @property
    def user_id(self) -> int:
        return 1000
