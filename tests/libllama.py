"""llama.cpp itself, from the compiled library inside the package xllamacpp: the few functions that tests need of it.

The caches of keys and values are F32 and flash attention is off, so that what it computes is float32 throughout.
"""

from __future__ import annotations

import ctypes as c
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xllamacpp.xllamacpp

_F32, _F16 = 0, 1  # ggml types
_CHUNK = 256  # positions whose logits are computed, and kept, at a time


_LIBRARY = ".venv/lib/python3*/site-packages/rk3588/lib/librksim.so"


def use_our_library() -> None:
    """The simulated runtime as it is compiled in .venv, for a Python that has none of its own."""
    root = Path(__file__).resolve().parent.parent
    os.environ.setdefault("RKSIM_LIBRARY", str(next(root.glob(_LIBRARY), root / _LIBRARY)))


class _Params(c.Structure):
    """llama_model_params or llama_context_params: room for more than they have ever had."""

    _fields_ = [("bytes", c.c_uint8 * 512)]


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32), ("token", c.c_void_p), ("embd", c.c_void_p), ("pos", c.c_void_p),
        ("n_seq_id", c.c_void_p), ("seq_id", c.c_void_p), ("logits", c.c_void_p),
    ]  # fmt: skip


class LlamaCpp:
    """llama.h by ctypes. Its worker threads outlive an exit: leave with os._exit."""

    def __init__(self) -> None:
        self.lib = c.CDLL(xllamacpp.xllamacpp.__file__)
        pointer = c.c_void_p
        for name, result, arguments in (
            ("llama_log_set", None, [pointer, pointer]),
            ("llama_model_default_params", _Params, []),
            ("llama_model_load_from_file", pointer, [c.c_char_p, _Params]),
            ("llama_model_free", None, [pointer]),
            ("llama_model_get_vocab", pointer, [pointer]),
            ("llama_context_default_params", _Params, []),
            ("llama_init_from_model", pointer, [pointer, _Params]),
            ("llama_free", None, [pointer]),
            ("llama_get_memory", pointer, [pointer]),
            ("llama_memory_clear", None, [pointer, c.c_bool]),
            ("llama_decode", c.c_int32, [pointer, _Batch]),
            ("llama_get_logits", c.POINTER(c.c_float), [pointer]),
            ("llama_vocab_n_tokens", c.c_int32, [pointer]),
            ("llama_vocab_is_eog", c.c_bool, [pointer, c.c_int32]),
            ("llama_vocab_get_attr", c.c_int, [pointer, c.c_int32]),
            ("llama_vocab_get_add_bos", c.c_bool, [pointer]),
            ("llama_tokenize", c.c_int32, [pointer, c.c_char_p, c.c_int32, pointer, c.c_int32, c.c_bool, c.c_bool]),
        ):
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        self.silent = c.CFUNCTYPE(None, c.c_int, c.c_char_p, pointer)(lambda *_: None)
        self.lib.llama_log_set(self.silent, None)
        self.lib.llama_backend_init()

    @contextmanager
    def model(self, path: Path) -> Iterator[int]:
        found = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        assert found, f"llama.cpp does not load {path}"
        try:
            yield found
        finally:
            self.lib.llama_model_free(found)

    @contextmanager
    def vocabulary(self, path: Path) -> Iterator[int]:
        with self.model(path) as model:
            yield self.lib.llama_model_get_vocab(model)

    @contextmanager
    def context(self, path: Path, positions: int, threads: int = 2) -> Iterator[Context]:
        with self.model(path) as model:
            context = self.lib.llama_init_from_model(model, self._context_params(positions, threads))
            assert context, f"llama.cpp makes no context of {positions} positions for {path}"
            try:
                yield Context(self.lib, context, self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(model)))
            finally:
                self.lib.llama_free(context)

    def _context_params(self, positions: int, threads: int) -> _Params:
        """llama_context_params. Its fields are known by where they stand, checked by the defaults they have."""
        params: _Params = self.lib.llama_context_default_params()
        raw = bytearray(bytes(params.bytes))
        for offset, expected, value in (
            (0, 512, positions), (4, 2048, _CHUNK), (8, 512, _CHUNK), (28, 4, threads), (32, 4, threads),
            (52, -1, 0), (104, _F16, _F32), (108, _F16, _F32),
        ):  # fmt: skip
            default = struct.unpack_from("<i", raw, offset)[0]
            assert default == expected, f"llama_context_params has {default} at byte {offset}, expected {expected}"
            struct.pack_into("<i", raw, offset, value)
        params.bytes[:] = list(raw)
        return params

    def ids(self, vocabulary: int, text: str, bos: bool) -> list[int]:
        raw = text.encode()
        found = (c.c_int32 * (len(raw) + 8))()
        n = self.lib.llama_tokenize(vocabulary, raw, len(raw), found, len(found), bos, True)
        return found[:n]

    def weights(self, name: str, raw: npt.NDArray[np.uint8], block: int) -> npt.NDArray[np.float32]:
        """Rows of blocks of the ggml type ``name``, dequantised."""
        suffix = name[:-1].lower() + "K" if name.endswith("_K") else name.lower()
        found = np.empty(raw.size // raw.shape[1] * block, np.float32)
        function = getattr(self.lib, f"dequantize_row_{suffix}")
        function(raw.ctypes.data_as(c.c_void_p), found.ctypes.data_as(c.c_void_p), c.c_int64(found.size))
        return found.reshape(len(raw), block)


class Context:
    """A model at work, from position 0 on."""

    def __init__(self, lib: Any, context: int, vocabulary: int) -> None:
        self._lib, self._context, self._vocabulary, self._position = lib, context, vocabulary, 0

    def restart(self) -> None:
        """From position 0 again."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._position = 0

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """Those after each of ``ids``, which follow what was given before."""
        return np.concatenate([self._decode(ids[i : i + _CHUNK]) for i in range(0, len(ids), _CHUNK)])

    def _decode(self, ids: list[int]) -> npt.NDArray[np.float32]:
        count = len(ids)
        sequence = (c.c_int32 * 1)(0)
        arrays = (
            (c.c_int32 * count)(*ids),
            (c.c_int32 * count)(*range(self._position, self._position + count)),
            (c.c_int32 * count)(*[1] * count),
            (c.c_void_p * count)(*[c.addressof(sequence)] * count),
            (c.c_int8 * count)(*[1] * count),
        )
        tokens, positions, counts, sequences, wanted = (c.cast(array, c.c_void_p) for array in arrays)
        failed = self._lib.llama_decode(
            self._context, _Batch(count, tokens, None, positions, counts, sequences, wanted)
        )
        assert not failed, f"llama_decode failed with {failed}"
        self._position += count
        found = np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (count, self._vocabulary))
        return np.array(found)
