"""A child process that asks a librkllmrt.so for its default parameters, as bytes: it may crash or hang at that.

``python -m rk3588.library_probe FILE`` prints a JSON object: ``defaults`` in hexadecimal, or ``error``. Both of the
processors that there are return a struct of this size through a pointer that the caller gives, so a library that has a
shorter one fills the beginning.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

ROOM = 256  # bytes, above any release's RKLLMParam


class _Defaults(ctypes.Structure):
    _fields_ = [("raw", ctypes.c_uint8 * ROOM)]


def _ask(path: str) -> dict[str, str]:
    try:
        function = ctypes.CDLL(path).rkllm_createDefaultParam
    except (OSError, AttributeError) as error:
        return {"error": str(error)}
    function.restype, function.argtypes = _Defaults, []
    return {"defaults": bytes(function()).hex()}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what the library prints is not the answer
        os.dup2(nowhere, descriptor)
    os.write(out, json.dumps(_ask(sys.argv[1])).encode())
    os._exit(0)  # nothing more of the library is run


if __name__ == "__main__":
    main()
