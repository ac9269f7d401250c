"""What each dtype costs in accuracy: `python -m tests.bench.accuracy` prints a table for SmolLM2-135M-Instruct.

Perplexity on a text, and the Kullback-Leibler divergence and agreement on the best token, both against fp32. The text
is Python's own documentation unless --text says otherwise, so figures compare on one machine, not between Pythons.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from pydoc_data import topics

from rk3588 import bundle, hostlib, quant
from rkconvert.accuracy import WINDOW, compare, windows
from tests import smollm2


def default_text() -> str:
    return "\n".join(topics.topics[name] for name in ("objects", "naming", "import"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy of each dtype against fp32, on SmolLM2-135M-Instruct.")
    parser.add_argument("--text", type=Path, help="a UTF-8 file to read (default: topics of Python's documentation)")
    parser.add_argument("--tokens", type=int, default=1024, help="how many of its tokens (default: 1024)")
    parser.add_argument("--dtype", action="append", choices=quant.SCHEMES, help="only these (default: all)")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    return parser.parse_args()


def main() -> None:
    options = parse()
    try:
        text = options.text.read_text(encoding="utf-8") if options.text else default_text()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"cannot read {options.text} as UTF-8 text: {error}")
    dtypes = options.dtype or list(quant.SCHEMES)
    made = smollm2.bundles(dict.fromkeys([*dtypes, "fp32"]))
    with hostlib.SimModel(made["fp32"] / bundle.SIM_MODEL, threads=options.threads) as reference:
        parts = windows(reference.tokenise(text)[: max(options.tokens, 0)])
        if not parts:
            sys.exit("the text is too short: there is no token to predict")
        read = sum(map(len, parts))
        print(f"{smollm2.NAME}, {read} tokens in windows of {WINDOW}, kernel {hostlib.kernel()}", file=sys.stderr)
        print(f"{'dtype':<10} {'perplexity':>10} {'KL to fp32':>11} {'top-1':>7}")
        for dtype in dtypes:
            with hostlib.SimModel(made[dtype] / bundle.SIM_MODEL, threads=options.threads) as model:
                found = compare(reference, model, parts, "")
            row = f"{dtype:<10} {found.perplexity:>10.3f} {found.divergence:>11.6f} {found.agreement:>7.1%}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
