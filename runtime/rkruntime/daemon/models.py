"""The names one loaded model answers to: its own, with an adapter, and as background work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from rk3588.errors import RequestRefused

BACKGROUND = "background"


class Model(NamedTuple):
    id: str
    lora: Optional[str] = None
    background: bool = False


class Models:
    """``NAME``, ``NAME:LORA`` for each adapter, and each of these with ``:background``."""

    def __init__(self, name: str, loras: Sequence[str], created: int) -> None:
        self.name, self._created = name, created
        plain = [Model(name), *(Model(f"{name}:{lora}", lora) for lora in loras)]
        self._all = {m.id: m for m in plain}
        self._all.update({f"{m.id}:{BACKGROUND}": Model(f"{m.id}:{BACKGROUND}", m.lora, True) for m in plain})

    def find(self, id: Optional[str]) -> Model:
        """The model of that name; without one, the only one there is."""
        model = self._all.get(self.name if id is None else id)
        if model is None:
            known = ", ".join(self._all)
            raise RequestRefused(
                f"there is no model {str(id)[:100]!r} here: there is {known}", "model", status=404,
                code="model_not_found",
            )  # fmt: skip
        return model

    def entries(self, context: int) -> list[dict[str, Any]]:
        """For /v1/models; ``context`` in tokens, 0 where it is not known yet."""
        return [self.entry(model, context) for model in self._all.values()]

    def entry(self, model: Model, context: int) -> dict[str, Any]:
        found = {"id": model.id, "object": "model", "created": self._created, "owned_by": "rkchatd"}
        return {**found, "max_model_len": context} if context else found
