"""What this machine itself computes with librksim: tokens, logits of an artifact, quantising, checksums and hashes.

Arrays are NumPy's, imported only by the calls that need them, so counting tokens stays light. A ``SimModel`` may be
used by one thread at a time; ``quantise`` by any number (ctypes releases the GIL).
"""

from __future__ import annotations

import ctypes as c
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from .errors import LibraryError, SimError
from .quant import Scheme
from .resources import packaged

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VOCAB_ONLY = 1
ACT_SCALES = {"token": 2, "tile64": 4, "group": 8}
ADD_BOS, PARSE_SPECIAL = 1, 2
SKIP_SPECIAL = 1


class _Info(c.Structure):
    _fields_ = [
        (name, c.c_int32)
        for name in (
            "n_vocab", "n_layers", "hidden", "intermediate", "n_heads", "n_kv_heads", "head_dim",
            "context_length", "bos_id", "eos_id", "add_bos",
        )
    ]  # fmt: skip


class ModelInfo(NamedTuple):
    n_vocab: int
    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context_length: int
    bos_id: int  # -1: none
    eos_id: int
    add_bos: int


_P = c.c_void_p
_PROGRESS = c.CFUNCTYPE(None, c.c_size_t)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "rksim_version": (c.c_char_p, []),
    "rksim_last_error": (c.c_char_p, []),
    "rksim_kernel": (c.c_char_p, []),
    "rksim_open": (_P, [c.c_char_p, c.c_int, c.c_int]),
    "rksim_close": (None, [_P]),
    "rksim_get_info": (c.c_int, [_P, c.POINTER(_Info)]),
    "rksim_tokenize": (c.c_int64, [_P, c.c_char_p, c.c_size_t, c.c_int, _P, c.c_size_t]),
    "rksim_detokenize": (c.c_int64, [_P, _P, c.c_size_t, c.c_int, _P, c.c_size_t]),
    "rksim_use_lora": (c.c_int, [_P, c.c_char_p, c.c_float]),
    "rksim_logits": (c.c_int, [_P, _P, c.c_size_t, c.c_int, _P, _PROGRESS]),
    "rksim_greedy": (c.c_int, [_P, _P, c.c_size_t, c.c_size_t, _P, _PROGRESS]),
    "rksim_next": (c.c_int, [_P, _P, c.c_size_t, c.c_size_t, c.c_size_t, _P]),
    "rksim_embed": (c.c_int, [_P, _P, c.c_size_t, _P]),
    "rksim_layer": (c.c_int, [_P, c.c_int, _P, c.c_size_t, _P]),
    "rksim_linear": (c.c_int, [_P, c.c_char_p, _P, c.c_size_t, _P]),
    "rksim_gemm_i8": (c.c_int, [c.c_char_p, _P, _P, c.c_int64, c.c_int64, c.c_int64, _P]),
    "rksim_quantize": (c.c_int64, [_P, c.c_int, c.c_int64, c.c_int64, c.c_int64, _P, _P]),
    "rksim_bf16_to_f16": (c.c_int, [_P, c.c_int64, _P]),
    "rksim_sha256_here": (c.c_int, []),
    "rksim_sha256": (None, [c.c_int, _P, _P, _P]),
    "rksim_crc32": (c.c_uint32, [c.c_uint32, _P, c.c_size_t]),
}


def find() -> Path:
    """librksim.so: of ``RKSIM_LIBRARY``, else the packaged one; LibraryError if there is none."""
    said = os.environ.get("RKSIM_LIBRARY")
    if said and not Path(said).is_file():
        raise LibraryError(f"there is no library {said} (from RKSIM_LIBRARY): give the path of a librksim.so")
    return Path(said) if said else packaged("lib/librksim.so")


@functools.cache
def library() -> c.CDLL:
    """The library that ``find`` finds, with its signatures applied."""
    path = find()
    try:
        lib = c.CDLL(str(path.absolute()))  # dlopen looks for a mere name elsewhere
        for name, (restype, argtypes) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = restype, argtypes
    except (OSError, AttributeError) as error:
        raise LibraryError(f"cannot use {path} as librksim: {error}") from error
    return lib


def _failed() -> SimError:
    message: bytes = library().rksim_last_error()
    return SimError(message.decode("utf-8", "replace"))


def kernel() -> str:
    """The integer kernel in use: scalar, avx2, avx512vnni or neon."""
    name: bytes = library().rksim_kernel()
    return name.decode()


@contextmanager
def _told(progress: Callable[[int], None] | None) -> Iterator[object]:
    """``progress`` as a callback of C's; what it raises is raised when the block ends well."""
    raised: list[BaseException] = []

    def tell(done: int) -> None:
        try:
            assert progress is not None
            progress(done)
        except BaseException as error:  # no exception finds its way through C
            raised.append(error)

    yield _PROGRESS(tell) if progress else _PROGRESS()
    if raised:
        raise raised[0]


class SimModel:
    """An opened ``model.sim.gguf`` (or ``tokenizer.gguf``); a context manager.

    ``act_scale``: what shares an activation scale, one of ``ACT_SCALES``; None: as RKSIM_ACT_SCALE says.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 0,
        vocab_only: bool = False,
        act_scale: str | None = None,
    ) -> None:
        self._lib = library()
        flags = (VOCAB_ONLY if vocab_only else 0) | (ACT_SCALES[act_scale] if act_scale else 0)
        self._handle = self._lib.rksim_open(os.fsencode(path), threads, flags)
        if not self._handle:
            raise _failed()
        raw = _Info()
        self._lib.rksim_get_info(self._handle, c.byref(raw))
        self.info = ModelInfo(*(int(getattr(raw, name)) for name in ModelInfo._fields))

    def __enter__(self) -> SimModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._handle:
            self._lib.rksim_close(self._handle)
            self._handle = None

    def tokenise(self, text: str | bytes, *, add_bos: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``; ``parse_special`` reads ``<|im_end|>`` and the like as the tokens they name."""
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        flags = (ADD_BOS if add_bos else 0) | (PARSE_SPECIAL if parse_special else 0)
        capacity = len(raw) + 2
        ids = (c.c_int32 * capacity)()
        n = self._lib.rksim_tokenize(self._handle, raw, len(raw), flags, ids, capacity)
        if n > capacity:  # characters that normalise to more bytes than they had
            ids = (c.c_int32 * n)()
            n = self._lib.rksim_tokenize(self._handle, raw, len(raw), flags, ids, n)
        if n < 0:
            raise _failed()
        return ids[:n]

    def detokenise(self, ids: list[int], *, skip_special: bool = False) -> bytes:
        """The bytes of ``ids``; not always whole UTF-8 characters."""
        array = (c.c_int32 * len(ids))(*ids)
        flags = SKIP_SPECIAL if skip_special else 0
        size = self._lib.rksim_detokenize(self._handle, array, len(ids), flags, None, 0)
        if size < 0:
            raise _failed()
        text = c.create_string_buffer(size or 1)
        self._lib.rksim_detokenize(self._handle, array, len(ids), flags, text, size)
        return text.raw[:size]

    def use_lora(self, path: str | os.PathLike[str] | None, scale: float = 1.0) -> None:
        """Compute with a GGUF adapter over the weights from now on; None: without any again."""
        if self._lib.rksim_use_lora(self._handle, None if path is None else os.fsencode(path), scale):
            raise _failed()

    def logits(
        self, ids: list[int], *, chunk: int = 0, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits of every position, float32 (n, n_vocab), from an empty KV cache. ``progress`` is told now and then
        how many tokens are done; what it raises is raised once all are."""
        import numpy as np

        array = (c.c_int32 * len(ids))(*ids)
        out = np.empty((len(ids), self.info.n_vocab), np.float32)
        with _told(progress) as tell:
            if self._lib.rksim_logits(self._handle, array, len(ids), chunk, out.ctypes.data, tell):
                raise _failed()
        return out

    def greedy(self, ids: list[int], count: int, progress: Callable[[int], None] | None = None) -> list[int]:
        """The ``count`` tokens that follow ``ids`` where each is the likeliest. ``progress`` as of ``logits``."""
        array, out = (c.c_int32 * len(ids))(*ids), (c.c_int32 * count)()
        with _told(progress) as tell:
            if self._lib.rksim_greedy(self._handle, array, len(ids), count, out, tell):
                raise _failed()
        return list(out)

    def next_logits(self, ids: list[int], *, kept: int = 0, room: int = 0) -> npt.NDArray[np.float32]:
        """Logits of the token after ``ids``: float32 (n_vocab,). These come behind the first ``kept`` positions of the
        call before, or begin a sequence that may grow to ``room`` positions; other calls end it."""
        import numpy as np

        array = (c.c_int32 * len(ids))(*ids)
        out = np.empty(self.info.n_vocab, np.float32)
        if self._lib.rksim_next(self._handle, array, len(ids), kept, room, out.ctypes.data):
            raise _failed()
        return out

    def embed(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """What ``ids`` become before the first transformer block: float32 (n, hidden)."""
        import numpy as np

        array = (c.c_int32 * len(ids))(*ids)
        out = np.empty((len(ids), self.info.hidden), np.float32)
        if self._lib.rksim_embed(self._handle, array, len(ids), out.ctypes.data):
            raise _failed()
        return out

    def layer(self, index: int, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Transformer block ``index`` on float32 (n, hidden) at positions 0 to n - 1."""
        import numpy as np

        x = np.ascontiguousarray(x, np.float32)
        out = np.empty_like(x)
        if self._lib.rksim_layer(self._handle, index, x.ctypes.data, len(x), out.ctypes.data):
            raise _failed()
        return out

    def linear(self, tensor: str, x: npt.NDArray[np.float32], n_out: int) -> npt.NDArray[np.float32]:
        """The linear layer ``tensor`` (say ``blk.0.attn_q.weight``) on float32 (n, K): float32 (n, n_out)."""
        import numpy as np

        x = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(x), n_out), np.float32)
        if self._lib.rksim_linear(self._handle, tensor.encode(), x.ctypes.data, len(x), out.ctypes.data):
            raise _failed()
        return out


def gemm_i8(w: npt.NDArray[np.int8], x: npt.NDArray[np.int8], kernel_name: str | None = None) -> npt.NDArray[np.int32]:
    """Exact int32 accumulators of int8 (rows, k) by int8 (tokens, k): int32 (tokens, rows)."""
    import numpy as np

    w, x = np.ascontiguousarray(w), np.ascontiguousarray(x)
    out = np.empty((len(x), len(w)), np.int32)
    name = kernel_name.encode() if kernel_name else None
    sizes = (len(w), w.shape[1], len(x))
    if library().rksim_gemm_i8(name, w.ctypes.data, x.ctypes.data, *sizes, out.ctypes.data):
        raise _failed()
    return out


_SOURCE_TYPES = {"F32": 0, "F16": 1, "BF16": 2}


def quantise(
    raw: npt.NDArray[np.generic], source_type: str, spec: Scheme
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The fast quantiser: rows (N, K) of ``F32``, ``F16`` or ``BF16`` bits to int8 (N, K) and float32 scales.

    BF16 comes as uint16. Raises ValueError(row, column) at the first value that is not finite.
    """
    import numpy as np

    raw = np.ascontiguousarray(raw)
    n, k = raw.shape
    q = np.empty((n, k), np.int8)
    scales = np.empty((n, spec.groups(k)), np.float32)
    bad = library().rksim_quantize(
        raw.ctypes.data, _SOURCE_TYPES[source_type], n, k, spec.group_size, q.ctypes.data, scales.ctypes.data
    )
    if bad < 0:
        raise _failed()
    if bad:
        raise ValueError(*divmod(bad - 1, k))
    return q, scales


def bf16_to_float16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float16] | None:
    """The nearest float16 of each bf16; None where one is larger than float16 holds, or not finite."""
    import numpy as np

    bits = np.ascontiguousarray(bits)
    halves = np.empty(bits.shape, np.float16)
    return None if library().rksim_bf16_to_f16(bits.ctypes.data, bits.size, halves.ctypes.data) else halves


def crc32(values: npt.NDArray[np.generic], before: int = 0) -> int:
    """zlib's CRC-32 of a contiguous array's bytes behind those with the CRC-32 ``before``, several times as fast as
    zlib's own."""
    return int(library().rksim_crc32(before, values.ctypes.data, values.nbytes))


def has_sha256() -> bool:
    """Whether this processor can run ``sha256_blocks``."""
    return bool(library().rksim_sha256_here())


def sha256_blocks(messages: Sequence[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]]) -> None:
    """Compress each message's blocks of 64 bytes into its state (eight words), the messages side by side."""
    n = len(messages)
    states = (c.c_void_p * n)(*(state.ctypes.data for state, _ in messages))
    data = (c.c_void_p * n)(*(blocks.ctypes.data for _, blocks in messages))
    library().rksim_sha256(n, states, data, (c.c_size_t * n)(*(len(blocks) // 64 for _, blocks in messages)))
