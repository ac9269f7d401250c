"""RKLLM 1.2.1, 1.2.2 and 1.2.3 as a table: what they changed of 1.2.0's."""

from __future__ import annotations

import ctypes as c

from .abi import Features
from .abi_1_2_0 import LLMCallState as LLMCallState
from .abi_1_2_0 import RKLLMInferMode as RKLLMInferMode
from .abi_1_2_0 import RKLLMInferParam as RKLLMInferParam
from .abi_1_2_0 import RKLLMResultLogits as RKLLMResultLogits
from .abi_common import (
    IMAGE_WORDS,
    MODEL,
    RESULT,
    SAMPLING,
    LLMHandle,
    Signatures,
    any_input,
    error_checkers,
    result_callback,
    signatures,
)

VERSION = "1.2.1"
FEATURES = Features(
    perf=True, logits=True, native_template=True, tools=True, batch=True, kv_range=True, max_context=True,
    end_token=True,
)  # fmt: skip


class RKLLMExtendParam(c.Structure):
    _fields_ = [
        ("base_domain_id", c.c_int32),
        ("embed_flash", c.c_int8),
        ("enabled_cpus_num", c.c_int8),
        ("enabled_cpus_mask", c.c_uint32),
        ("n_batch", c.c_uint8),
        ("use_cross_attn", c.c_int8),
        ("reserved", c.c_uint8 * 104),
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


class RKLLMMultiModalInput(c.Structure):
    _fields_ = [
        ("prompt", c.c_char_p),
        ("image_embed", c.POINTER(c.c_float)),
        ("n_image_tokens", c.c_size_t),
        ("n_image", c.c_size_t),
        ("image_width", c.c_size_t),
        ("image_height", c.c_size_t),
    ]


class RKLLMInput(c.Structure):
    _anonymous_ = ("_input",)
    _fields_ = [
        ("role", c.c_char_p),
        ("enable_thinking", c.c_bool),
        ("input_type", c.c_int),
        ("_input", any_input(RKLLMMultiModalInput)),
    ]


class RKLLMCrossAttnParam(c.Structure):
    _fields_ = [
        ("encoder_k_cache", c.POINTER(c.c_float)),
        ("encoder_v_cache", c.POINTER(c.c_float)),
        ("encoder_mask", c.POINTER(c.c_float)),
        ("encoder_pos", c.POINTER(c.c_int32)),
        ("num_tokens", c.c_int),
    ]


class RKLLMPerfStat(c.Structure):
    _fields_ = [
        ("prefill_time_ms", c.c_float),
        ("prefill_tokens", c.c_int),
        ("generate_time_ms", c.c_float),
        ("generate_tokens", c.c_int),
        ("memory_usage_mb", c.c_float),
    ]


class RKLLMResult(c.Structure):
    _fields_ = [*RESULT, ("logits", RKLLMResultLogits), ("perf", RKLLMPerfStat)]


LLMResultCallback = result_callback(RKLLMResult)

_Count = c.POINTER(c.c_int)
SINCE_1_2_1: Signatures = {
    "rkllm_clear_kv_cache": (c.c_int, [LLMHandle, c.c_int, _Count, _Count]),
    "rkllm_get_kv_cache_size": (c.c_int, [LLMHandle, _Count]),  # an int for each batch
    "rkllm_set_chat_template": (c.c_int, [LLMHandle, c.c_char_p, c.c_char_p, c.c_char_p]),
    "rkllm_set_function_tools": (c.c_int, [LLMHandle, c.c_char_p, c.c_char_p, c.c_char_p]),
    "rkllm_set_cross_attn_params": (c.c_int, [LLMHandle, c.POINTER(RKLLMCrossAttnParam)]),
}
SIGNATURES = {**signatures(RKLLMParam, LLMResultCallback, RKLLMInput, RKLLMInferParam), **SINCE_1_2_1}
ERROR_CHECKERS = error_checkers(SIGNATURES)
