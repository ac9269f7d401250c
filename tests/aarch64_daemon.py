"""`make test-aarch64`, second part: ``rkchatd.pyz`` on an aarch64 Python over the aarch64 libraries, under qemu-user.

The Python is Debian's for arm64, unpacked by mmdebstrap and not installed. Greedy, the daemon has to say what the one
of this machine says: the libraries give the same bits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from rk3588.resources import packaged
from tests import models, smollm2, sshd

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "aarch64"
SYSTEM = ROOT / "build" / "aarch64-python"
DEBIAN = "bookworm"
SECONDS = 300


def python() -> Path:
    """A command that is an aarch64 Python, to itself as well: it starts its worker with its own name."""
    if not SYSTEM.is_dir():
        part = SYSTEM.with_suffix(".part")
        command = ["mmdebstrap", "--variant=extract", "--architectures=arm64", "--include=python3", DEBIAN, str(part)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        part.rename(SYSTEM)
    wrapper = SYSTEM / "python3"
    (binary,) = (SYSTEM / "usr" / "bin").glob("python3.*[0-9]")
    wrapper.write_text(f'#!/bin/sh\nexec qemu-aarch64 -L {SYSTEM} -0 "$0" {binary} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def request(port: int, path: str, body: object = None) -> tuple[int, object]:
    data = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def said(command: Sequence[str | Path], pyz: Path, bundle: Path, libraries: Path) -> str:
    """What a daemon run by ``command`` answers."""
    port = sshd.free_port()
    options = ["--listen", f"127.0.0.1:{port}", "--temperature", "0", "--repeat-penalty", "1", "--patience", "20"]
    files: list[str | Path] = ["--library", libraries / "librkllmrt.so", "--sim-library", libraries / "librksim.so"]
    daemon = subprocess.Popen(
        [*command, pyz, "--bundle", bundle, *files, *options], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline, status, body = time.monotonic() + SECONDS, 0, object()
        while status != 200:
            status, body = request(port, "/ready")
            if daemon.poll() is not None or time.monotonic() > deadline:
                daemon.kill()
                sys.exit(f"the daemon is not ready: {body}\n{(daemon.communicate()[1] or b'').decode()}")
            time.sleep(0.2)
        asked = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 12}
        status, body = request(port, "/v1/chat/completions", asked)
        if status != 200 or not isinstance(body, dict):
            sys.exit(f"the daemon answered {status}: {body}")
        return json.dumps([body["choices"][0]["message"]["content"], body["usage"]])
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()


def main() -> None:
    arm = python()
    machine = subprocess.check_output([arm, "-c", "import platform, sys; print(platform.machine(), sys.version[:6])"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pyz = folder / "rkchatd.pyz"
        subprocess.run([sys.executable, ROOT / "runtime" / "tools" / "make_pyz.py", pyz], check=True)
        smollm2.convert(models.tiny_llama(folder / "source"), folder, ["w8a8"], name="tiny")
        bundle = folder / "tiny-rk3588-w8a8"
        here = said([sys.executable], pyz, bundle, packaged("lib/librksim.so").parent)
        there = said([arm], pyz, bundle, BUILD)
    if here != there:
        sys.exit(f"on aarch64 the daemon says {there}, here {here}")
    print(f"rkchatd.pyz: {machine.decode().strip()} says what this machine says: {there[:60]}")


if __name__ == "__main__":
    main()
