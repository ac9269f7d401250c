"""Where the programs begin: nothing but the standard library is imported before Ctrl-C has an answer."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn, Optional


def rk3588() -> NoReturn:
    _start("rk3588.cli")


def rkconvert() -> NoReturn:
    if sys.version_info < (3, 10):
        try:
            importlib.import_module("rkconvert")
        except ImportError as error:
            sys.exit(f"Error: {error}")
    _start("rkconvert.cli")


def rkchatd() -> NoReturn:
    _start("rkruntime.daemon.main")


def _start(module: str) -> NoReturn:
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # a shell starts background jobs with it ignored
        signal.signal(signal.SIGINT, _leave)
    main = importlib.import_module(module).main
    signal.signal(signal.SIGINT, before)
    main()
    raise AssertionError("main does not return")


def _leave(_number: int, _frame: Optional[FrameType]) -> None:
    # Nothing is open yet, and an exception inside an import may come out as another one.
    os.write(2, b"Interrupted\n")
    os._exit(130)
