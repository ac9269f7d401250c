"""RKLLM 1.3.0 and 1.3.1 as a table: what they changed of 1.2.1's.

The input is 1.3.1's, of 208 bytes: 1.3.0 reads its first 160, which are laid out alike.
"""

from __future__ import annotations

import ctypes as c

from .abi import Features
from .abi_1_2_1 import SINCE_1_2_1
from .abi_1_2_1 import LLMCallState as LLMCallState
from .abi_1_2_1 import LLMResultCallback as LLMResultCallback
from .abi_1_2_1 import RKLLMCrossAttnParam as RKLLMCrossAttnParam
from .abi_1_2_1 import RKLLMExtendParam as RKLLMExtendParam
from .abi_1_2_1 import RKLLMInferMode as RKLLMInferMode
from .abi_1_2_1 import RKLLMPerfStat as RKLLMPerfStat
from .abi_1_2_1 import RKLLMResult as RKLLMResult
from .abi_1_2_1 import RKLLMResultLogits as RKLLMResultLogits
from .abi_common import MODEL, RUN, SAMPLING, any_input, error_checkers, signatures

VERSION = "1.3"
FEATURES = Features(
    per_run_sampling=True, perf=True, logits=True, native_template=True, tools=True, batch=True, kv_range=True,
    max_context=True, end_token=True,
)  # fmt: skip


FREE_OUTPUT = 2  # returned by the callback: hidden states need not stay until the model is destroyed


class RKLLMParam(c.Structure):
    _fields_ = [
        *MODEL,
        ("n_keep", c.c_int32),
        *SAMPLING,
        ("skip_special_token", c.c_bool),
        ("ignore_eos_token", c.c_bool),
        ("is_async", c.c_bool),
        ("extend_param", RKLLMExtendParam),
    ]


class _Image(c.Structure):
    _fields_ = [
        ("image_embed", c.POINTER(c.c_float)),
        ("n_image_tokens", c.c_size_t),
        ("n_image", c.c_size_t),
        ("image_start", c.c_char_p),
        ("image_end", c.c_char_p),
        ("image_content", c.c_char_p),
        ("image_width", c.c_size_t),
        ("image_height", c.c_size_t),
    ]


class _Video(c.Structure):
    _fields_ = [
        ("video_embed", c.POINTER(c.c_float)),
        ("n_frame_tokens", c.c_size_t),
        ("n_frame_per_video", c.c_size_t),
        ("n_video", c.c_size_t),
        ("video_start", c.c_char_p),
        ("video_end", c.c_char_p),
        ("video_content", c.c_char_p),
        ("frame_width", c.c_size_t),
        ("frame_height", c.c_size_t),
    ]


class _Audio(c.Structure):
    _fields_ = [
        ("audio_embed", c.POINTER(c.c_float)),
        ("n_audio_tokens", c.c_size_t),
        ("n_audio", c.c_size_t),
        ("audio_start", c.c_char_p),
        ("audio_end", c.c_char_p),
        ("audio_content", c.c_char_p),
    ]


class RKLLMMultiModalInput(c.Structure):
    _fields_ = [("prompt", c.c_char_p), ("image", _Image), ("video", _Video), ("audio", _Audio)]


class RKLLMInput(c.Structure):
    _anonymous_ = ("_input",)
    _fields_ = [
        ("role", c.c_char_p),
        ("enable_thinking", c.c_bool),
        ("input_type", c.c_int),
        ("_input", any_input(RKLLMMultiModalInput)),
    ]


class RKLLMSamplingParam(c.Structure):
    _fields_ = [("top_k", c.c_int32), *SAMPLING]


class RKLLMInferParam(c.Structure):
    _fields_ = [
        *RUN,
        ("sampling_params", c.POINTER(RKLLMSamplingParam)),
        ("keep_history", c.c_int),
        ("max_new_tokens", c.c_int32),  # 0 or less: what rkllm_init was given
    ]


LLMTokenizerCallback = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32)
LLMGetEmbedCallback = c.CFUNCTYPE(
    c.c_int, c.c_void_p, c.POINTER(c.c_int32), c.c_uint64, c.c_void_p, c.c_uint64
)  # fmt: skip


class RKLLMCallback(c.Structure):
    """The third argument of rkllm_init. The last two are for models that were exported without a tokenizer or
    embedding."""

    _fields_ = [
        ("result_callback", LLMResultCallback),
        ("result_userdata", c.c_void_p),
        ("tokenizer_callback", LLMTokenizerCallback),
        ("tokenizer_userdata", c.c_void_p),
        ("embed_callback", LLMGetEmbedCallback),
        ("embed_userdata", c.c_void_p),
    ]


SIGNATURES = {**signatures(RKLLMParam, c.POINTER(RKLLMCallback), RKLLMInput, RKLLMInferParam), **SINCE_1_2_1}
ERROR_CHECKERS = error_checkers(SIGNATURES)
