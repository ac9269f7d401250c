"""A generate_until task of lm-evaluation-harness over the daemon: `python -m tests.lm_eval_daemon PYTHON`.

PYTHON is an interpreter that has lm-eval[api]. The task of tests/data/lm_eval is run as docs/accuracy.md shows it,
against SmolLM2-135M-Instruct in w8a8; its answers and its score are those of the same questions asked directly. Nothing
is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from tests import smollm2
from tests.daemon_process import running

ROOT = Path(__file__).resolve().parent.parent
TASKS = Path("tests") / "data" / "lm_eval"
MODEL = "SmolLM2-135M-Instruct"


def harness(python: str, port: int, out: Path) -> tuple[float, list[str]]:
    """The score, and what was answered."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "datasets")}
    command = [
        python, "-m", "lm_eval", "--model", "local-chat-completions", "--model_args",
        f"model={MODEL},base_url={url},num_concurrent=1,max_retries=1", "--tasks", "capitals", "--include_path",
        str(TASKS), "--apply_chat_template", "--log_samples", "--output_path", str(out / "results"),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **offline, "OPENAI_API_KEY": "any"}, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (out / "results").rglob("results_*.json")
    (samples,) = (out / "results").rglob("samples_capitals_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    score = json.loads(results.read_text())["results"]["capitals"]["exact_match,name"]
    return float(score), [row["resps"][0][0] for row in rows]


def asked(port: int, question: str) -> str:
    body: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24,
        "stop": ["\n"], "seed": 1234,
    }  # fmt: skip
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def main() -> None:
    bundle = smollm2.bundles(["w8a8"])["w8a8"]
    items = [json.loads(line) for line in (ROOT / TASKS / "capitals.jsonl").read_text().splitlines()]
    program = (sys.executable, "-c", "from rk3588.program import rkchatd; rkchatd()", "--bundle", str(bundle))
    # RKLLM 1.1 fixes sampling when it loads a model, so that a request's own temperature would be ignored.
    command = (*program, "--listen", "127.0.0.1:0", "--temperature", "0")
    with tempfile.TemporaryDirectory() as folder, running(command) as daemon:
        ours = [
            asked(daemon.port, f"What is the capital of {item['country']}? Answer with its name only.")
            for item in items
        ]
        score, theirs = harness(sys.argv[1], daemon.port, Path(folder))
    names = [re.findall(r"([A-Z][a-z]+)\.?$", text) for text in ours]
    right = sum(found[:1] == [item["capital"]] for found, item in zip(names, items))
    print(f"lm-eval's score {score}, ours {right / len(items)}: {ours}", file=sys.stderr)
    assert theirs == ours, f"lm-eval was answered {theirs}"
    assert score == right / len(items) and right > 0, "the score is not that of the same questions asked directly"
    print("as lm-eval scores it over the daemon", file=sys.stderr)


if __name__ == "__main__":
    main()
