"""RKLLM 1.1.x as a table: enums, structs in the order of ``rkllm.h``, signatures, error checkers; then the builders
that ``abi.Table`` asks for.

C names are kept exactly. The layout is that of 1.1.0 to 1.1.4, LP64; another release is another module beside this
one, listed in ``loader.TABLES``.
"""

from __future__ import annotations

import ctypes as c
from array import array
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Optional

from rk3588.errors import RuntimeFailure

from .abi import Given, Heard, HiddenStates, RawToken, State

VERSION = "1.1"


class LLMCallState(IntEnum):
    """What a call of the callback means."""

    RKLLM_RUN_NORMAL = 0
    RKLLM_RUN_WAITING = 1  # the token ends inside a UTF-8 character
    RKLLM_RUN_FINISH = 2
    RKLLM_RUN_ERROR = 3
    RKLLM_RUN_GET_LAST_HIDDEN_LAYER = 4


class RKLLMInputType(IntEnum):
    RKLLM_INPUT_PROMPT = 0
    RKLLM_INPUT_TOKEN = 1
    RKLLM_INPUT_EMBED = 2
    RKLLM_INPUT_MULTIMODAL = 3


class RKLLMInferMode(IntEnum):
    RKLLM_INFER_GENERATE = 0
    RKLLM_INFER_GET_LAST_HIDDEN_LAYER = 1


# Enums are fields of type c_int: an IntEnum passes as one, and a value it does not know does not raise in a callback.
LLMHandle = c.c_void_p


class RKLLMExtendParam(c.Structure):
    _fields_ = [("base_domain_id", c.c_int32), ("reserved", c.c_uint8 * 112)]


class RKLLMParam(c.Structure):
    _fields_ = [
        ("model_path", c.c_char_p),
        ("max_context_len", c.c_int32),
        ("max_new_tokens", c.c_int32),
        ("top_k", c.c_int32),
        ("top_p", c.c_float),
        ("temperature", c.c_float),
        ("repeat_penalty", c.c_float),
        ("frequency_penalty", c.c_float),
        ("presence_penalty", c.c_float),
        ("mirostat", c.c_int32),
        ("mirostat_tau", c.c_float),
        ("mirostat_eta", c.c_float),
        ("skip_special_token", c.c_bool),
        ("is_async", c.c_bool),
        ("img_start", c.c_char_p),
        ("img_end", c.c_char_p),
        ("img_content", c.c_char_p),
        ("extend_param", RKLLMExtendParam),
    ]


class RKLLMLoraAdapter(c.Structure):
    _fields_ = [("lora_adapter_path", c.c_char_p), ("lora_adapter_name", c.c_char_p), ("scale", c.c_float)]


class RKLLMEmbedInput(c.Structure):
    _fields_ = [("embed", c.POINTER(c.c_float)), ("n_tokens", c.c_size_t)]


class RKLLMTokenInput(c.Structure):
    _fields_ = [("input_ids", c.POINTER(c.c_int32)), ("n_tokens", c.c_size_t)]


class RKLLMMultiModelInput(c.Structure):
    _fields_ = [("prompt", c.c_char_p), ("image_embed", c.POINTER(c.c_float)), ("n_image_tokens", c.c_size_t)]


class _RKLLMInputUnion(c.Union):
    _fields_ = [
        ("prompt_input", c.c_char_p),
        ("embed_input", RKLLMEmbedInput),
        ("token_input", RKLLMTokenInput),
        ("multimodal_input", RKLLMMultiModelInput),
    ]


class RKLLMInput(c.Structure):
    _anonymous_ = ("_input",)
    _fields_ = [("input_type", c.c_int), ("_input", _RKLLMInputUnion)]


class RKLLMLoraParam(c.Structure):
    _fields_ = [("lora_adapter_name", c.c_char_p)]


class RKLLMPromptCacheParam(c.Structure):
    _fields_ = [("save_prompt_cache", c.c_int), ("prompt_cache_path", c.c_char_p)]


class RKLLMInferParam(c.Structure):
    _fields_ = [
        ("mode", c.c_int),
        ("lora_params", c.POINTER(RKLLMLoraParam)),
        ("prompt_cache_params", c.POINTER(RKLLMPromptCacheParam)),
    ]


class RKLLMResultLastHiddenLayer(c.Structure):
    _fields_ = [("hidden_states", c.POINTER(c.c_float)), ("embd_size", c.c_int), ("num_tokens", c.c_int)]


class RKLLMResult(c.Structure):
    _fields_ = [("text", c.c_char_p), ("token_id", c.c_int32), ("last_hidden_layer", RKLLMResultLastHiddenLayer)]


# The result pointer may be NULL, and so may its text: FINISH and ERROR come that way from some releases.
LLMResultCallback = c.CFUNCTYPE(None, c.POINTER(RKLLMResult), c.c_void_p, c.c_int)

_RUN: list[Any] = [LLMHandle, c.POINTER(RKLLMInput), c.POINTER(RKLLMInferParam), c.c_void_p]
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "rkllm_createDefaultParam": (RKLLMParam, []),
    "rkllm_init": (c.c_int, [c.POINTER(LLMHandle), c.POINTER(RKLLMParam), LLMResultCallback]),
    "rkllm_load_lora": (c.c_int, [LLMHandle, c.POINTER(RKLLMLoraAdapter)]),
    "rkllm_load_prompt_cache": (c.c_int, [LLMHandle, c.c_char_p]),
    "rkllm_release_prompt_cache": (c.c_int, [LLMHandle]),
    "rkllm_destroy": (c.c_int, [LLMHandle]),
    "rkllm_run": (c.c_int, _RUN),
    "rkllm_run_async": (c.c_int, _RUN),
    "rkllm_abort": (c.c_int, [LLMHandle]),
    "rkllm_is_running": (c.c_int, [LLMHandle]),  # the header says 0 while running, a measurement 1: nothing here asks
}


def check_zero(result: int, function: Any, _arguments: tuple[Any, ...]) -> int:
    """Errcheck of the functions that return 0 when all is well."""
    if result:
        raise RuntimeFailure(f"{function.__name__} failed with {result}: the library's own log lines say why")
    return result


# Not here: rkllm_abort, whose answer when nothing runs is not documented, and rkllm_is_running, which has none.
ERROR_CHECKERS: dict[str, Callable[[int, Any, tuple[Any, ...]], int]] = dict.fromkeys(
    (
        "rkllm_init",
        "rkllm_load_lora",
        "rkllm_load_prompt_cache",
        "rkllm_release_prompt_cache",
        "rkllm_destroy",
        "rkllm_run",
        "rkllm_run_async",
    ),
    check_zero,
)


_MOST_HIDDEN, _MOST_TOKENS = 1 << 16, 1 << 20  # of a hidden layer: more is read from garbage
_STATES = {
    LLMCallState.RKLLM_RUN_NORMAL: State.NORMAL,
    LLMCallState.RKLLM_RUN_WAITING: State.WAITING,
    LLMCallState.RKLLM_RUN_FINISH: State.FINISH,
    LLMCallState.RKLLM_RUN_ERROR: State.ERROR,
    LLMCallState.RKLLM_RUN_GET_LAST_HIDDEN_LAYER: State.HIDDEN,
}


def new_handle() -> Any:
    return LLMHandle()


def model_parameters(library: Any, path: bytes, given: Mapping[str, Any]) -> Any:
    parameters = library.rkllm_createDefaultParam()
    for name, value in given.items():
        setattr(parameters, name, value)
    parameters.model_path = path
    parameters.is_async = False
    return parameters


def callback(heard: Heard) -> Any:
    def called(result: Any, userdata: Optional[int], state: int) -> None:
        meaning = _STATES.get(state, State.OTHER)  # type: ignore[call-overload]  # an int finds its IntEnum
        # Only these have something: what the pointers of another state lead to is not said anywhere.
        given: Given = None
        if meaning in (State.NORMAL, State.WAITING) and result:
            given = RawToken(int(result.contents.token_id), result.contents.text or b"")
        elif meaning == State.HIDDEN and result:
            given = _hidden_states(result.contents.last_hidden_layer)
        heard(userdata, meaning, given)

    return LLMResultCallback(called)


def _hidden_states(layer: Any) -> Optional[HiddenStates]:
    """A copy: the pointer is good inside the callback only. None for sizes that no model has."""
    size, tokens = int(layer.embd_size), int(layer.num_tokens)
    if not (layer.hidden_states and 0 < size <= _MOST_HIDDEN and 0 < tokens <= _MOST_TOKENS):
        return None
    values = array("f")
    values.frombytes(c.string_at(layer.hidden_states, c.sizeof(c.c_float) * size * tokens))
    return HiddenStates(values, size)


def text_input(text: bytes) -> Any:
    given = RKLLMInput(input_type=RKLLMInputType.RKLLM_INPUT_PROMPT)
    given.prompt_input = text
    return given


def token_input(ids: Sequence[int]) -> Any:
    given = RKLLMInput(input_type=RKLLMInputType.RKLLM_INPUT_TOKEN)
    given.token_input.input_ids = (c.c_int32 * len(ids))(*ids)
    given.token_input.n_tokens = len(ids)
    return given


def run_parameters(lora: Optional[bytes]) -> Any:
    return _infer_parameters(RKLLMInferMode.RKLLM_INFER_GENERATE, lora)


def hidden_parameters(lora: Optional[bytes]) -> Any:
    return _infer_parameters(RKLLMInferMode.RKLLM_INFER_GET_LAST_HIDDEN_LAYER, lora)


def _infer_parameters(mode: RKLLMInferMode, lora: Optional[bytes]) -> Any:
    parameters = RKLLMInferParam(mode=mode)
    if lora is not None:
        parameters.lora_params = c.pointer(RKLLMLoraParam(lora))
    return parameters


def lora_adapter(path: bytes, name: bytes, scale: float) -> Any:
    return RKLLMLoraAdapter(path, name, scale)
