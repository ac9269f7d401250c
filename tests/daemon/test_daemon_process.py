"""The daemon as a process: signals, systemd, its log, its memory, and an address that is taken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from rk3588.errors import TargetError
from rkruntime.daemon import server
from rkruntime.daemon.config import Address
from tests.daemon_process import over_script, running
from tests.daemon_server import WAIT_S, Service, until

DAEMON = (sys.executable, "-m", "rkruntime.daemon.main")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end_and_refuses_new_ones(
    tiny_bundles: Mapping[str, Path], number: signal.Signals
) -> None:
    with running(over_script(tiny_bundles["w8a8"])) as daemon, closing(daemon.connect()) as connection:
        body = {"stream": True, "messages": [{"role": "user", "content": "slow 0.3 one|two|three"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = connection.getresponse()
        assert b"one" in answer.read(400)
        daemon.process.send_signal(number)
        rest = answer.read()
        assert b"three" in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert daemon.process.wait(WAIT_S) == 0
        with pytest.raises(ConnectionError):
            daemon.get("/health")
        assert [entry["event"] for entry in daemon.log][-1] == "ended"


def test_answers_that_do_not_end_are_cut_off(tiny_bundles: Mapping[str, Path]) -> None:
    with (
        running(over_script(tiny_bundles["w8a8"], "--drain-s", "0.3")) as daemon,
        closing(daemon.connect()) as connection,
    ):
        connection.request("POST", "/v1/completions", json.dumps({"stream": True, "prompt": "hang x"}))
        connection.getresponse().read(10)
        daemon.process.terminate()
        assert daemon.process.wait(WAIT_S) == 0


def test_a_second_signal_ends_at_once(tiny_bundles: Mapping[str, Path]) -> None:
    with (
        running(over_script(tiny_bundles["w8a8"], "--drain-s", "3600")) as daemon,
        closing(daemon.connect()) as connection,
    ):
        connection.request("POST", "/v1/completions", json.dumps({"stream": True, "prompt": "hang x"}))
        connection.getresponse().read(10)
        daemon.process.terminate()
        until(lambda: daemon.events("draining"))
        daemon.process.terminate()
        assert daemon.process.wait(WAIT_S) == 1


def test_a_second_address_for_clients_of_ollama(tiny_bundles: Mapping[str, Path]) -> None:
    """The same daemon at both, with one queue; also where the second cannot be had, nothing is left open."""
    with running(over_script(tiny_bundles["w8a8"], "--ollama-listen", "127.0.0.1:0")) as daemon:
        until(lambda: len(daemon.events("listening")) == 2)
        ports = [int(entry["address"].rpartition(":")[2]) for entry in daemon.events("listening")]
        assert len(set(ports)) == 2
        for port in ports:
            found = Service(port, None)
            assert found.get("/").body.startswith(b"Ollama is running")
            assert found.chat("say x").json["choices"][0]["message"]["content"] == "x"
            assert found.ollama("say x", stream=False).json["message"]["content"] == "x"
            assert found.get("/api/tags", origin=f"http://127.0.0.1:{port}").status == 200
            assert found.get("/api/tags", host="evil.example").status == 403
        daemon.process.terminate()
        assert daemon.process.wait(WAIT_S) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address(*taken.getsockname()[:2])
        with pytest.raises(TargetError, match=f"cannot listen on {address}: another program does already"):
            server.bind_all([Address("127.0.0.1", 0), address])


def serve_command(bundle: Path) -> tuple[str, ...]:
    start = "from rk3588.cli import main; main()"
    return (sys.executable, "-c", start, "serve", str(bundle), "--listen", "127.0.0.1:0")


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_second_ctrl_c_under_an_answer_leaves_no_traceback(tiny_bundles: Mapping[str, Path]) -> None:
    env = {"RKSIM_FAULTS": "token_ms=100"}
    with running(serve_command(tiny_bundles["w8a8"]), env) as daemon, closing(daemon.connect()) as connection:
        until(lambda: daemon.get("/ready").status == 200)
        connection.request("POST", "/v1/completions", json.dumps({"stream": True, "prompt": "x", "max_tokens": 400}))
        connection.getresponse().read(10)
        (worker,) = children_of(daemon.process.pid)
        os.killpg(daemon.process.pid, signal.SIGINT)
        until(lambda: daemon.events("draining"))
        os.killpg(daemon.process.pid, signal.SIGINT)
        assert daemon.process.wait(WAIT_S) == 1
        assert not Path(f"/proc/{worker}").exists()
    assert not [entry for entry in daemon.log if "traceback" in entry]
    assert daemon.events("ended at once")


def test_ctrl_c_while_a_worker_starts_is_the_supervisors(tiny_bundles: Mapping[str, Path]) -> None:
    """A terminal sends it to every process in its foreground: a child that has just begun would die of it, loudly."""
    with running(serve_command(tiny_bundles["w8a8"])) as daemon:
        until(lambda: children_of(daemon.process.pid))
        os.killpg(daemon.process.pid, signal.SIGINT)
        assert daemon.process.wait(WAIT_S) == 0
    assert not [entry for entry in daemon.log if "Traceback" in str(entry) or "KeyboardInterrupt" in str(entry)]
    assert daemon.log[-1]["event"] == "ended"


def test_systemd_hears_of_it_all(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(WAIT_S)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        heard: list[str] = []
        with running(over_script(tiny_bundles["w8a8"]), env) as daemon:
            while heard.count("WATCHDOG=1") < 3 or "READY=1" not in heard:
                heard += systemd.recv(1000).decode().split("\n")
            assert daemon.get("/health").status == 200
        while "STOPPING=1" not in heard:
            heard += systemd.recv(1000).decode().split("\n")
        assert "STATUS=idle, 0 waiting" in heard


def test_rk3588_serve_is_the_same_daemon(tiny_bundles: Mapping[str, Path]) -> None:
    with running((*serve_command(tiny_bundles["w8a8"]), "--name", "mine")) as daemon:
        until(lambda: daemon.get("/ready").status == 200)
        assert daemon.chat(model="mine", max_tokens=2).json["usage"]["completion_tokens"] == 2
        (worker,) = children_of(daemon.process.pid)
        daemon.process.terminate()
        assert daemon.process.wait(WAIT_S) == 0
        assert not Path(f"/proc/{worker}").exists()


def test_an_address_that_is_taken(tiny_bundles: Mapping[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [*DAEMON, "--bundle", str(tiny_bundles["w8a8"]), "--listen", address], capture_output=True, text=True
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: cannot listen on {address}: another program does already; end it, or choose another port with "
        "--listen HOST:PORT\n"
    )


def test_connections_send_without_delay() -> None:
    with server.bind(Address("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()):
        connection, _ = door.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    done = subprocess.run([*DAEMON, "--bundle", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {tmp_path} is not a bundle")
    assert done.stderr.count("\n") == 1


def test_the_log_and_the_memory_of_the_real_daemon(tiny_bundles: Mapping[str, Path]) -> None:
    with running((*DAEMON, "--bundle", str(tiny_bundles["w8a8"]), "--listen", "127.0.0.1:0")) as daemon:
        until(lambda: daemon.get("/ready").status == 200)
        for _ in range(20):
            daemon.chat(
                "my secret words", headers={"authorization": "Bearer my-key", "x-request-id": "r-1"}, max_tokens=20
            )
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        entry = daemon.events("request")[-1]
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kb <= 70 * 1024
    assert entry.items() >= {"request_id": "r-1", "status": 200, "method": "POST", "model": "tiny"}.items()
    assert {"time", "level", "seconds", "prompt_tokens", "completion_tokens", "ended"} <= entry.keys()
    text = json.dumps(daemon.log)
    assert "secret" not in text
    assert "my-key" not in text
    assert daemon.process.returncode == 0


def test_an_address_that_is_no_name_at_all() -> None:
    with pytest.raises(TargetError, match=r"there is no address 'a\.\.b'"):
        server.bind(Address("a..b", 8080))
