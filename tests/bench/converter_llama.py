"""llama.cpp's side of the converter's bench: `python converter_llama.py SOURCE TARGET THREADS` in the bench venv.

Writes the GGUF file SOURCE as Q8_0 and prints the seconds that took, loading of the library not counted.
"""

from __future__ import annotations

import ctypes
import sys
import time

import llama_cpp as llama


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(_level: int, _text: bytes, _data: object) -> None:
    pass


def main(source: str, target: str, threads: str) -> None:
    llama.llama_log_set(_quiet, None)
    options = llama.llama_model_quantize_default_params()
    options.ftype = llama.LLAMA_FTYPE_MOSTLY_Q8_0
    options.nthread = int(threads)
    started = time.perf_counter()
    assert llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)) == 0
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
