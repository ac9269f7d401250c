"""RKLLM 1.2.0 and 1.2.1b1 as a table: what they changed of 1.1's.

1.2.1b1 has a longer multimodal input, which nothing here sends: ``abi.Table`` hands inputs over with room behind them.
"""

from __future__ import annotations

import ctypes as c
from enum import IntEnum

from .abi import Features
from .abi_1_1 import RKLLMInput as RKLLMInput
from .abi_1_1 import RKLLMMultiModelInput as RKLLMMultiModelInput
from .abi_common import (
    IMAGE_WORDS,
    MODEL,
    RESULT,
    RUN,
    SAMPLING,
    LLMHandle,
    error_checkers,
    result_callback,
    signatures,
)

VERSION = "1.2.0"
FEATURES = Features(logits=True, native_template=True, max_context=True, end_token=True)


class LLMCallState(IntEnum):
    """Hidden states and logits come with NORMAL."""

    RKLLM_RUN_NORMAL = 0
    RKLLM_RUN_WAITING = 1
    RKLLM_RUN_FINISH = 2
    RKLLM_RUN_ERROR = 3


class RKLLMInferMode(IntEnum):
    RKLLM_INFER_GENERATE = 0
    RKLLM_INFER_GET_LAST_HIDDEN_LAYER = 1
    RKLLM_INFER_GET_LOGITS = 2


class RKLLMExtendParam(c.Structure):
    _fields_ = [
        ("base_domain_id", c.c_int32),
        ("embed_flash", c.c_int8),
        ("enabled_cpus_num", c.c_int8),
        ("enabled_cpus_mask", c.c_uint32),
        ("reserved", c.c_uint8 * 106),
    ]


class RKLLMParam(c.Structure):
    _fields_ = [
        *MODEL,
        ("n_keep", c.c_int32),
        *SAMPLING,
        ("skip_special_token", c.c_bool),
        ("is_async", c.c_bool),
        *IMAGE_WORDS,
        ("extend_param", RKLLMExtendParam),
    ]


class RKLLMInferParam(c.Structure):
    _fields_ = [*RUN, ("keep_history", c.c_int)]


class RKLLMResultLogits(c.Structure):
    _fields_ = [("logits", c.POINTER(c.c_float)), ("vocab_size", c.c_int), ("num_tokens", c.c_int)]


class RKLLMResult(c.Structure):
    _fields_ = [*RESULT, ("logits", RKLLMResultLogits)]


LLMResultCallback = result_callback(RKLLMResult)

SIGNATURES = {
    **signatures(RKLLMParam, LLMResultCallback, RKLLMInput, RKLLMInferParam),
    "rkllm_clear_kv_cache": (c.c_int, [LLMHandle, c.c_int]),
    "rkllm_set_chat_template": (c.c_int, [LLMHandle, c.c_char_p, c.c_char_p, c.c_char_p]),
}
ERROR_CHECKERS = error_checkers(SIGNATURES)
