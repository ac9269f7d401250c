"""What is known of RKLLM and of the RK3588 that it runs on: limits, and how its releases are told apart.

Every program that loads a model, judges a board or predicts takes these from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Families of releases: those with the same structs. The last three digits are the first release of each.
OLDEST = "1.0"
SPOKEN = ("1.1", "1.2.0", "1.2.1", "1.3")  # whose structs the binding knows
SPOKEN_RELEASES = "1.1.0 to 1.3.1"
RELEASE = "1.1.1"  # the one to install
MAX_CONTEXT = 4096  # tokens that 1.1 can use on an RK3588: answers degrade above
MAX_BUILT_CONTEXT = 16384  # tokens that a model can be built for from 1.2 on; the runtime refuses more than it was
CONTEXT_RESERVE = 4  # tokens of a context that a prompt may not take: the runtime refuses it
OPEN_FILES = 102_400  # librkllmrt maps a file for each layer and core; errno 24 where it may not
NPU_WINDOW = 1 << 32  # bytes: one address space of the NPU
SYSTEM_BYTES = 3 << 28  # RAM of kernel, system and daemon beside the model: 0.75 GiB, an assumption

_OLDEST_FUNCTIONS = (
    "createDefaultParam init load_lora load_prompt_cache release_prompt_cache destroy run abort is_running"
)
# What each family has that none before it had; the last two export the same.
FUNCTIONS: Mapping[str, frozenset[str]] = {
    "1.0": frozenset(f"rkllm_{name}" for name in _OLDEST_FUNCTIONS.split()),
    "1.1": frozenset({"rkllm_run_async"}),
    "1.2.0": frozenset({"rkllm_clear_kv_cache", "rkllm_set_chat_template"}),
    "1.2.1": frozenset(
        f"rkllm_{name}" for name in ("get_kv_cache_size", "set_function_tools", "set_cross_attn_params")
    ),
}
SAME_FUNCTIONS = ("1.2.1", "1.3")
# Of those two: where in RKLLMParam the default CPUs stand (their mask, their number), and what they are.
CPUS_AT: Mapping[str, tuple[int, int]] = {"1.2.1": (96, 93), "1.3": (68, 65)}
DEFAULT_CPUS = (0xF0, 4)  # the four A76

_VERSION = re.compile(
    r"(?:rkllm-runtime|librkllmrt) version: ([0-9]{1,6}\.[0-9]{1,6}(?:\.[0-9]{1,6}(?:b[0-9]{1,6})?)?)"
)
VERSION_IN_FILE = re.compile(_VERSION.pattern.encode())
_PARTS = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6})(b[0-9]{1,6})?)?")
TELLING = ("rkllm_init", "rkllm_run_async", "rkllm_clear_kv_cache", "rkllm_get_kv_cache_size")  # by families
UNKNOWN = "?"


def version_in(text: str) -> str:
    """The release of which ``text`` tells: by a version string, else by the names of functions; ``UNKNOWN`` for what is
    no librkllmrt."""
    match = _VERSION.search(text)
    functions = {name for name in TELLING if name in text}
    return match[1] if match else version_of_functions(functions)


def version_of_functions(exported: set[str]) -> str:
    """The release that exports these functions, as far as they tell; ``UNKNOWN`` for what is no librkllmrt."""
    of_all, since_1_1, since_1_2, since_1_2_1 = TELLING
    if of_all not in exported:
        return UNKNOWN
    if since_1_2 in exported:
        return "1.2.1 or newer" if since_1_2_1 in exported else "1.2.0"
    return "1.1" if since_1_1 in exported else OLDEST


def families_of(version: str) -> tuple[str, ...]:
    """The family of a release by its name, "1.2.3" say; all that a shorter name may mean, none for an unknown one."""
    match = _PARTS.fullmatch(version)
    if match is None or match[1] != "1":
        return ()
    minor, patch, beta = int(match[2]), match[3], match[4]
    if minor == 2 and patch is None:
        return ("1.2.0", "1.2.1")
    if minor == 2:
        return ("1.2.0",) if int(patch) == 0 or (int(patch) == 1 and beta) else ("1.2.1",)
    return {0: (OLDEST,), 1: ("1.1",), 3: ("1.3",)}.get(minor, ())


def is_spoken(version: str) -> bool:
    """Whether the binding knows the structs of this release."""
    return any(family in SPOKEN for family in families_of(version.partition(" ")[0]))
