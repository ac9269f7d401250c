"""What the daemon costs, in one run: HTTP beside the bare binding, and beside llama-cpp-python's server.

All run SmolLM2-135M, ours in w8a8, llama.cpp in Q8_0, greedily, 64 tokens to prompts that share no beginning beyond the
template's. The rounds go through the contestants in turn. Between tokens: the median over a round's gaps, then over
rounds. TTFT: from before the request is written to the first token's text. With 8 clients, tokens of all by the time
from the first request to the last token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rkruntime.model import Model, Settings
from tests import smollm2
from tests.bench.twin_vs_llama import BUILD, llama_engine
from tests.engines import GREEDY
from tests.models import smollm2_gguf

NEW = 64
STARTUP_S = 120


def question(n: int) -> str:
    return f"{n}: write a long story about a sailor who counts to {n} and never stops talking about it."


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, path: str) -> Iterator[int]:
    """A server process, once it answers GET ``path`` with 200."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        end = time.monotonic() + STARTUP_S
        while not asyncio.run(_answers(port, path)):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"Error: {' '.join(command)} does not answer on port {port}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


async def _answers(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    with closing(writer):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b" 200 " in await reader.readline()


async def times(port: int, n: int, path: str = "/v1/chat/completions") -> list[float]:
    """When the request began, and when each chunk with text came."""
    limit = {"max_tokens": NEW} if path.startswith("/v1") else {"options": {"num_predict": NEW}}
    body = {
        "model": None, "messages": [{"role": "user", "content": question(n)}], "stream": True, "temperature": 0,
        "repeat_penalty": 1.0, **limit,
    }  # fmt: skip
    raw = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(raw)}"
    found = [time.perf_counter()]
    with closing(writer):
        writer.write(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + raw)
        async for line in reader:
            if b'"content":' in line and b'"content":""' not in line:
                found.append(time.perf_counter())
    if len(found) < 3:
        raise SystemExit("Error: an answer of no length: nothing to measure")
    return found


def bare(model: Model, n: int) -> list[float]:
    prompt = model.prompts.chat([{"role": "user", "content": question(n)}])
    found = [time.perf_counter()]
    with closing(model.tokens(prompt, NEW)) as tokens:
        for token in tokens:
            if token.text:
                found.append(time.perf_counter())
    return found


def gap_ms(found: list[float]) -> float:
    return 1e3 * statistics.median(b - a for a, b in zip(found[1:], found[2:], strict=False))


async def together(port: int, first: int, clients: int) -> float:
    """Tokens a second of all clients."""
    started = time.perf_counter()
    found = await asyncio.gather(*(times(port, first + i) for i in range(clients)))
    return sum(len(f) - 1 for f in found) / (time.perf_counter() - started)


def overhead(bundle: Path, port: int, repeat: int) -> None:
    paths = {"HTTP": "/v1/chat/completions", "Ollama's": "/api/chat"}
    rows: dict[str, list[tuple[float, float]]] = {"bare": [], **{name: [] for name in paths}}
    with Model(bundle, Settings(max_tokens=NEW, **GREEDY), print) as model:
        for n in range(repeat + 1):
            for name in rows:
                found = bare(model, n) if name == "bare" else asyncio.run(times(port, n, paths[name]))
                time.sleep(0.1)
                if n:  # the first round warms up
                    rows[name].append((1e3 * (found[1] - found[0]), gap_ms(found)))
    print(f"\n{'':<10} {'TTFT ms':>9} {'between tokens ms':>18}   medians of {repeat}")
    medians = {}
    for name, values in rows.items():
        medians[name] = [statistics.median(column) for column in zip(*values, strict=True)]
        print(f"{name:<10} {medians[name][0]:>9.2f} {medians[name][1]:>18.3f}")
    for name in paths:
        more = [h - b for b, h in zip(medians["bare"], medians[name], strict=True)]
        print(f"{name + ' adds':<14} {more[0]:>5.2f} {more[1]:>18.3f}", flush=True)


def beside_llama(ours: int, theirs: int, repeat: int) -> None:
    for clients in (1, 8):
        speeds: dict[str, list[float]] = {"rkchatd": [], "llama-cpp-python's server": []}
        for n in range(repeat + 1):
            for name, port in zip(speeds, (ours, theirs), strict=True):
                speed = asyncio.run(together(port, 1000 * clients + n * clients, clients))
                if n:
                    speeds[name].append(speed)
        medians = {name: statistics.median(found) for name, found in speeds.items()}
        ratio = medians["rkchatd"] / medians["llama-cpp-python's server"]
        told = ", ".join(f"{name} {value:.1f} tok/s" for name, value in medians.items())
        print(f"{clients} client{'s' * (clients > 1)}: {told}, ratio {ratio:.2f} (medians of {repeat})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the daemon costs beside the bare binding, and beside a peer.")
    parser.add_argument("--repeat", type=int, default=7, help="measured rounds (default: %(default)s)")
    parser.add_argument("--llama-python", type=Path, default=BUILD / "bench-venv" / "bin" / "python")
    options = parser.parse_args()
    bundle = smollm2.bundles(["w8a8"])["w8a8"]
    port = free_port()
    daemon = [
        sys.executable, "-m", "rkruntime.daemon.main", "--bundle", str(bundle), "--listen", f"127.0.0.1:{port}",
        "--temperature", "0", "--repeat-penalty", "1",
    ]  # fmt: skip
    with server(daemon, port, "/ready"):
        overhead(bundle, port, options.repeat)
        if not options.llama_python.is_file():
            print("no llama-cpp-python here: make bench builds it", file=sys.stderr)
            return
        model = Path(llama_engine(options.llama_python, smollm2.NAME, smollm2_gguf()).command[-1])
        peer = free_port()
        llama = [
            str(options.llama_python), "-m", "llama_cpp.server", "--model", str(model), "--port", str(peer),
            "--n_ctx", "4096", "--n_threads", str(len(os.sched_getaffinity(0))), "--interrupt_requests", "false",
        ]  # fmt: skip
        with server(llama, peer, "/v1/models"):
            beside_llama(port, peer, options.repeat)


if __name__ == "__main__":
    main()
