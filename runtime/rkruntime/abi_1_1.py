"""RKLLM 1.1.x as a table: enums, structs in the order of ``rkllm.h``, signatures, error checkers, features.

C names are kept exactly. The layout is that of 1.1.0 to 1.1.4, LP64; what no later release changed stands in
``abi_common``.
"""

from __future__ import annotations

import ctypes as c
from enum import IntEnum

from .abi import Features
from .abi_common import (
    IMAGE_WORDS,
    MODEL,
    RESULT,
    RUN,
    SAMPLING,
    any_input,
    error_checkers,
    result_callback,
    signatures,
)

VERSION = "1.1"
FEATURES = Features()


class LLMCallState(IntEnum):
    """What a call of the callback means."""

    RKLLM_RUN_NORMAL = 0
    RKLLM_RUN_WAITING = 1  # the token ends inside a UTF-8 character
    RKLLM_RUN_FINISH = 2
    RKLLM_RUN_ERROR = 3
    RKLLM_RUN_GET_LAST_HIDDEN_LAYER = 4


class RKLLMInferMode(IntEnum):
    RKLLM_INFER_GENERATE = 0
    RKLLM_INFER_GET_LAST_HIDDEN_LAYER = 1


class RKLLMExtendParam(c.Structure):
    _fields_ = [("base_domain_id", c.c_int32), ("reserved", c.c_uint8 * 112)]


class RKLLMParam(c.Structure):
    _fields_ = [
        *MODEL,
        *SAMPLING,
        ("skip_special_token", c.c_bool),
        ("is_async", c.c_bool),
        *IMAGE_WORDS,
        ("extend_param", RKLLMExtendParam),
    ]


class RKLLMMultiModelInput(c.Structure):
    _fields_ = [("prompt", c.c_char_p), ("image_embed", c.POINTER(c.c_float)), ("n_image_tokens", c.c_size_t)]


class RKLLMInput(c.Structure):
    _anonymous_ = ("_input",)
    _fields_ = [("input_type", c.c_int), ("_input", any_input(RKLLMMultiModelInput))]


class RKLLMInferParam(c.Structure):
    _fields_ = [*RUN]


class RKLLMResult(c.Structure):
    _fields_ = [*RESULT]


LLMResultCallback = result_callback(RKLLMResult)

SIGNATURES = signatures(RKLLMParam, LLMResultCallback, RKLLMInput, RKLLMInferParam)
ERROR_CHECKERS = error_checkers(SIGNATURES)
