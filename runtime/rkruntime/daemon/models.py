"""The names one loaded model answers to: its own, with its dtype, with an adapter, and as background work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from rk3588.errors import BundleError, RequestRefused
from rk3588.lora import BACKGROUND, LATEST, RESERVED

# How an answer comes to be JSON: a client can know before it asks.
STRUCTURED_OUTPUT = {
    "json_object": "prompted", "json_schema": "prompted", "checked": True, "constrained": False,
}  # fmt: skip


class ModelName(NamedTuple):
    """What a client can ask for by ``id``."""

    id: str
    lora: Optional[str] = None
    background: bool = False


class Models:
    """``NAME``, ``NAME:LORA`` for each adapter of the bundle, and each of these with ``:background``. Between NAME and
    the rest may stand the bundle's dtype, or ``latest``, as Ollama's clients write it.

    BundleError for an adapter whose name would mean something else.
    """

    def __init__(self, name: str, dtype: str, loras: Sequence[str], created: int, runtime: str) -> None:
        self.name, self.created, self._dtype, self._runtime = name, created, dtype, runtime
        for lora in loras:
            if lora in RESERVED:
                raise BundleError(
                    f"the bundle has a LoRA called {lora!r}, and {name}:{lora} is a name of the model itself: convert "
                    "it again with another name (--lora ADAPTER:NAME)"
                )
        plain = [ModelName(name), *(ModelName(f"{name}:{lora}", lora) for lora in loras)]
        both = [m for each in plain for m in (each, ModelName(f"{each.id}:{BACKGROUND}", each.lora, True))]
        self.all = {model.id: model for model in both}

    def find(self, id: Optional[str]) -> ModelName:
        """The model of that name; without one, the bundle's."""
        model = self.all.get(self.name if id is None else self._without_tag(id))
        if model is None:
            raise RequestRefused(
                f"there is no model {str(id)[:100]!r} here: there is {', '.join(self.all)}", "model", status=404,
                code="model_not_found",
            )  # fmt: skip
        return model

    def _without_tag(self, id: str) -> str:
        """NAME:DTYPE:REST and NAME:latest:REST as NAME:REST."""
        for tag in (self._dtype, LATEST):
            start = f"{self.name}:{tag}"
            if id == start or id.startswith(f"{start}:"):
                return self.name + id[len(start) :]
        return id

    def entry(self, model: ModelName, context: int) -> dict[str, Any]:
        """For /v1/models; ``context`` in tokens, 0 where it is not known yet."""
        found: dict[str, Any] = {"id": model.id, "object": "model", "created": self.created, "owned_by": "rkchatd"}
        found["runtime"] = self._runtime  # sim or npu
        found["structured_output"] = STRUCTURED_OUTPUT
        return {**found, "max_model_len": context} if context else found
