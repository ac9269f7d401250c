"""What the binding asks of a table of librkllmrt's ABI: a module beside ``abi_1_1`` for each release whose structs
differ.

A table builds what the functions take and reads what the callback is given, so that nothing else knows a struct.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Optional, Protocol, Union


class State(IntEnum):
    """What a call of the callback means, whichever release makes it."""

    NORMAL = 0
    WAITING = 1  # the token ends inside a UTF-8 character
    FINISH = 2
    ERROR = 3
    OTHER = 4  # no part of an answer
    HIDDEN = 5  # the last hidden layer of the prompt


class RawToken(NamedTuple):
    """A token as the library gives it: the text may end inside a character."""

    id: int
    text: bytes


class HiddenStates(NamedTuple):
    """The last hidden layer of a prompt, after the output norm: ``size`` floats a token, one token after the other."""

    values: array[float]
    size: int

    @property
    def tokens(self) -> int:
        return len(self.values) // self.size


Given = Union[RawToken, HiddenStates, None]
Heard = Callable[[Optional[int], State, Given], None]
"""What the callback does with the number of a run (its user data), a state and, where anything came with it, that."""


class Table(Protocol):
    """What it returns as Any are ctypes objects, which keep alive what they point at."""

    VERSION: str
    SIGNATURES: dict[str, tuple[Any, list[Any]]]
    ERROR_CHECKERS: dict[str, Callable[[int, Any, tuple[Any, ...]], int]]

    def new_handle(self) -> Any:
        """An empty one, for rkllm_init to fill."""
        ...

    def model_parameters(self, library: Any, path: bytes, given: Mapping[str, Any]) -> Any:
        """For rkllm_init: the library's defaults, but for what is ``given`` by the names of RKLLM's arguments."""
        ...

    def callback(self, heard: Heard) -> Any:
        """For rkllm_init, to be kept as long as the handle. ``heard`` must not raise."""
        ...

    def text_input(self, text: bytes) -> Any:
        """For rkllm_run."""
        ...

    def token_input(self, ids: Sequence[int]) -> Any:
        """For rkllm_run."""
        ...

    def run_parameters(self, lora: Optional[bytes]) -> Any:
        """For rkllm_run: an answer, with the adapter of that name or with none."""
        ...

    def hidden_parameters(self, lora: Optional[bytes]) -> Any:
        """For rkllm_run: no answer but the last hidden layer of the prompt."""
        ...

    def lora_adapter(self, path: bytes, name: bytes, scale: float) -> Any:
        """For rkllm_load_lora."""
        ...
