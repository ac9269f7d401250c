"""``tsc --checkJs`` over the chat page: part of ``make lint``; skipped, with the reason, where there is no compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPILER = HERE.parent.parent / "build" / "node" / "node_modules" / ".bin" / "tsc"


def main() -> int:
    if shutil.which("node") is None or not COMPILER.exists():
        why = "there is no node" if shutil.which("node") is None else "typescript was not fetched from the npm registry"
        print(f"the chat page's types are not checked: {why} (see .ci/setup node)", file=sys.stderr)
        return 0
    return subprocess.run([str(COMPILER), "--project", str(HERE / "tsconfig.json")]).returncode


if __name__ == "__main__":
    sys.exit(main())
