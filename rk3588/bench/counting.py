"""Prompts of as many tokens as are wanted, for a server whose vocabulary is not here."""

from __future__ import annotations

from typing import Any, Optional

from rk3588.errors import BenchError

from . import prompts
from .completions import Answer, Refused, Server

_TRIES = 12
_MOST_BESIDE = 1024  # tokens of a template
_LONGEST_WORD = 16  # tokens; of a vocabulary of bytes each letter may be one


class Counter:
    """Asks /tokenize where the server has it, as ours, llama.cpp's and vLLM's do; else goes by what answers said."""

    def __init__(self, server: Server, model: Optional[str]) -> None:
        self._server, self._model = server, model
        self._field: Optional[str] = "content"  # what /tokenize calls the text; None: there is none
        self._per_word, self._beside = 1.0, 0.0  # tokens of a word, and of what comes to every prompt
        self.expected: Optional[int] = None  # tokens of the last prompt, as far as they were counted

    @property
    def exact(self) -> bool:
        return self._field is not None

    def learn(self, said: Answer, words: int) -> None:
        """From the usage of an answer to a prompt of so many words."""
        if said.prompt_tokens is None:
            return
        if self.expected is not None:  # what /tokenize does not count: BOS, or a template
            self._beside = float(min(max(0, said.prompt_tokens - self.expected), _MOST_BESIDE))
            return
        if words > said.prompt_tokens:  # words were joined, or the server counts otherwise
            self._per_word = max(said.prompt_tokens / words, 0.1)
        else:
            whole = round(said.prompt_tokens / words) or 1
            self._per_word, self._beside = float(whole), max(0.0, said.prompt_tokens - whole * words)

    def prompt(self, tokens: int) -> str:
        """A new text of so many tokens, or as near as it can be had."""
        words, before, self.expected = prompts.words(self._guess(tokens)), round(self._beside), None
        best, least = words, -1
        for _ in range(_TRIES if self.exact else 0):
            count = self._count(" ".join(words))
            if count is None:
                break
            off = abs(count + before - tokens)
            if least < 0 or off < least:
                best, least, self.expected = words, off, count + before
            if not off:
                break
            words = self._changed(words, count, max(1, tokens - before))
        return " ".join(best)

    def _guess(self, tokens: int) -> int:
        return max(1, round((tokens - self._beside) / self._per_word))

    def _changed(self, words: list[str], count: int, tokens: int) -> list[str]:
        """Fewer or more of them; where one word is too much, a letter, which is a token in any vocabulary."""
        self._per_word = min(max(count / len(words), 0.1), _LONGEST_WORD)
        step = int(abs(tokens - count) / self._per_word)
        if count > tokens:
            return words[: max(1, len(words) - max(step, 1))]
        return [*words, *(prompts.words(step) if step else ["a"])]

    def _count(self, text: str) -> Optional[int]:
        """Tokens of a text; None where the server does not count."""
        while self._field is not None:
            asked: dict[str, Any] = {self._field: text, **({"model": self._model} if self._model else {})}
            try:
                said = self._server.post("/tokenize", asked)
            except Refused as error:
                if error.status in (401, 403, 429, 503):
                    raise
                self._field = "prompt" if self._field == "content" and error.status in (400, 422) else None
                continue
            except BenchError:
                self._field = None
                continue
            found = _counted(said)
            if found is not None:
                return found
            self._field = None
        return None


def _counted(said: Any) -> Optional[int]:
    if not isinstance(said, dict):
        return None
    if isinstance(said.get("tokens"), list):
        return len(said["tokens"])
    found = said.get("count")
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
