"""The card of a Hugging Face folder that --emit-hf writes: what was changed, and whose model it is."""

from __future__ import annotations

import yaml

import rk3588
from rkconvert.plan import Plan

from .card import base_of, licence_section

_KEPT = ("license", "license_name", "license_link", "language")  # of the original's front matter


def rotated_card(plan: Plan, error: float) -> str:
    """``README.md``; ``error`` is what its dtype changed by rounding, as a share of the weights."""
    assert plan.emit
    base, source, turned = base_of(plan.source), plan.source, plan.rotation
    original = source.origin.repository if source.origin else source.name
    facts = {**{key: base.facts[key] for key in _KEPT if key in base.facts}, "base_model": original}
    options, basis = [], []
    if turned:
        options.append(f"`--rotate {turned['kind']}` ({' and '.join(turned['matrices'])}, seed {turned['seed']})")
        other = "Hidden states and input embeddings are in another basis than the original's"
        basis.append(f"- {other}: `{turned['basis']}`")
    options += [f"`--smooth {plan.smooth.alpha:g}`"] if plan.smooth else []
    rounded = f", which changes weights by {error:.2g} of their size" if error else ""
    lines = [
        f"# {plan.name}, {'rotated' if turned else 'smoothed'}",
        "",
        f"The weights of {source.name}, changed by rkconvert {rk3588.__version__} with {' and '.join(options)} so that "
        "they lose less when they are quantised. As they are here, the model computes what it did before.",
        "",
        f"- Stored as {plan.emit.dtype}{rounded}",
        *basis,
        "- A LoRA that was trained on the original does not fit",
        *(f"- The LoRA {lora.name} is merged, at scale {lora.option.scale:g}" for lora in plan.merged_loras),
        "",
        licence_section(base, sorted(file.name for file in source.license_files)),
    ]
    return f"---\n{yaml.safe_dump(facts, allow_unicode=True, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"
