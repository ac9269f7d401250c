"""What is known of RKLLM and of the RK3588 that it runs on: limits, and how its releases are told apart.

Every program that loads a model, judges a board or predicts takes these from here.
"""

from __future__ import annotations

import re

SPOKEN = "1.1"  # the releases whose structs the binding knows, 1.1.0 to 1.1.4
RELEASE = "1.1.1"  # the one to install
MAX_CONTEXT = 4096  # tokens that 1.1 can use on an RK3588: answers degrade above
CONTEXT_RESERVE = 4  # tokens of a context that a prompt may not take: the runtime refuses it
OPEN_FILES = 102_400  # librkllmrt maps a file for each layer and core; errno 24 where it may not
NPU_WINDOW = 1 << 32  # bytes: one address space of the NPU
SYSTEM_BYTES = 3 << 28  # RAM of kernel, system and daemon beside the model: 0.75 GiB, an assumption

_VERSION = re.compile(r"(?:rkllm-runtime|librkllmrt) version: (\d+\.\d+(?:\.\d+)?)")
TELLING = ("rkllm_init", "rkllm_run_async", "rkllm_clear_kv_cache")  # functions: of all, since 1.1, since 1.2
UNKNOWN = "?"


def version_in(text: str) -> str:
    """The release of which ``text`` tells: by a version string, else by the names of functions; ``UNKNOWN`` for what is
    no librkllmrt."""
    match = _VERSION.search(text)
    functions = {name for name in TELLING if name in text}
    return match[1] if match else version_of_functions(functions)


def version_of_functions(exported: set[str]) -> str:
    """The release that exports these functions, as far as they tell; ``UNKNOWN`` for what is no librkllmrt."""
    of_all, since_1_1, since_1_2 = TELLING
    if of_all not in exported:
        return UNKNOWN
    if since_1_2 in exported:
        return "1.2 or newer"
    return "1.1" if since_1_1 in exported else "1.0"


def is_spoken(version: str) -> bool:
    """Whether the binding knows the structs of this release."""
    return version == SPOKEN or version.startswith(f"{SPOKEN}.")
