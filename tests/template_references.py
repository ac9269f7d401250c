"""Each family's chat template beside transformers.

    PYTHONPATH=.:convert:runtime python tests/template_references.py [--write]

What transformers makes of the templates in tests/data/templates is what golden.json holds, which `make test` compares
with; ``--write`` makes the file. Needs transformers.
"""

from __future__ import annotations

import json
import sys

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests import family_templates as families


def rendered() -> dict[str, dict[str, str | None]]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **families.TOKENS)
    found: dict[str, dict[str, str | None]] = {}
    for name in families.templates():
        found[name] = {}
        for case, (messages, variables) in families.CONVERSATIONS.items():
            for prompt in (True, False):
                try:
                    text = tokenizer.apply_chat_template(
                        messages,
                        chat_template=families.source(name),
                        tokenize=False,
                        add_generation_prompt=prompt,
                        **variables,
                    )
                except Exception as error:
                    print(f"{name}, {case}: {type(error).__name__}: {error}", file=sys.stderr)
                    text = None
                key = case if prompt else f"{case}, to its end"
                found[name][key] = None if text is None else families.without_date(text)
    return found


def main() -> None:
    made = rendered()
    if "--write" in sys.argv:
        families.GOLDEN.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    assert families.golden() == made, "golden.json is not what transformers makes: --write it"
    print(f"as transformers has them: {len(made)} chat templates")


if __name__ == "__main__":
    main()
