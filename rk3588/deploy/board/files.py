"""Files on the board: their hashes, taking one, and completing a release."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn, Optional, cast

from .safe_paths import why_unsafe

BLOCK = 1 << 20
SILENCE = 60  # seconds without a byte: the sender is gone
LOCK_SILENCE = 8  # seconds without a line from the deployer, which sends one every two seconds
PATIENCE = 900  # seconds without a file: other steps of the plan may take their time
SYNC_EVERY = 64 << 20
DISK_FULL = 28  # ENOSPC


def print_answer(**words: object) -> None:
    print(json.dumps(words), flush=True)


def refuse(message: str) -> NoReturn:
    print_answer(ok=False, error=message)
    sys.exit(1)


def load(path: str) -> dict[str, Any]:
    """A JSON file's content; {} where there is none or it is torn."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def digest_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def stat_of(path: str) -> list[int]:
    found = os.lstat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def walk(folder: str) -> Iterator[str]:
    """Relative paths of all files below a folder."""
    for where, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            yield os.path.relpath(os.path.join(where, name), folder)


def subfolders(folder: str) -> list[str]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in names if os.path.isdir(f"{folder}/{name}"))


def current_of(prefix: str) -> str:
    try:
        return os.path.basename(os.readlink(prefix + "/current"))
    except OSError:
        return ""


def text_of(path: str) -> str:
    try:
        # What a kernel or a program wrote is text as far as it can be read: /proc cuts names inside a character.
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def release_state(folder: str) -> dict[str, Any]:
    """A release as it is now: its files' hashes, of those that changed computed anew."""
    manifest, seen = load(folder + "/release.json"), load(folder + "/.stat.json")
    files = {}
    for path, wanted in manifest.get("files", {}).items():
        full = os.path.join(folder, path)
        try:
            unchanged = seen.get("files", {}).get(path) == stat_of(full)
            files[path] = wanted["sha256"] if unchanged else digest_of(full)
        except OSError:
            pass  # gone: absent from the answer
    proven = text_of(folder + "/.proven")
    return {
        "manifest": manifest,
        "files": files,
        "deployed": seen.get("deployed", 0),
        "proven": int(proven) if proven.isdigit() else 0,
    }


def incoming_state(folder: str) -> dict[str, Any]:
    """Whole files by hash, half ones by size."""
    found: dict[str, Any] = {"files": {}, "parts": {}}
    for path in walk(folder):
        full = os.path.join(folder, path)
        if path.endswith(".part"):
            found["parts"][path[: -len(".part")]] = os.path.getsize(full)
        else:
            found["files"][path] = digest_of(full)
    return found


def receive() -> None:
    """Take files from stdin, each announced by a line of JSON: path, size, SHA-256, mode."""
    stdin = cast(io.BufferedReader, sys.stdin.buffer)
    while True:
        signal.alarm(PATIENCE)
        line = stdin.readline()
        if not line:
            return
        path, size, digest, mode = json.loads(line)
        receive_one(stdin, path, size, digest, mode)


def receive_one(stdin: io.BufferedReader, path: str, size: int, digest: str, mode: int) -> None:
    """Take one file into PATH, going on where a broken transfer stopped if the sender agrees."""
    wrong = why_unsafe(os.path.dirname(path))
    if wrong:
        refuse(wrong)
    part = path + ".part"
    try:
        out = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse(f"another transfer still writes {part}: wait a minute")
    except OSError as error:
        refuse(f"cannot write {part}: {error.strerror}")
    signal.alarm(0)
    hashed, have = hashlib.sha256(), 0
    while have < min(size, os.fstat(out).st_size):
        block = os.pread(out, min(BLOCK, size - have), have)
        if not block:
            break
        hashed.update(block)
        have += len(block)
    print_answer(have=have, sha256=hashed.hexdigest())
    signal.alarm(SILENCE)
    begin = stdin.readline()
    if not begin:  # whoever sends is gone; what came stays for the next time
        sys.exit(1)
    if int(begin) != have:
        hashed, have = hashlib.sha256(), 0
    try:
        os.ftruncate(out, have)
        receive_bytes(stdin, out, size, have, hashed)
    except OSError as error:
        if error.errno == DISK_FULL:  # delete the part: the board may need the room
            os.unlink(part)
            refuse(f"cannot write {path}: {error.strerror}: free some, then run the same command again")
        refuse(f"cannot write {path}: {error.strerror}")
    signal.alarm(0)
    if hashed.hexdigest() != digest:
        os.unlink(part)
        found = hashed.hexdigest()[:12]
        refuse(
            f"{os.path.basename(path)} is not what was announced: its SHA-256 is {found}… as it came to the board. "
            "Either it changed on the way, then run the same command again; or on your side: see rk3588 bundle verify"
        )
    os.fchmod(out, mode)
    os.rename(part, path)
    os.close(out)
    sync_folder(os.path.dirname(path))
    print_answer(ok=True)


def receive_bytes(stdin: io.BufferedReader, out: int, size: int, have: int, hashed: Any) -> None:
    synced = have
    os.lseek(out, have, os.SEEK_SET)
    while have < size:
        signal.alarm(SILENCE)
        block = stdin.read1(min(BLOCK, size - have))
        if not block:
            sys.exit(1)  # the sender left; what came stays for the next time
        view = memoryview(block)
        while view:
            view = view[os.write(out, view) :]
        hashed.update(block)
        have += len(block)
        if have - synced >= SYNC_EVERY:  # so that a reboot loses no more than this
            os.fdatasync(out)
            synced = have
    signal.alarm(0)
    os.fsync(out)


def sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(path + ".new", mode)
    os.replace(path + ".new", path)
    sync_folder(os.path.dirname(path))


def delete_durably(path: str) -> None:
    """Delete a file so that it stays deleted if the supply fails now."""
    os.unlink(path)
    sync_folder(os.path.dirname(path))


def finish(prefix: str, name: str) -> None:
    """Turn incoming/NAME into a release, once every file in it is there; a damaged one of that name makes way."""
    folder, final = f"{prefix}/incoming/{name}", f"{prefix}/releases/{name}"
    text = sys.stdin.buffer.read().decode()
    manifest = json.loads(text)
    stats = {}
    for path, wanted in manifest["files"].items():
        full = os.path.join(folder, path)
        # From the disk once more: what was hashed on its way may have been changed since. Looked at before it is read:
        # a change from then on shows.
        stats[path] = stat_of(full) if os.path.isfile(full) else []
        if not stats[path] or digest_of(full) != wanted["sha256"]:
            if os.path.isfile(full) and os.lstat(full).st_nlink == 1:
                os.unlink(full)
            refuse(f"{full} is missing or was changed on the board meanwhile: run the same command again")
    for path in list(walk(folder)):
        if path not in manifest["files"]:
            os.unlink(os.path.join(folder, path))
    write(folder + "/release.json", text)
    write(folder + "/.stat.json", json.dumps({"deployed": time.time(), "files": stats}))
    if os.path.isdir(final):
        damaged = f"{prefix}/incoming/.damaged-{name}"
        shutil.rmtree(damaged, ignore_errors=True)
        os.rename(final, damaged)
    os.rename(folder, final)
    sync_folder(prefix + "/releases")
    print_answer(ok=True)


def lock(path: str, who: str, prefix: str) -> None:
    """Hold the lock as long as the deployer shows that it lives. First an activation that still goes on may end.

    PATH lies where only its owner can write, so that nobody else can take it first: ``~`` is the home folder.
    """
    path = os.path.expanduser(path)
    wrong = why_unsafe(os.path.dirname(path))
    if wrong:
        refuse(wrong)
    # A deployer whose link broke holds the lock until its silence is noticed.
    deadline = time.monotonic() + LOCK_SILENCE + 4
    handle = try_lock(path)
    while handle is None:
        if time.monotonic() > deadline:
            refuse(f"a deployment by {text_of(path)[:200] or 'somebody'} is going on there")
        time.sleep(0.2)
        handle = try_lock(path)
    os.ftruncate(handle, 0)
    os.pwrite(handle, who.encode(), 0)
    wait_for_running_activation(prefix)
    print_answer(ok=True)
    while True:
        signal.alarm(LOCK_SILENCE)  # SIGALRM ends this process, and its lock with it
        if not sys.stdin.buffer.readline():
            break
    os.unlink(path)


def try_lock(path: str) -> Optional[int]:
    """A handle that has the lock; None while another process has it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        refuse(f"cannot lock {path}: {error.strerror}")
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):  # else its last holder has deleted the file
            return handle
    os.close(handle)
    return None


def activation_goes_on(prefix: str) -> bool:
    """Whether one goes on, also after its deployer is gone: it holds its log."""
    try:
        log = os.open(prefix + "/activation.log", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(log)
    return False


def wait_for_running_activation(prefix: str) -> None:
    """Wait for an activation whose deployer is gone."""
    told = False
    while activation_goes_on(prefix):
        if not told:
            print_answer(waiting=True)
        told = True
        time.sleep(0.3)
