"""Making a release the current one: try it, and go back if it does not answer."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from .files import current_of, delete_durably, load, print_answer, refuse, sync_folder, text_of, write
from .service import (
    SERVICE,
    installed,
    is_ready,
    last_words,
    service_ended,
    start,
    stop,
    systemctl,
    telling,
    units_of,
    wait_until_proven,
    why_not_stopped,
)

STATE_DIR = "/var/lib/rkchatd"
LOG_ROOM = 16384  # bytes
# All that deployments make below a prefix. Nothing else there is deleted: the prefix may be a folder that has more.
OURS = (
    *("releases", "incoming", "current", "current.new", "unproven.json", "activation.log", "trial.log"),
    *("keys", "keys.new", "rkchatd.log", "keeper.pid", "keeper.ends"),
)


def switch_to(prefix: str, name: str) -> None:
    """Make NAME the current release and start it. Its units go where systemd looks, those of no release away."""
    folder = f"{prefix}/releases/{name}"
    manifest = load(folder + "/release.json")
    wanted = units_of(folder, manifest)
    if manifest["service"] == "systemd":
        for source, place in wanted:
            if text_of(source) != text_of(place):
                write(place, text_of(source))
        for place in installed():
            if place not in [path for _, path in wanted]:
                systemctl("disable", "--now", os.path.basename(place))
                os.unlink(place)
        systemctl("daemon-reload")
    point_current_at(prefix, name)
    start(prefix, manifest)


def point_current_at(prefix: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(prefix + "/current.new")
    os.symlink("releases/" + name, prefix + "/current.new")
    os.replace(prefix + "/current.new", prefix + "/current")
    sync_folder(prefix)


def try_beside(prefix: str, name: str, manifest: dict[str, Any]) -> tuple[str, list[str]]:
    """Let NAME prove itself on a port of its own while the current one goes on serving; "" or what was wrong."""
    folder = f"{prefix}/releases/{name}"
    port = free_port()
    command = [*manifest["command"], "--listen", f"127.0.0.1:{port}"]
    command = [word.replace(prefix + "/current/", folder + "/") for word in command]
    moved = {"--bundle": "bundle", "--library": "librkllmrt.so", "--sim-library": "librksim.so"}
    for option, path in moved.items():
        command += [option, f"{folder}/{path}"]
    if manifest["service"] == "systemd":
        command = ["setpriv", "--reuid", manifest["user"], "--regid", manifest["user"], "--init-groups", *command]
    environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    with open(prefix + "/trial.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )

    def ended() -> str:
        return "" if process.poll() is None else f"it ended with {process.returncode}"

    try:
        wrong = wait_until_proven(prefix, manifest, port, ended)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
    words = telling(text_of(prefix + "/trial.log").splitlines())
    os.unlink(prefix + "/trial.log")
    return wrong, words if wrong else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def activation(prefix: str, name: str, side_by_side: bool, tell: Callable[..., None]) -> dict[str, Any]:
    """Switch to NAME, let it answer a chat, else go back. Runs to its end whatever happens to the connection."""
    marker = prefix + "/unproven.json"
    before = load(marker)
    old: str = before["old"] if before else current_of(prefix)
    old_manifest = load(f"{prefix}/releases/{old}/release.json") if old else {}
    manifest = load(f"{prefix}/releases/{name}/release.json")
    # A number and not the time: clocks of boards without a battery jump. Written now: later the disk may be full.
    numbers = [text_of(path) for path in glob.glob(prefix + "/releases/*/.proven")]
    last = max((int(text) for text in numbers if text.isdigit()), default=0)
    write(f"{prefix}/releases/{name}/.proving", str(last + 1))
    write(marker, json.dumps({"old": old, "new": name, "boot": text_of("/proc/sys/kernel/random/boot_id").strip()}))
    if side_by_side and old_manifest and old != name:
        tell(step="trial")
        wrong, words = try_beside(prefix, name, manifest)
        if wrong:
            delete_durably(marker)
            healthy = is_ready(old_manifest["port"])[0]
            return {"ok": False, "error": wrong, "log": words, "current": old, "old_healthy": healthy}
    tell(step="switch")
    if old_manifest.get("service") == "systemd":
        stop(prefix, old_manifest)
        hanging = why_not_stopped()
        if hanging:  # then nothing is switched
            delete_durably(marker)
            return {"ok": False, "error": hanging, "log": [], "current": old, "old_healthy": False}
    with contextlib.suppress(OSError):
        # A model that was given up on is tried again when somebody deploys.
        os.unlink(STATE_DIR + "/unfinished-loads.json")
    if old_manifest and old_manifest["service"] != manifest["service"]:
        stop(prefix, old_manifest)
    switch_to(prefix, name)
    wrong = wait_until_proven(prefix, manifest, manifest["port"], lambda: service_ended(prefix, manifest))
    if not wrong:
        if manifest["service"] == "systemd":
            places = [place for _, place in units_of(f"{prefix}/releases/{name}", manifest)]
            # --now is for the clocks' unit; the daemon serves already.
            systemctl("enable", "--now", *map(os.path.basename, places))
        os.replace(f"{prefix}/releases/{name}/.proving", f"{prefix}/releases/{name}/.proven")
        sync_folder(f"{prefix}/releases/{name}")
        delete_durably(marker)
        return {"ok": True, "current": name}
    words = last_words(prefix, manifest)
    answer = {"ok": False, "error": wrong, "log": words, "current": old, "old_healthy": False}
    if old_manifest and old != name:
        tell(step="back")
        switch_to(prefix, old)
        old_ended: Callable[[], str] = lambda: service_ended(prefix, old_manifest)  # noqa: E731
        answer["old_healthy"] = not wait_until_proven(prefix, old_manifest, old_manifest["port"], old_ended)
    elif old != name:  # the first release there: nothing to go back to
        stop(prefix, manifest)
        remove_service(prefix, manifest)
    delete_durably(marker)
    return answer


def remove_service(prefix: str, manifest: dict[str, Any]) -> None:
    """No service any more; releases stay."""
    stop(prefix, manifest)
    if manifest.get("service") == "systemd":
        for place in installed():
            systemctl("disable", "--now", os.path.basename(place))
            os.unlink(place)
        systemctl("daemon-reload")
        systemctl("reset-failed", SERVICE)
    for path in ("/current", "/keeper.pid", "/keeper.ends"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(prefix + path)


def activate(prefix: str, name: str, side_by_side: str = "") -> None:
    """Run the activation in a process of its own and tell what it says; it goes on when the connection ends."""
    log_path = prefix + "/activation.log"
    log = os.open(log_path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        take_lock(log)
        os.ftruncate(log, 0)
        os.pwrite(log, b" " * LOG_ROOM, 0)  # so that a disk that fills up meanwhile does not silence it
    except BlockingIOError:
        refuse("an activation is still going on there: wait for it, then run the same command again")
    except OSError as error:
        refuse(f"cannot write {log_path}: {error.strerror}")
    child = os.fork()
    if child == 0:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # a handler, as the daemon would inherit SIG_IGN
        nothing = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(nothing, handle)

        def tell(**words: object) -> None:
            os.write(log, json.dumps(words).encode() + b"\n")

        try:
            os.lseek(log, 0, os.SEEK_SET)
            activate_and_report(prefix, name, bool(side_by_side), tell)
        finally:
            os._exit(0)
    offset, done = 0, False
    while not done:
        done = os.waitpid(child, os.WNOHANG)[0] == child
        whole, end, _ = os.pread(log, 1 << 16, offset).rpartition(b"\n")
        offset += len(whole + end)
        sys.stdout.write((whole + end).decode())
        sys.stdout.flush()
        time.sleep(0 if whole else 0.05)


def take_lock(log: int) -> None:
    """The lock of an activation; BlockingIOError where another has it for longer than it takes to ask after it."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.05)
    raise BlockingIOError


def activate_and_report(prefix: str, name: str, side_by_side: bool, tell: Callable[..., None]) -> None:
    """The activation, with its outcome told whatever happens."""
    try:
        tell(**activation(prefix, name, side_by_side, tell))
    except Exception as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        now = load(prefix + "/current/release.json")
        healthy = bool(now) and is_ready(now["port"])[0]
        tell(ok=False, error=what, log=[], current=current_of(prefix), old_healthy=healthy)


def guard(prefix: str) -> None:
    """Before the daemon starts: a release whose trial was cut short by a reboot gives way to the one before it."""
    marker = load(prefix + "/unproven.json")
    if not marker or marker.get("boot") == text_of("/proc/sys/kernel/random/boot_id").strip():
        return
    old = marker.get("old")
    if old and os.path.isdir(f"{prefix}/releases/{old}"):
        point_current_at(prefix, old)
    delete_durably(prefix + "/unproven.json")


def remove(prefix: str, rule: str, user: str) -> None:
    """Everything a deployment ever made, and nothing else; the prefix too, if it is empty then."""
    manifest = load(prefix + "/current/release.json")
    remove_service(prefix, manifest or {"service": "systemd" if installed() else "process"})
    if rule and os.path.exists(rule):
        os.unlink(rule)
        if shutil.which("udevadm"):
            subprocess.run(["udevadm", "control", "--reload"])
    if user:
        shutil.rmtree(STATE_DIR, ignore_errors=True)
        subprocess.run(["userdel", user], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    places = [f"{prefix}/{name}" for name in OURS]
    for place in places:
        if os.path.islink(place) or os.path.isfile(place):
            os.unlink(place)
        else:
            shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(prefix)
    left = [place for place in places if os.path.lexists(place)]
    print_answer(ok=not left, **({"error": f"{left[0]} could not be deleted"} if left else {}))
