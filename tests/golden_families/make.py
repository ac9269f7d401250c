"""Writes the golden logits of the families: transformers' fp32 on the models of cases.py. --check compares only.

    PYTHONPATH=. python -m tests.golden_families.make [--check]

Needs torch and transformers; the tests that read the files need neither.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.golden_families import cases

TOLERANCE = 1e-4  # of the logits' standard deviation; another processor adds in another order


def model_of(name: str) -> Any:
    """The model as transformers makes it from a config.json, with the case's weights."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(cases.CASES[name])))
        config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    plus_one = str(cases.CASES[name]["model_type"]).startswith("gemma")
    state = {
        tensor: torch.from_numpy(cases.weight(tensor, tuple(value.shape), plus_one))
        for tensor, value in model.state_dict().items()
        if tensor not in tied
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - tied:
        raise SystemExit(f"{name}: the weights do not fit the model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def logits(model: Any, count: int) -> Any:
    with torch.no_grad():
        return model(torch.tensor([cases.ids(count)])).logits[0].numpy()


def golden(name: str, model: Any) -> cases.Arrays:
    found = {"logits": logits(model, cases.TOKENS)}
    if "longrope" in name:
        found["short"] = logits(model_of(name), 12)  # within the original context
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the families' golden logits, or check them.")
    parser.add_argument("--check", action="store_true", help="fail where a file no longer matches; write nothing")
    check = parser.parse_args().check
    wrong, shapes = [], {}
    for name in cases.CASES:
        model = model_of(name)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        shapes[name] = {t: list(v.shape) for t, v in model.state_dict().items() if t not in tied}
        for key, fresh in golden(name, model).items():
            deviation = float(fresh.std())
            print(f"{name}: {key}: standard deviation {deviation:.2f}", file=sys.stderr)
            if check:
                off = float(np.abs(cases.load(name)[key] - fresh).max()) / deviation
                wrong += [f"{name}: {key} is off by {off:.2g}"] if not off <= TOLERANCE else []
        if not check:
            np.savez_compressed(cases.FOLDER / f"{name}.npz", allow_pickle=False, **golden(name, model))
    if not check:
        (cases.FOLDER / "shapes.json").write_text(json.dumps(shapes, indent=1) + "\n", encoding="utf-8")
    elif shapes != json.loads((cases.FOLDER / "shapes.json").read_text(encoding="utf-8")):
        wrong.append("shapes.json no longer says what tensors the models have")
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(1)
    print(f"{len(shapes)} families {'match' if check else 'written'}", file=sys.stderr)


if __name__ == "__main__":
    main()
