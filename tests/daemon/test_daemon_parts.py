"""The daemon's small parts: stop strings, settings, keys, what systemd is told, and what the process imports."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588.errors import RequestRefused, UsageError
from rkruntime import settings
from rkruntime.daemon import config, notify
from rkruntime.daemon.config import Address
from rkruntime.daemon.keys import Keys
from rkruntime.daemon.stops import StopFilter

LETTERS = st.text("ab", max_size=12)


@given(LETTERS, st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.data())
def test_stop_strings_wherever_the_text_is_split(text: str, stops: list[str], data: st.DataObject) -> None:
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    expected = text[: min(found)[1]] if found else text
    filter, out, rest = StopFilter(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        piece, rest = rest[:size], rest[size:]
        out += filter.feed(piece)
        assert expected.startswith(out), "what was given out cannot be taken back"
        held = text[len(out) : len(text) - len(rest)]
        if not filter.stopped:  # nothing is held back without a reason
            assert not held or any(stop.startswith(held) for stop in stops)
    out += filter.end()
    assert out == expected
    assert filter.stopped == bool(found)


def write(folder: Path, text: str) -> Path:
    file = folder / "rkchatd.yaml"
    file.write_text(text)
    return file


def test_a_file_and_options_over_it(tmp_path: Path) -> None:
    file = write(tmp_path, "bundle: b\nlisten: '[::1]:9000'\ncors: [https://a, https://b]\nstrict: yes\ntop_k: 5\n")
    found = config.make(file, {"top_k": 7, "strict": None, "cors": (), "log": "debug"})
    assert (found.bundle, found.listen, found.strict) == (tmp_path / "b", Address("::1", 9000), True)
    assert found.model.top_k == 7
    assert (found.cors, found.log, found.deadline_s) == (("https://a", "https://b"), "debug", 600.0)
    settings = found.engine()
    assert (settings.bundle, settings.model.top_k, settings.queue_length) == (tmp_path / "b", 7, 32)


BAD = {
    "bundel: x\n": "line 1: unknown key 'bundel' in the file: did you mean 'bundle'?",
    "bundle: b\nqueue_length: many\n": "line 2: 'queue_length': has to be a whole number from 0 to 10000, not 'many'",
    "bundle: b\nqueue_length: -1\n": "line 2: 'queue_length'",
    "bundle: b\ndeadline_s: .nan\n": "line 2: 'deadline_s'",
    "bundle: b\ntemperature: inf\n": "line 2: 'temperature': has to be a number from 0 to 100, not 'inf'",
    "bundle: b\nlisten: 8080\n": "'8080' is not an address like 127.0.0.1:8080",
    "bundle: b\nlisten: ::1:80\n": "is not an address",
    "bundle: b\nlisten: localhost:99999\n": "is not an address",
    "bundle: b\nstrict: maybe\n": "line 2: 'strict'",
    "bundle: [a, b]\n": "'bundle' has to have one value",
    "bundle: b\nlog: loud\n": "'loud' is not one of",
    "bundle: b\nmax_tokens: 0\n": "max_tokens 0 asks for no answers",
    "bundle: b\nbundle: c\n": "stands in the file twice",
    "- bundle\n": "expected `key: value` lines",
    "bundle: 'b\n": "not valid YAML",
    "strict: no\n": "which bundle?",
    "bundle: b\nlisten: 0.0.0.0:80\n": "0.0.0.0:80 can be reached from other machines",
    "bundle: b\nollama_listen: 0.0.0.0:11434\n": "0.0.0.0:11434 can be reached from other machines",
    "bundle: b\nollama_listen: 127.0.0.1:8080\n": "listen and ollama_listen are both 127.0.0.1:8080",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_gets_one_sentence(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    done = subprocess.run(
        [sys.executable, "-m", "rkruntime.daemon.main", "--config", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert BAD[text] in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: ")


def test_other_addresses_need_keys_or_consent(tmp_path: Path) -> None:
    open_ = {"bundle": tmp_path, "listen": Address("0.0.0.0", 80)}
    assert config.make(None, {**open_, "insecure": True}).insecure
    assert config.make(None, {**open_, "keys": tmp_path / "keys"}).keys
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert config.make(None, {"bundle": tmp_path, "listen": Address(host, 80)})


def test_every_option_is_a_field_and_an_option_of_the_command() -> None:
    names = [option.name for option in config.OPTIONS]
    made = {"sampling", "runtime_version", "per_run_sampling", "template_facts"}  # by the daemon itself
    own = set(config.Config.__dataclass_fields__) - {"model", *made}
    assert sorted(names) == sorted([*own, *settings.BY_NAME])
    assert set(settings.BY_NAME) == set(settings.Settings.__dataclass_fields__) - {"lora", "template_variables"}
    done = subprocess.run([sys.executable, "-m", "rkruntime.daemon.main", "--help"], capture_output=True, text=True)
    for option in config.OPTIONS:
        assert re.search(rf"{option.flag}\b", done.stdout), option.flag


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no key in it"),
        ("a b:key\n", "line 1: the name"),
        ("ok\nname:\n", "line 2: a key"),
        ("name:two words\n", "line 1: a key"),
        ("a:twin-1\nb:twin-1\n", "line 2: this key stands there twice"),
    ],
)
def test_bad_files_of_keys(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        Keys(file)
    assert "twin-1" not in str(caught.value)


def test_keys_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Keys(tmp_path / "none")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        Keys(tmp_path / "keys")


def test_keys_that_are_wrong_are_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ann:sk-1:2\n")
    keys = Keys(tmp_path / "keys")
    assert keys.owner("Bearer sk-1:2") == "ann"
    for wrong in (None, "", "Bearer", "Bearer sk-1", "Basic sk-1:2", "Bearer \udcff"):
        with pytest.raises(RequestRefused):
            keys.owner(wrong)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@rkchatd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify.tell("READY=1", "STATUS=x")
        assert systemd.recv(100) == b"READY=1\nSTATUS=x"
    notify.tell("READY=1")  # nobody listens any more: no error


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
    ],
)
def test_the_watchdog(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], seconds: Any) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert notify.watchdog_s() == seconds


def test_the_supervisor_stays_small() -> None:
    """What has no business in it is not imported; its memory is measured where it runs, in test_daemon_process.py."""
    code = "import sys, rkruntime.daemon.server, rkruntime.daemon.engine, rkruntime.daemon.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for heavy in ("jinja2", "numpy", "pydantic", "jsonschema", "rich", "rkruntime.binding", "httptools", "uvloop"):
        assert heavy not in loaded


def test_without_its_extra_the_daemon_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; from rkruntime.daemon import main; "
        f"sys.argv = ['rkchatd', '--bundle', {str(tmp_path)!r}]; main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "Error: the daemon needs uvicorn: pip install 'rk3588[daemon]'\n")
