"""Commands on this machine, and becoming root for them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.deploy import agent_client, local
from rk3588.deploy import connection as sessions
from rk3588.deploy.local import LocalConnection
from rk3588.errors import ConnectError, DeployError
from tests.ssh_client import Ordinary, nobody

SUDO = """#!/bin/sh
# Like sudo: reads a password line with -S, asks for none when told so, forgets with -k.
secret={secret}; interactive=yes; stdin=
while :; do case $1 in
  -n) interactive=; shift;; -k) shift;; -S) stdin=yes; shift;; -p) shift 2;; *) break;; esac; done
if [ -n "$secret" ]; then
  [ -n "$interactive" ] || {{ echo 'sudo: a password is required' >&2; exit 1; }}
  n=0
  while :; do
    IFS= read -r line || exit 1
    [ "$line" = "$secret" ] && break
    n=$((n + 1)); [ $n -lt 3 ] || exit 1
  done
fi
echo called >> {log}
exec env AS_ROOT=yes "$@"
"""


@pytest.fixture
def sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "sudo"


def install(sudo: Path, secret: str) -> None:
    sudo.write_text(SUDO.format(secret=secret, log=sudo.with_suffix(".log")))
    sudo.chmod(0o755)


def test_a_program_here_that_reads_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_STALL", 0.2)
    session = LocalConnection(nobody).start("sleep 60")
    with pytest.raises(ConnectError, match="took no data"):
        session.send(bytes(1 << 20))
    session.kill()


def test_a_board_that_never_stops_talking_does_not_fill_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MOST_OUTPUT", 1 << 20)
    assert len(LocalConnection(nobody).run("head -c 50000000 /dev/zero").out) < 2 << 20


def test_sudo_without_a_password(sudo: Path) -> None:
    install(sudo, "")
    asked: list[str] = []
    board = Ordinary(lambda question: asked.append(question))
    assert board.run("cat; echo $AS_ROOT", root=True, stdin=b"data ").text == "data yes\n"
    assert board.run("echo $AS_ROOT").text == "\n"
    assert not asked


def test_sudo_asks_once_and_only_when_needed(sudo: Path) -> None:
    install(sudo, "geheim")
    answers = iter(["wrong", "geheim"])
    board = Ordinary(lambda _: next(answers))
    board.run("true")
    assert not sudo.with_suffix(".log").exists()
    for _ in range(3):
        assert board.run("cat; echo $AS_ROOT", root=True, stdin=b"data ").text == "data yes\n"


def test_sudo_that_says_no(sudo: Path) -> None:
    install(sudo, "geheim")
    with pytest.raises(DeployError, match="refused the password three times"):
        Ordinary(lambda _: "wrong").run("true", root=True)
    with pytest.raises(DeployError, match="no terminal"):
        Ordinary(nobody).run("true", root=True)
    sudo.write_text("#!/bin/sh\necho 'x is not in the sudoers file' >&2; exit 1\n")
    with pytest.raises(DeployError, match="does not let this user in"):
        Ordinary(nobody).run("true", root=True)


def test_sudo_that_says_no_only_after_the_password(sudo: Path) -> None:
    """As real ones do: before it, they say that a password is required."""
    sudo.write_text(
        "#!/bin/sh\ncase $* in *-n*) echo 'sudo: a password is required' >&2; exit 1;; esac\n"
        "read -r line; echo 'board is not in the sudoers file.' >&2; exit 1\n"
    )
    sudo.chmod(0o755)
    answers = iter(["right"])  # once
    with pytest.raises(DeployError, match="does not let this user in"):
        Ordinary(lambda _: next(answers)).run("true", root=True)


def test_a_step_that_sudo_ends_at_once_is_told_in_its_words(sudo: Path) -> None:
    """It reads nothing of the program that is sent: more than a pipe holds."""
    sudo.write_text(
        "#!/bin/sh\ncase $* in '-k -n true') exit;; esac\nexec 0<&-\n"
        "echo 'Sorry, user x is not allowed to execute python3 as root' >&2; exit 1\n"
    )
    sudo.chmod(0o755)
    with pytest.raises(DeployError, match="not allowed to execute python3"):
        agent_client.start(Ordinary(nobody), "state", root=True, stdin=bytes(1 << 20))
