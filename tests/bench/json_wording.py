"""How often a small model answers in the JSON that was asked for, by how it is asked: ten schemas, several wordings.

``python tests/bench/json_wording.py BUNDLE``: a line for each wording, with the schemas that were met at the first
try. What serves is in ``rkruntime/daemon/jsonformat.py``; the table of docs/rkchatd.md comes from here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rkruntime.daemon import schemacheck
from rkruntime.daemon.api.openai_requests import instruct
from rkruntime.daemon.jsonformat import Format
from rkruntime.daemon.jsonprefix import JsonPrefix
from rkruntime.daemon.jsonshown import example, remarks
from rkruntime.model import Model, Settings

MAX_TOKENS = 160
STRING, WHOLE, STRINGS = {"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "string"}}


def thing(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "person": ("Ann is 31 years old and lives in Kiel.", thing(name=STRING, age=WHOLE, city=STRING)),
    "mood": ("I love this phone!", thing(mood={"enum": ["positive", "negative", "neutral"]})),
    "capital": ("What is the capital of France?", thing(country=STRING, capital=STRING)),
    "colours": ("Name three colours.", thing(colours={**STRINGS, "minItems": 3})),
    "yes or no": ("Is ice colder than fire?", thing(answer={"type": "boolean"})),
    "recipe": ("How do I make pancakes?", thing(title=STRING, ingredients=STRINGS, minutes=WHOLE)),
    "translation": ("Translate 'good morning' into French.", thing(french=STRING)),
    "address": (
        "Tom Hill lives at 5 Park Road in Leeds.", thing(name=STRING, address=thing(street=STRING, city=STRING)),
    ),
    "people": (
        "Ann is 31 and Bob is 12.", thing(people={"type": "array", "items": thing(name=STRING, age=WHOLE)}),
    ),
    "sum": ("What is 7 plus 5?", thing(result=WHOLE)),
}  # fmt: skip

Wording = Callable[[Mapping[str, Any]], str]


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


FIT = "Answer with JSON and nothing else. It has to fit this JSON Schema:"
LIKE = "Answer with JSON like this, and nothing else"
WORDINGS: dict[str, Wording] = {
    "the schema": lambda s: f"{FIT}\n{dumped(s)}",
    "the schema, then an example": lambda s: f"{FIT}\n{dumped(s)}\nLike this: {dumped(example(s))}",
    "an example, then the schema": lambda s: f"{LIKE}:\n{dumped(example(s))}\nIts JSON Schema is: {dumped(s)}",
    "fill in": lambda s: f"Fill in this JSON and answer with nothing else:\n{dumped(example(s))}",
    "reply only": lambda s: f"Reply only with a JSON object in this format:\n{dumped(example(s))}",
    "an example": lambda s: f"{LIKE}:\n{dumped(example(s))}",
    "an example, remarks": lambda s: f"{LIKE}. {' '.join(remarks(s))}\n{dumped(example(s))}",
    "an example, JSON:": lambda s: f"{LIKE}:\n{dumped(example(s))}\nJSON:",
    "what serves: an example, remarks, JSON:": lambda s: Format(s).instruction([]),
}


def met(model: Model, question: str, schema: dict[str, Any], wording: Wording) -> bool:
    prompt = model.prompts.chat(instruct([{"role": "user", "content": question}], wording(schema)))
    prefix = JsonPrefix(is_object=True)
    with closing(model.tokens(prompt, MAX_TOKENS)) as tokens:
        for token in tokens:
            prefix.feed(token.text)
            if prefix.whole or prefix.problem:
                break
    if "-v" in sys.argv:
        print("   ", prefix.problem or prefix.text)
    return prefix.whole and schemacheck.problem(schema, json.loads(prefix.text)) is None


def main() -> None:
    settings = Settings(temperature=0.0, repeat_penalty=1.0)
    with Model(Path(sys.argv[1]), settings, print) as model:
        for name, wording in WORDINGS.items():
            began = time.monotonic()
            found = [case for case, (question, schema) in ASKED.items() if met(model, question, schema, wording)]
            seconds = time.monotonic() - began
            print(f"{len(found):2} of {len(ASKED)}, {seconds:3.0f} s: {name}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
