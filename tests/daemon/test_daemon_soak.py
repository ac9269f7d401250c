"""Many clients at once, some of whom leave, read slowly or stop, while the worker is killed under them.

Every prompt is unique, and its greedy answer is computed beforehand through the bare binding: what a client gets is
that answer, or the beginning of it if the client or the worker did not see it through. Nobody gets anybody else's.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rkruntime.model import Model, Settings
from tests.daemon_process import Running, running
from tests.engines import GREEDY

MAX_TOKENS = 24


@dataclass
class Load:
    clients: int
    requests: int
    kills: int
    seed: int = 1


@dataclass
class Result:
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    rss_kb: list[int] = field(default_factory=list)


def rss_kb(pid: int) -> int:
    found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found.group(1))


def worker_of(pid: int) -> int | None:
    """The supervisor's child."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def expectations(bundle: Path, library: Path, count: int) -> dict[str, str]:
    """Unique questions, and what the bare binding answers to each."""
    questions = [f"Question {n}: what is {n} times {n * 7 % 1000}?" for n in range(count)]
    with Model(bundle, Settings(library=library, max_tokens=MAX_TOKENS, **GREEDY), print) as model:
        found = {}
        for question in questions:
            with closing(model.answer(model.prompts.chat([{"role": "user", "content": question}]))) as answer:
                found[question] = "".join(answer)
    return found


async def one(service: Running, question: str, expected: str, chance: random.Random, result: Result) -> None:
    """A request as its client makes it. Any end but the whole answer, a beginning of it, or an error is a finding."""
    kind = chance.choices(["stream", "whole", "leaves", "stops early", "slow"], [40, 20, 20, 10, 10])[0]
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS, "stream": kind != "whole"}
    raw = json.dumps(body).encode()
    # The small buffer has a slow reader's backlog reach the daemon instead of hiding in the kernel.
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1 << 16)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Length: {len(raw)}\r\n"
    text, ended, error, leaves_at = "", False, "", chance.randrange(12)
    try:
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + raw)
        if kind == "leaves" and leaves_at < 4:  # in the queue or in prefill
            await asyncio.sleep(chance.random() * 0.2)
            result.counts["left"] += 1
            return
        if kind == "whole":
            answer = (await reader.read()).decode()
            found = json.loads(answer[answer.index("{") : answer.rindex("}") + 1])
            error = found.get("error", {}).get("code", "")
            text, ended = ("", False) if error else (found["choices"][0]["message"]["content"], True)
        else:
            async for line in reader:
                if line.startswith(b"data: [DONE]"):
                    ended = True
                elif line.startswith((b'{"error"', b'data: {"error"')):
                    error = json.loads(line[line.index(b"{") :])["error"]["code"]
                elif line.startswith(b"data: "):
                    choices = json.loads(line[6:])["choices"]
                    text += choices[0]["delta"].get("content", "") if choices else ""
                    if kind in ("leaves", "stops early") and len(text) > leaves_at:
                        break
                    if kind == "slow":
                        await asyncio.sleep(0.02)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    judge(question, expected, text, ended, error, kind in ("leaves", "stops early"), result)


def judge(question: str, expected: str, text: str, ended: bool, error: str, may_leave: bool, result: Result) -> None:
    if ended:
        result.counts["whole"] += 1
        if text != expected:
            result.wrong.append((question, expected, text))
    elif not expected.startswith(text):
        result.wrong.append((question, expected, text))
    elif error:
        result.counts[error] += 1
    elif may_leave:
        result.counts["left"] += 1
    else:
        result.unknown.append(question)


async def campaign(service: Running, load: Load, expected: Mapping[str, str]) -> Result:
    chance = random.Random(load.seed)
    result = Result()
    work = list(expected.items())
    kill_at = {len(work) * (n + 1) // (load.kills + 1) for n in range(load.kills)}
    done = 0

    async def client(seed: int) -> None:
        nonlocal done
        own = random.Random(seed)
        while work:
            question, answer = work.pop()
            await one(service, question, answer, own, result)
            done += 1
            if done in kill_at:
                await asyncio.sleep(own.random() * 0.1)  # anywhere in somebody's prefill or decode
                while (worker := worker_of(service.process.pid)) is None:
                    await asyncio.sleep(0.01)
                os.kill(worker, signal.SIGKILL)
                result.counts["kills"] += 1
            if done % max(load.requests // 10, 1) == 0:
                result.rss_kb.append(rss_kb(service.process.pid))

    await asyncio.gather(*(client(chance.randrange(1 << 30)) for _ in range(load.clients)))
    return result


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(Load(clients=12, requests=150, kills=3), id="short"),
        pytest.param(Load(clients=50, requests=2000, kills=20), id="full", marks=pytest.mark.slow),
    ],
)
def test_everybody_gets_their_own_answer(load: Load, tiny_bundles: Mapping[str, Path], rkllm_library: Path) -> None:
    bundle = tiny_bundles["w8a8"]
    expected = expectations(bundle, rkllm_library, load.requests)
    command = [
        sys.executable, "-m", "rkruntime.daemon.main", "--bundle", str(bundle), "--listen", "127.0.0.1:0",
        "--temperature", "0", "--repeat-penalty", "1", "--queue-length", "100", "--context", "512",
        "--library", str(rkllm_library),
    ]  # fmt: skip
    with running(command) as service:
        result = asyncio.run(asyncio.wait_for(campaign(service, load, expected), 500))
    print(f"\n{load}: {dict(result.counts)}, RSS {result.rss_kb} kB")
    assert not result.wrong
    assert not result.unknown, "lost without an error"
    assert result.counts["kills"] == load.kills
    # A killed worker costs at most the answer it was giving.
    assert result.counts["answer_failed"] <= load.kills
    assert result.counts["whole"] + result.counts["left"] + result.counts["answer_failed"] == load.requests
    assert max(result.rss_kb) <= 70 * 1024
    assert result.rss_kb[-1] <= result.rss_kb[len(result.rss_kb) // 2] * 1.1, "it grows"
