"""A board on which something else answers than the agent that was sent there: a sentence, and an end."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rk3588.deploy import agent_client, transfer
from rk3588.deploy.apply import Done, Watcher, apply
from rk3588.deploy.board import activation, service
from rk3588.deploy.local import LocalConnection
from rk3588.deploy.release_files import File
from rk3588.deploy.steps import Activate, Command, DeploymentPlan, Send, Step
from rk3588.errors import DeployError
from tests.ssh_client import nobody

DATA = b"a file of a release"
SEND = Send(File("a", DATA, len(DATA), hashlib.sha256(DATA).hexdigest()), "/nowhere/a", root=False)
DEEP = '{"a":' * 30_000
Says = Callable[[str], str]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """A command that prints a text and takes some of what it is sent; it is the agent from now on, too."""

    def made(text: str) -> str:
        (tmp_path / "said").write_text(text)
        line = f"cat {tmp_path / 'said'}; head -c 100000 >/dev/null"
        monkeypatch.setattr(agent_client, "line", lambda _: line)
        return line

    return made


def run(step: Step) -> None:
    apply(DeploymentPlan("release", (step,)), LocalConnection(nobody), Done(), Watcher())


@pytest.mark.parametrize(
    "offer",
    [
        *("{}", '{"have": "x"}', '{"have": -1}', '{"have": null}', '{"have": 1e400}'),
        *('{"have": [], "sha256": 3}', f'{{"have": {10**30}, "sha256": ""}}', DEEP, "[1]", "7"),
    ],
    ids=lambda offer: str(offer[:30]),
)
def test_what_is_no_offer(says: Says, offer: str) -> None:
    says(offer + "\n")
    with pytest.raises(DeployError, match="this machine"):
        run(SEND)


def test_what_is_no_answer(says: Says) -> None:
    for text in (DEEP, "[" * 30_000 + "\n{", "7"):
        says(text + "\n")
        with pytest.raises(DeployError, match="this machine"):
            run(Command("", "", root=False, agent=True, seconds=10))


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (DEEP, "the activation broke off"),
        ('["ok"]', "the activation broke off"),
        ('7\n"ok"\nnull', "the activation broke off"),
        ('{"ok": false}', "did not prove itself"),
        ('{"ok": 0, "error": ["x"], "log": 5, "current": {}}', "did not prove itself"),
        ('{"ok": false, "error": "why", "log": ["one", 2, null]}', "(?s)did not prove itself: why.*one"),
    ],
    ids=lambda text: str(text[:30]),
)
def test_what_is_no_activation(says: Says, events: str, told: str) -> None:
    with pytest.raises(DeployError, match=told):
        run(Activate(says(events + "\n").partition(";")[0], "", 10, root=False))


def test_an_offer_is_gone_on_with(says: Says) -> None:
    """The same board, for once with what an agent says: the test above fails for no other reason."""
    half = hashlib.sha256(DATA[:5]).hexdigest()
    says(f'{{"have": 5, "sha256": "{half}"}}\n{{"ok": true}}\n')
    sender = transfer.Sender(LocalConnection(nobody), transfer.Throttle(None), lambda _: None)
    assert sender.send(SEND) == len(DATA) - 5
    sender.close()


OTHERS = (
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 500 Broken\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhalf",
    b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n" + DEEP.encode(),
    b"HTTP/1.1 503 No\r\n\r\n" + b"[" * 4000,
)


@contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """A port at which everybody gets this answer."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            while True:
                try:
                    guest, _ = door.accept()
                except OSError:
                    return
                with guest:
                    guest.recv(1 << 16)
                    guest.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield door.getsockname()[1]
        door.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize("answer", OTHERS, ids=lambda answer: str(answer[:30]))
def test_what_is_no_daemon_is_an_answer_too(answer: bytes) -> None:
    with listening(answer) as port:
        status, said = service.call(port, "/ready", timeout=10)
    assert status in (0, 500, 503) and isinstance(said, str) and said


def test_a_release_goes_back_where_something_else_has_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "start", lambda *_: None)
    monkeypatch.setattr(activation, "stop", lambda *_: None)
    told: list[dict[str, object]] = []
    with listening(OTHERS[0]) as port:
        for name in ("old", "new"):
            (tmp_path / "releases" / name).mkdir(parents=True)
            manifest = {"service": "process", "port": port, "load_seconds": 0.2}
            (tmp_path / "releases" / name / "release.json").write_text(json.dumps(manifest))
        (tmp_path / "current").symlink_to("releases/old")
        activation.activate_and_report(str(tmp_path), "new", False, lambda **words: told.append(words))
    assert [each.get("step") for each in told[:-1]] == ["switch", "back"]
    assert told[-1]["ok"] is False and "SSH-2.0" in str(told[-1]["error"])
    assert (tmp_path / "current").readlink().name == "old" and not (tmp_path / "unproven.json").exists()
