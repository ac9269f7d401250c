"""The model card of a bundle: what it is, how it was made, what it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rk3588.bundle import SIM_MODEL

from .plan import Artifact, Plan

_SCHEMES = {
    "w8a8": "8-bit integers, one scale for each output channel; activations 8-bit with one scale a token",
    "fp16": "16-bit floating point, not quantised",
    "fp32": "32-bit floating point, not quantised: the reference that accuracy is measured against",
}


def model_card(plan: Plan, artifact: Artifact, manifest: dict[str, Any], folder_: Path) -> str:
    """``README.md`` of a bundle with this manifest, whose artifact has ``size`` bytes."""
    scheme = artifact.scheme
    size = (folder_ / SIM_MODEL).stat().st_size if plan.for_sim else 0
    model, source = manifest["model"], manifest["source"]
    how = _SCHEMES.get(
        scheme.name,
        f"8-bit integers, one scale for every {scheme.group_size} inputs of an output channel; activations 8-bit with "
        "one scale a token",
    )
    folder = f"{manifest['name']}-rk3588-{scheme.name}"
    return f"""# {folder}

{manifest["name"]} for the simulated RK3588 runtime, in {scheme.name}: {how}.

| | |
|---|---|
| Architecture | {model["architecture"]}, {model["layers"]} layers, {model["parameters"] / 1e6:.1f} million parameters |
| Context | {model["context_length"]} tokens |
| Made from | {source["name"]} ({source["kind"]}; weights: {", ".join(source["types"])}) |
{_loras(manifest.get("lora"))}| Made by | rkconvert {manifest["converter"]["rkconvert"]} |
| Artifact | `{SIM_MODEL}`, {size / 1e6:.1f} MB |

`{SIM_MODEL}` runs on the simulated runtime, on any x86-64 or aarch64 Linux. It is not a `.rkllm` and no NPU can run
it. Its accuracy has not been measured; the licence is the original model's.

    rk3588 run {folder} "What is the capital of France?"
    rk3588 bundle verify {folder}
"""


def _loras(lora: dict[str, Any] | None) -> str:
    """A row for each adapter that was merged or kept, and none for any other."""
    if lora is None:
        return ""
    rows = []
    for adapter in lora["adapters"]:
        of = f", trained on {adapter['base_model']}" if "base_model" in adapter else ""
        what = f"{adapter['name']} (rank {adapter['rank']}, scale {adapter['scale']:g}{of})"
        where = "merged into the weights" if lora["mode"] == "merge" else f"`--lora {adapter['name']}` selects it"
        rows.append(f"| LoRA | {what}, {where} |\n")
    return "".join(rows)
