"""What all releases of RKLLM lay out alike: structs, enums, runs of fields; and how a function's answer is checked.

A release's own module (``abi_1_1`` and those beside it) puts these together with what it changed.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from rk3588.errors import RuntimeFailure

Fields = list[tuple[str, Any]]
Signatures = dict[str, tuple[Any, list[Any]]]
Checker = Callable[[int, Any, tuple[Any, ...]], int]


class RKLLMInputType(IntEnum):
    RKLLM_INPUT_PROMPT = 0
    RKLLM_INPUT_TOKEN = 1
    RKLLM_INPUT_EMBED = 2
    RKLLM_INPUT_MULTIMODAL = 3


# Enums are fields of type c_int: an IntEnum passes as one, and a value it does not know does not raise in a callback.
LLMHandle = c.c_void_p

# Of RKLLMParam, and (with top_k before it) of the sampling that 1.3 takes with each run.
SAMPLING: Fields = [
    ("top_p", c.c_float),
    ("temperature", c.c_float),
    ("repeat_penalty", c.c_float),
    ("frequency_penalty", c.c_float),
    ("presence_penalty", c.c_float),
    ("mirostat", c.c_int32),
    ("mirostat_tau", c.c_float),
    ("mirostat_eta", c.c_float),
]
MODEL: Fields = [
    ("model_path", c.c_char_p),
    ("max_context_len", c.c_int32),
    ("max_new_tokens", c.c_int32),
    ("top_k", c.c_int32),
]
IMAGE_WORDS: Fields = [("img_start", c.c_char_p), ("img_end", c.c_char_p), ("img_content", c.c_char_p)]


class RKLLMLoraAdapter(c.Structure):
    _fields_ = [("lora_adapter_path", c.c_char_p), ("lora_adapter_name", c.c_char_p), ("scale", c.c_float)]


class RKLLMEmbedInput(c.Structure):
    _fields_ = [("embed", c.POINTER(c.c_float)), ("n_tokens", c.c_size_t)]


class RKLLMTokenInput(c.Structure):
    _fields_ = [("input_ids", c.POINTER(c.c_int32)), ("n_tokens", c.c_size_t)]


def any_input(multimodal: type[c.Structure]) -> type[c.Union]:
    """The union in RKLLMInput, by the release's multimodal input."""

    class Union(c.Union):
        _fields_ = [
            ("prompt_input", c.c_char_p),
            ("embed_input", RKLLMEmbedInput),
            ("token_input", RKLLMTokenInput),
            ("multimodal_input", multimodal),
        ]

    return Union


class RKLLMLoraParam(c.Structure):
    _fields_ = [("lora_adapter_name", c.c_char_p)]


class RKLLMPromptCacheParam(c.Structure):
    _fields_ = [("save_prompt_cache", c.c_int), ("prompt_cache_path", c.c_char_p)]


RUN: Fields = [
    ("mode", c.c_int),
    ("lora_params", c.POINTER(RKLLMLoraParam)),
    ("prompt_cache_params", c.POINTER(RKLLMPromptCacheParam)),
]


class RKLLMResultLastHiddenLayer(c.Structure):
    _fields_ = [("hidden_states", c.POINTER(c.c_float)), ("embd_size", c.c_int), ("num_tokens", c.c_int)]


RESULT: Fields = [
    ("text", c.c_char_p),
    ("token_id", c.c_int32),
    ("last_hidden_layer", RKLLMResultLastHiddenLayer),
]


def result_callback(result: type[c.Structure]) -> Any:
    """LLMResultCallback. 1.1 and 1.2.0 declare it void: they do not look at what it returns.

    The result pointer may be NULL, and so may its text: FINISH and ERROR come that way from some releases.
    """
    return c.CFUNCTYPE(c.c_int, c.POINTER(result), c.c_void_p, c.c_int)


def signatures(param: Any, third_of_init: Any, input_: Any, run: Any) -> Signatures:
    """The ten functions that every release since 1.1 has."""
    run_arguments: list[Any] = [LLMHandle, c.POINTER(input_), c.POINTER(run), c.c_void_p]
    return {
        "rkllm_createDefaultParam": (param, []),
        "rkllm_init": (c.c_int, [c.POINTER(LLMHandle), c.POINTER(param), third_of_init]),
        "rkllm_load_lora": (c.c_int, [LLMHandle, c.POINTER(RKLLMLoraAdapter)]),
        "rkllm_load_prompt_cache": (c.c_int, [LLMHandle, c.c_char_p]),
        "rkllm_release_prompt_cache": (c.c_int, [LLMHandle]),
        "rkllm_destroy": (c.c_int, [LLMHandle]),
        "rkllm_run": (c.c_int, run_arguments),
        "rkllm_run_async": (c.c_int, run_arguments),
        "rkllm_abort": (c.c_int, [LLMHandle]),
        # The headers say 0 while running, or 1, by release; a measurement 1: nothing here asks.
        "rkllm_is_running": (c.c_int, [LLMHandle]),
    }


def check_zero(result: int, function: Any, _arguments: tuple[Any, ...]) -> int:
    """Errcheck of the functions that return 0 when all is well."""
    if result:
        raise RuntimeFailure(f"{function.__name__} failed with {result}: the library's own log lines say why")
    return result


def error_checkers(signatures: Signatures) -> dict[str, Checker]:
    """For all but rkllm_abort, whose answer when nothing runs is not documented, and rkllm_is_running."""
    others = ("rkllm_createDefaultParam", "rkllm_abort", "rkllm_is_running")
    return dict.fromkeys((name for name in signatures if name not in others), check_zero)
