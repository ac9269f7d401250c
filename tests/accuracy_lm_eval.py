"""Multiple choice by `rkconvert accuracy` beside lm-evaluation-harness's own scores of the same model in transformers.

    PYTHONPATH=.:convert:runtime python tests/accuracy_lm_eval.py

SmolLM2-135M-Instruct: the fp32 bundle, and what transformers loads from the same GGUF file in float32. acc, acc_norm
and their standard errors are equal, and the log-likelihood of each choice within 2e-3. Nothing is downloaded: the task
is made of tests/data/lm_eval/questions.jsonl. Needs the packages lm-eval, torch, transformers and gguf.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
from click.testing import CliRunner
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from rk3588 import hostlib, quant
from rkconvert.accuracy import choices
from rkconvert.build import convert
from rkconvert.cli import cli
from rkconvert.sources.opening import open_source
from tests.libllama import use_our_library
from tests.models import smollm2_gguf
from tests.plans import make_plan

QUESTIONS = Path(__file__).resolve().parent / "data" / "lm_eval" / "questions.jsonl"
CLOSE = 2e-3


def theirs(bundle: Path, folder: Path) -> dict[str, Any]:
    """lm-eval's results of a task that it makes of the file itself."""
    source = smollm2_gguf()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    wrapped = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(bundle), batch_size=1)
    task = ConfigurableTask(
        config={
            "task": "questions",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(QUESTIONS)}, "cache_dir": str(folder / "datasets")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "query",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )
    found = simple_evaluate(model=wrapped, tasks=[task], bootstrap_iters=100, log_samples=True)
    return dict(found)


def main() -> None:
    use_our_library()
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        plan = make_plan(open_source(smollm2_gguf()), "real", folder, [quant.scheme("fp32")], threads=2)
        (bundle,) = convert(plan)
        call = ["accuracy", str(bundle), "--tokens", "64", "--brief", "--json", "--choices", str(QUESTIONS)]
        done = CliRunner().invoke(cli, call)
        assert done.exit_code == 0, done.output
        (scores,) = json.loads(done.stdout)[0]["choices"]
        asked = choices.load(QUESTIONS)
        with hostlib.SimModel(bundle / "model.sim.gguf") as model:
            ours = [choices.likelihoods(model, question, asked.name) for question in asked.items]
        found = theirs(bundle, folder)
    results = found["results"]["questions"]
    for metric in ("acc", "acc_norm"):
        for key, value in ((metric, results[f"{metric},none"]), (f"{metric}_stderr", results[f"{metric}_stderr,none"])):
            print(f"{key}: {scores[key]:.6f}, lm-eval {value:.6f}", file=sys.stderr)
            wrong += [f"{key} is {scores[key]}, lm-eval has {value}"] if abs(scores[key] - value) > 1e-9 else []
    samples = sorted(found["samples"]["questions"], key=lambda sample: sample["doc_id"])
    off = 0.0
    for question, own, sample in zip(asked.items, ours, samples):
        for choice, value, response in zip(question.choices, own, sample["filtered_resps"]):
            off = max(off, abs(value - float(response[0])))
            if abs(value - float(response[0])) > CLOSE:
                wrong.append(f"line {question.line}, {choice!r}: {value}, lm-eval has {response[0]}")
    assert len(samples) == len(ours)
    print(f"{len(ours)} questions; log-likelihoods at most {off:.2g} apart", file=sys.stderr)
    print("\n".join(wrong) or "as lm-eval scores it", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
