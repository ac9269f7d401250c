"""What a checkpoint says of GPTQ, by which its weights are quantised already: rkllm-toolkit from 1.2 on takes such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BITS, GROUPS = (4, 8), (128, 256, 512)
_BESIDE = (".qzeros", ".scales", ".g_idx")  # what is no weight
_PACKED = ".qweight"


@dataclass(frozen=True)
class Gptq:
    """``group``: inputs that share a scale, -1 for all. ``act_order``: the inputs are not in their order."""

    bits: int
    group: int
    symmetric: bool
    act_order: bool

    def obstacle(self) -> str:
        """Why rkllm-toolkit does not take it, for a sentence; "" where it does."""
        if self.bits not in BITS:
            return f"it has {self.bits} bits, where 4 or 8 are taken"
        if not self.symmetric:
            return "it is not symmetric"
        if self.act_order:
            return "its inputs are not in their order (desc_act)"
        if self.group not in GROUPS:
            return f"its groups are of {self.group}, where {', '.join(map(str, GROUPS))} are taken"
        return ""

    def weights(self, name: str, elements: int) -> int:
        """How many weights a tensor of the checkpoint stands for."""
        if name.endswith(_PACKED):
            return elements * 32 // self.bits
        return 0 if name.endswith(_BESIDE) else elements


def of(settings: Mapping[str, Any]) -> Gptq | None:
    """Of a config.json; None where it is not quantised so, or says it in a way that nobody writes."""
    said = settings.get("quantization_config")
    if not isinstance(said, dict) or said.get("quant_method") != "gptq":
        return None
    bits, group = said.get("bits"), said.get("group_size", -1)
    if type(bits) is not int or type(group) is not int or not 0 < bits <= 32:
        return None
    return Gptq(bits, group, said.get("sym", True) is True, bool(said.get("desc_act", False)))
