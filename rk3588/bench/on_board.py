"""The measurement as it runs on a board, sent there whole: the daemon is asked from beside it, without the network.

Options come as a line of JSON on stdin; events go to stdout, a line each, ``done`` last. The end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from rk3588.errors import RkError

from . import events, plan, serving
from .completions import Server


def main() -> None:
    asked = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        server = Server(asked["url"], asked["key"], asked["plan"]["seconds"])
        serving.measure(server, None, plan.plan_of(asked["plan"]), tell)
        tell({"done": True})
    except RkError as error:
        tell(events.failed(error, error.exit_code))
    sys.stdout.flush()
    os._exit(0)  # the thread still reads


def tell(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)  # whoever asked has gone: the daemon sees the connection close, and gives the answer up
