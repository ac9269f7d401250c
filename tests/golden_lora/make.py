"""Trains the golden adapter with peft and writes its logits. With --check, compares with peft and writes nothing.

    PYTHONPATH=.:convert python tests/golden_lora/make.py [--check]

Needs torch, transformers and peft; the tests that read the files need none of them. Training again gives other numbers
on another processor, so --check trains one that must learn the same answer, and takes the stored one for the rest:
its logits, and what merging it and adapters of peft's other kinds makes of the weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from rkconvert.adapters import lora
from rkconvert.architectures.names import Names
from rkconvert.artifact.block import Block
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests.golden_families import cases as families
from tests.golden_families.make import model_of
from tests.golden_logits.make import TOLERANCE, logits, tiny_model
from tests.golden_lora import cases
from tests.loras import LINEAR
from tests.models import write_llama

STEPS = 120
MERGE_TOLERANCE = 2e-6  # of weights around 0.1: peft multiplies in float32
# Besides the plain kind: each changes the factor of some layers.
KINDS: Mapping[str, dict[str, Any]] = {
    "rslora": {"r": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "rank_pattern": {"q_proj": 7, "layers.1.mlp.up_proj": 2},
        "alpha_pattern": {"down_proj": 3, r"model\.layers\.0\.self_attn\.v_proj": 31},
    },
    "one layer": {"r": 3, "target_modules": ["k_proj", "o_proj"], "layers_to_transform": [1]},
    "lm_head": {"r": 2, "target_modules": ["q_proj", "lm_head"]},
}
# With biases, and with fused layers that are split as their adapters are.
FAMILIES = ("qwen2", "phi3")


def settings(**changes: Any) -> LoraConfig:
    plain = {"r": 4, "lora_alpha": 8, "target_modules": list(LINEAR), "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**plain, **changes})


def train() -> Any:
    """A fresh adapter over the base, taught to answer PROMPT with ANSWER."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(cases.BASE), settings())
    prompt, answer = cases.ids(cases.PROMPT), [*cases.ids(cases.ANSWER), cases.EOS]
    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def answer(model: Any) -> list[int]:
    """The greedy tokens after PROMPT, as many as ANSWER and its end have."""
    ids = list(cases.ids(cases.PROMPT))
    wanted = len(cases.ids(cases.ANSWER)) + 1
    for _ in range(wanted):
        ids.append(int(logits(model, ids)[-1].argmax()))
    return ids[-wanted:]


def arrays(adapted: Any) -> dict[str, Any]:
    ids = [*cases.ids(cases.PROMPT), *cases.ids(cases.ANSWER)]
    with adapted.disable_adapter():
        base = logits(adapted, ids)
    return {"ids": np.array(ids, np.int32), "base": base, "adapted": logits(adapted, ids)}


def write() -> None:
    model = train()
    model.save_pretrained(cases.ADAPTER)
    (cases.ADAPTER / "README.md").unlink()  # a model card without content
    np.savez_compressed(cases.LOGITS, allow_pickle=False, **arrays(model))


def check(source: Source, scratch: Path) -> list[str]:
    """One sentence for each thing that is no longer so."""
    wrong = []
    if answer(train()) != [*cases.ids(cases.ANSWER), cases.EOS]:
        wrong.append("an adapter trained now does not learn the answer")
    stored = PeftModel.from_pretrained(tiny_model(cases.BASE), cases.ADAPTER).eval()
    golden = cases.load()
    for name, value in arrays(stored).items():
        most = float(np.abs(golden[name].astype(np.float64) - value).max())
        if not most <= TOLERANCE:
            wrong.append(f"{name} of {cases.LOGITS.name} is off by {most:.2g}")
    wrong += merge_differences("plain", stored, lora.LoraOption(cases.ADAPTER, "plain", 1.0), source)
    for name, changes in KINDS.items():
        torch.manual_seed(1)
        model = get_peft_model(tiny_model(cases.BASE), settings(init_lora_weights=False, **changes))
        model.save_pretrained(scratch / name)
        wrong += merge_differences(name, model, lora.LoraOption(scratch / name, "kind", 1.0), source)
    for name in FAMILIES:
        torch.manual_seed(2)
        model = get_peft_model(model_of(name), settings(init_lora_weights=False, target_modules="all-linear"))
        model.save_pretrained(scratch / name)
        weights = families.weights(name)
        base = open_source(write_llama(scratch / f"{name} base", dict(families.CASES[name]), weights))
        wrong += merge_differences(name, model, lora.LoraOption(scratch / name, "family", 1.0), base)
    return wrong


def merge_differences(kind: str, model: Any, option: lora.LoraOption, source: Source) -> list[str]:
    """What rkconvert makes of each weight, against peft's merge_and_unload."""
    adapter = lora.read(option, source)
    merged = model.merge_and_unload().state_dict()
    names = Names(source.family, source.config)
    wrong = []
    for name, tensor in source.tensors.items():
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            block = Block.decoded(tensor, 0, file.read(tensor.nbytes))
        if name in adapter.pairs:
            block.merge([(adapter.pairs[name], 1.0)])
        found = block.as_float32().reshape(tensor.shape)
        theirs = names.in_file(name)
        rows = next(part.indices for part in names.parts(theirs) if part.name == name)
        most = float(np.abs(found - merged[theirs].numpy()[rows]).max())
        if not most <= (MERGE_TOLERANCE if name in adapter.pairs else 0):
            wrong.append(f"{kind}: {name} merged is off by {most:.2g}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the golden adapter, or check it.")
    parser.add_argument("--check", action="store_true", help="fail where peft disagrees; write nothing")
    if not parser.parse_args().check:
        write()
        return
    with tempfile.TemporaryDirectory() as folder:
        wrong = check(open_source(cases.base_model(Path(folder) / "base")), Path(folder))
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(1)
    others = f"{len(KINDS)} other kinds and those of {len(FAMILIES)} families"
    print(f"the golden adapter, {others} are as peft has them", file=sys.stderr)


if __name__ == "__main__":
    main()
