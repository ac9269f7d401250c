"""The service: units, start and stop, with systemd or without; and whether the daemon answers a chat."""

from __future__ import annotations

import contextlib
import errno
import glob
import http.client
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Optional

from .files import text_of, write

UNITS = "/etc/systemd/system"
SERVICE = "rkchatd.service"
OUR_UNITS = (SERVICE, "rkchatd-clocks.service")  # whatever else is called like them is the user's
GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd")  # version 2, version 1
POLL = 0.15  # seconds between looks at a daemon on trial
RESTARTS = 3  # ends of a daemon on trial, or of its worker, after which more patience is of no use


def units_of(folder: str, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of a unit file in the release and its place; none where the daemon runs without systemd."""
    if manifest.get("service") != "systemd":
        return []
    return [(path, f"{UNITS}/{os.path.basename(path)}") for path in sorted(glob.glob(folder + "/*.service"))]


def installed() -> list[str]:
    """Where our units lie that systemd has now."""
    return [place for place in (f"{UNITS}/{name}" for name in OUR_UNITS) if os.path.exists(place)]


def systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def show(*properties: str) -> dict[str, str]:
    lines = systemctl("show", SERVICE, *(f"-p{name}" for name in properties)).stdout.splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def keeper_of(prefix: str) -> Optional[int]:
    """The process group that keeps the daemon where there is no systemd; None if it does not run."""
    try:
        with open(prefix + "/keeper.pid", encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return pid if prefix.encode() in file.read() else None
    except (OSError, ValueError):
        return None


def is_active(prefix: str, manifest: dict[str, Any]) -> bool:
    if manifest["service"] == "systemd":
        return show("ActiveState").get("ActiveState") in ("active", "activating", "reloading")
    return keeper_of(prefix) is not None


def stop(prefix: str, manifest: dict[str, Any]) -> None:
    if manifest.get("service") == "systemd":
        systemctl("stop", SERVICE)
        return
    group = keeper_of(prefix)
    if group is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        for _ in range(150):
            if not group_is_alive(group):
                return
            time.sleep(0.1)


def why_not_stopped() -> str:
    """What a stopped service left running: in the NPU's driver a process can hang that no signal ends; "" for none."""
    for top in GROUPS:
        for pid in text_of(f"{top}/system.slice/{SERVICE}/cgroup.procs").split():
            if text_of(f"/proc/{pid}/stat").rpartition(") ")[2][:1] not in ("", "Z", "X"):
                return f"process {pid} of the old release hangs and cannot be killed: reboot the board and run it again"
    return ""


def group_is_alive(group: int) -> bool:
    """Whether a process of the group runs: one that only waits to be collected does not."""
    for path in glob.glob("/proc/[0-9]*/stat"):
        words = text_of(path).rpartition(") ")[2].split(" ")  # state, parent, group, …
        if words[2:3] == [str(group)] and words[0] not in "ZX":
            return True
    return False


def start(prefix: str, manifest: dict[str, Any]) -> None:
    if manifest["service"] == "systemd":
        systemctl("reset-failed", SERVICE)
        systemctl("stop", SERVICE)  # and wait: else the old daemon may still answer, and prove the new one
        hanging = why_not_stopped()
        if hanging:  # a second one on the NPU could freeze the board
            raise OSError(errno.EBUSY, hanging)
        systemctl("--no-block", "start", SERVICE)
        return
    stop(prefix, manifest)
    write(prefix + "/keeper.ends", "")
    open(prefix + "/rkchatd.log", "wb").close()  # anew: what it says is of this release
    with open(prefix + "/rkchatd.log", "ab") as log:  # appended to: the keeper empties it when it is long
        command = ["/bin/sh", prefix + "/current/keep.sh"]
        keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    write(prefix + "/keeper.pid", str(keeper.pid))


def call(port: int, path: str, body: Optional[bytes] = None, key: str = "", timeout: float = 10.0) -> tuple[int, Any]:
    """Status and JSON of an answer of the daemon; (0, why) when there is none."""
    headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + key} if key else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            with opener.open(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read(1 << 20) or b"{}")
        except urllib.error.HTTPError as error:
            text = error.read(4096).decode("utf-8", "replace")
            with contextlib.suppress(ValueError):
                return error.code, json.loads(text)
            return error.code, text
    # Whatever else listens there, or ends while it answers: it proves nothing, and the old release has to come back.
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        return 0, str(getattr(error, "reason", None) or error).strip() or type(error).__name__


def is_ready(port: int) -> tuple[bool, Any]:
    status, said = call(port, "/ready", timeout=5.0)
    return status == 200, said


def first_key(prefix: str) -> str:
    for line in text_of(prefix + "/keys").splitlines():
        if line.strip() and not line.startswith("#"):
            return line.strip().rpartition(":")[2]
    return ""


def chat(prefix: str, port: int, seconds: float) -> str:
    """One token through the API that everybody uses; "" when it came, else what was wrong."""
    asked = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1, "temperature": 0}
    status, said = call(port, "/v1/chat/completions", json.dumps(asked).encode(), first_key(prefix), seconds)
    if status != 200:
        return f"a chat was answered with {status}: {short_message(said)}"
    try:
        choice = said["choices"][0]
        answer = choice["message"]["content"]
        # Without a vocabulary nobody counts tokens; and one token may be half a letter, which is no text yet.
        uncounted = answer or choice["finish_reason"] == "length"
        tokens = said["usage"]["completion_tokens"] if "usage" in said else uncounted
    except (KeyError, IndexError, TypeError):
        return f"a chat was answered with something else: {short_message(said)}"
    if not isinstance(answer, str) or not tokens:
        return "a chat was answered with no token"
    return ""


def short_message(said: Any) -> str:
    """The message in an error of any of the usual shapes."""
    while isinstance(said, dict) and said:
        known = [said[key] for key in ("error", "message", "reason", "detail", "status") if key in said]
        said = known[0] if known else json.dumps(said)
    return str(said).strip()[:300]


def wait_until_proven(prefix: str, manifest: dict[str, Any], port: int, ended: Callable[[], str]) -> str:
    """Wait until the daemon answers a chat; "" or why it does not. ``ended()`` says if and why it gave up."""
    deadline = time.monotonic() + manifest["load_seconds"]
    reason = "no answer"
    while time.monotonic() < deadline:
        gone = ended()
        if gone:
            return gone
        fine, said = is_ready(port)
        if fine:
            return chat(prefix, port, max(30.0, deadline - time.monotonic()))
        reason = short_message(said)
        restarts = said.get("restarts") if isinstance(said, dict) else 0
        if isinstance(restarts, int) and restarts >= RESTARTS:
            return f"its worker ended {restarts} times ({reason})"
        time.sleep(POLL)
    return f"not ready after {manifest['load_seconds']} s ({reason})"


def service_ended(prefix: str, manifest: dict[str, Any]) -> str:
    if manifest["service"] != "systemd":
        ends = len(text_of(prefix + "/keeper.ends").splitlines())
        return f"it ended {ends} times" if ends >= RESTARTS else ""
    now = show("ActiveState", "NRestarts", "Result")
    if now.get("ActiveState") == "failed":
        return f"it failed ({now.get('Result')})"
    return f"it ended {now['NRestarts']} times" if int(now.get("NRestarts") or 0) >= RESTARTS else ""


def last_words(prefix: str, manifest: dict[str, Any]) -> list[str]:
    """The end of the daemon's log."""
    if manifest.get("service") == "systemd":
        # Of the last start only: what is older, another release said.
        start = "_SYSTEMD_INVOCATION_ID=" + show("InvocationID").get("InvocationID", "")
        command = ["journalctl", "-q", "-u", SERVICE, "-n", "100", "-o", "cat", "_TRANSPORT=stdout", start]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        lines = done.stdout.splitlines()
    else:
        lines = text_of(prefix + "/rkchatd.log").splitlines()
    return telling(lines)


def telling(lines: list[str]) -> list[str]:
    """The last of a log that may say why it failed: not that it was asked whether it is ready."""
    return [line[:300] for line in dict.fromkeys(lines) if line.strip() and '"event": "request"' not in line][-3:]
