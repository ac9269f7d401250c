"""What a model's licence asks of whoever passes a conversion on: notices, and duties about names.

A reading of the published licences for orientation, not legal advice; each entry quotes the notice it asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """``display`` must be shown where the model is offered; a name must begin with ``prefix``."""

    title: str
    notice: str = ""
    display: str = ""
    prefix: str = ""


def _llama(version: str, *, meta: str = "", display: str = "Built with Llama", prefix: str = "Llama") -> Licence:
    name = f"{meta}Llama {version}"
    return Licence(
        title=f"{name} Community License",
        notice=f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights "
        "Reserved.",
        display=display,
        prefix=prefix,
    )


# By the identifiers of the hub's front matter.
LICENCES = {
    "llama2": Licence(
        "Llama 2 Community License",
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights "
        "Reserved.",
    ),
    "llama3": _llama("3", meta="Meta ", display="Built with Meta Llama 3", prefix="Llama 3"),
    "llama3.1": _llama("3.1"),
    "llama3.2": _llama("3.2"),
    "llama3.3": _llama("3.3"),
    "gemma": Licence(
        "Gemma Terms of Use",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. Whoever "
        "passes this model on passes these terms on, with the restrictions of the Gemma Prohibited Use Policy.",
    ),
    "qwen-research": Licence("Qwen RESEARCH LICENSE AGREEMENT", display="Built with Qwen"),
    "qwen": Licence("Qwen LICENSE AGREEMENT", display="Built with Qwen"),
    "tongyi-qianwen": Licence("Tongyi Qianwen LICENSE AGREEMENT", display="Built with Qwen"),
    "apache-2.0": Licence("Apache License 2.0"),
    "mit": Licence("MIT License"),
}


# How the texts of licences begin, by the identifier they have on the hub.
_BEGINNINGS = {
    "apache-2.0": r"Apache License\W+Version 2\.0",
    "mit": r"MIT License\W|Permission is hereby granted, free of charge",
    "llama2": r"LLAMA 2 COMMUNITY LICENSE",
    "llama3": r"META LLAMA 3 COMMUNITY LICENSE",
    "llama3.1": r"LLAMA 3\.1 COMMUNITY LICENSE",
    "llama3.2": r"LLAMA 3\.2 COMMUNITY LICENSE",
    "llama3.3": r"LLAMA 3\.3 COMMUNITY LICENSE",
    "gemma": r"Gemma Terms of Use",
}


def of_text(text: str) -> str | None:
    """The identifier of a licence that is known by how its text begins."""
    start = text[:1000]
    return next((name for name, begins in _BEGINNINGS.items() if re.search(begins, start, re.IGNORECASE)), None)


def find(identifier: str, name: str) -> Licence | None:
    """By ``license`` of the front matter, or ``license_name`` where that says "other"."""
    return LICENCES.get(name if identifier == "other" else identifier)
