"""What the binding asks of librkllmrt's ABI, whichever release it is.

A release's structs are a module beside this one (``abi_1_1`` and others, listed in ``loader.TABLES``). ``Table`` builds
with them what the functions take, and reads what the callback is given, so that nothing else knows a struct.
"""

from __future__ import annotations

import ctypes as c
from array import array
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Optional

from .abi_common import RKLLMInputType, RKLLMLoraAdapter, RKLLMLoraParam, Signatures

_ROOM = 256  # bytes, above any release's RKLLMInput
_MOST_HIDDEN, _MOST_TOKENS = 1 << 16, 1 << 20  # of a hidden layer: more is read from garbage


class Features(NamedTuple):
    """What a release can do, and 1.1 cannot."""

    per_run_sampling: bool = False  # temperature and the like with each run, not only with the model
    perf: bool = False  # its own counts and times of a run, with FINISH
    logits: bool = False  # of each token of a prompt
    native_template: bool = False  # it wraps texts in the model's chat template, unless told not to
    tools: bool = False  # and tells that template of functions
    batch: bool = False  # several prompts in a run
    kv_range: bool = False  # parts of the KV cache can be cleared, and its size asked for
    max_context: bool = False  # a model may have been built for more than 4096 tokens of context
    end_token: bool = False  # the token that ends an answer comes like any other, but without a text


class State(IntEnum):
    """What a call of the callback means, whichever release makes it."""

    NORMAL = 0
    WAITING = 1  # the token ends inside a UTF-8 character
    FINISH = 2
    ERROR = 3
    HIDDEN = 4  # 1.1's way to hand over hidden states
    OTHER = 5  # no part of an answer


_STATES: dict[int, State] = {int(state): state for state in State if state not in (State.HIDDEN, State.OTHER)}


class RawToken(NamedTuple):
    """A token as the library gives it: the text may end inside a character."""

    id: int
    text: bytes


class Perf(NamedTuple):
    """The library's own figures of a run, by their names in RKLLMPerfStat."""

    prefill_time_ms: float
    prefill_tokens: int
    generate_time_ms: float
    generate_tokens: int  # without the first, as an owner of a board found
    memory_usage_mb: float

    def plus(self, other: Perf) -> Perf:
        """Of two runs of one model."""
        times = [a + b for a, b in zip(self[:4], other[:4])]
        return Perf(times[0], int(times[1]), times[2], int(times[3]), max(self.memory_usage_mb, other.memory_usage_mb))

    def facts(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 2) for name, value in self._asdict().items()}

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"prefill {self.prefill_tokens} tokens in {self.prefill_time_ms:.0f} ms, generate {self.generate_tokens} "
            f"tokens in {self.generate_time_ms:.0f} ms, memory {self.memory_usage_mb:.0f} MB"
        )


class HiddenStates(NamedTuple):
    """The last hidden layer of a prompt: ``size`` floats a token, one token after the other."""

    values: array[float]
    size: int

    @property
    def tokens(self) -> int:
        return len(self.values) // self.size


Heard = Callable[[Optional[int], State, Any], bool]
"""What the callback does with the number of a run (its user data), a state and RKLLMResult*, which may be NULL and is
good for this call alone: the methods of ``Table`` read it. Whether the memory behind it is wanted no more."""


class Table:
    """One family of releases. What it returns as Any are ctypes objects, which keep alive what they point at."""

    def __init__(self, structs: Any) -> None:
        """``structs``: the module with the release's structs."""
        self._structs = structs
        self.version: str = structs.VERSION
        self.features: Features = structs.FEATURES
        self.signatures: Signatures = structs.SIGNATURES
        self.error_checkers: Mapping[str, Any] = structs.ERROR_CHECKERS

        class Room(c.Structure):
            _fields_ = [("input", structs.RKLLMInput), ("room", c.c_uint8 * (_ROOM - c.sizeof(structs.RKLLMInput)))]

        self._room = Room
        self._states = dict(_STATES)
        if hidden := getattr(structs.LLMCallState, "RKLLM_RUN_GET_LAST_HIDDEN_LAYER", None):
            self._states[int(hidden)] = State.HIDDEN

    def new_handle(self) -> Any:
        """An empty one, for rkllm_init to fill."""
        return c.c_void_p()

    def model_parameters(self, library: Any, path: bytes, given: Mapping[str, Any]) -> Any:
        """For rkllm_init: the library's defaults, but for what is ``given`` by the names of RKLLM's arguments."""
        parameters = library.rkllm_createDefaultParam()
        for name, value in given.items():
            setattr(parameters, name, value)
        parameters.model_path = path
        parameters.is_async = False
        return parameters

    def callback(self, heard: Heard) -> Any:
        """For rkllm_init, to be kept as long as the handle. ``heard`` must not raise."""
        states, free = self._states, getattr(self._structs, "FREE_OUTPUT", 0)

        def called(result: Any, userdata: Optional[int], state: int) -> int:
            return free if heard(userdata, states.get(state, State.OTHER), result) else 0  # which goes on

        function = self._structs.LLMResultCallback(called)
        whole = getattr(self._structs, "RKLLMCallback", None)
        return whole(result_callback=function) if whole else function

    def take_prompts_as_they_are(self, library: Any, handle: Any) -> None:
        """After rkllm_init: texts are not to be wrapped in the model's template. Ours have been rendered already."""
        if self.features.native_template:
            library.rkllm_set_chat_template(handle, b"", b"", b"")

    # What rkllm_run takes.

    def text_input(self, text: bytes) -> Any:
        given = self._input(RKLLMInputType.RKLLM_INPUT_PROMPT)
        given.prompt_input = text
        return given

    def token_input(self, ids: Sequence[int]) -> Any:
        given = self._input(RKLLMInputType.RKLLM_INPUT_TOKEN)
        given.token_input.input_ids = (c.c_int32 * len(ids))(*ids)
        given.token_input.n_tokens = len(ids)
        return given

    def _input(self, kind: RKLLMInputType) -> Any:
        """An input of zeros, with zeros behind it: within a family, a release may read a longer one than another."""
        given = self._room().input
        given.input_type = kind
        return given

    def run_parameters(self, lora: Optional[bytes], sampling: Optional[Mapping[str, Any]] = None) -> Any:
        """An answer, with the adapter of that name or with none, to this prompt alone. ``sampling``, by RKLLMParam's
        names, is all of it: only for a release that takes it here."""
        return self._parameters("RKLLM_INFER_GENERATE", lora, sampling)

    def hidden_parameters(self, lora: Optional[bytes]) -> Any:
        """No answer but the last hidden layer of the prompt."""
        return self._parameters("RKLLM_INFER_GET_LAST_HIDDEN_LAYER", lora, None)

    def _parameters(self, mode: str, lora: Optional[bytes], sampling: Optional[Mapping[str, Any]]) -> Any:
        parameters = self._structs.RKLLMInferParam(mode=self._structs.RKLLMInferMode[mode])
        if lora is not None:
            parameters.lora_params = c.pointer(RKLLMLoraParam(lora))
        if sampling is not None:
            parameters.sampling_params = c.pointer(self._structs.RKLLMSamplingParam(**sampling))
        return parameters

    def sampling_of(self, parameters: Any) -> dict[str, Any]:
        """All of the sampling in what ``model_parameters`` made: what a run goes by that is given no other."""
        names = [name for name, _ in self._structs.RKLLMSamplingParam._fields_]
        return {name: getattr(parameters, name) for name in names}

    def lora_adapter(self, path: bytes, name: bytes, scale: float) -> Any:
        """For rkllm_load_lora."""
        return RKLLMLoraAdapter(path, name, scale)

    # What the callback is given.

    def token(self, result: Any) -> Optional[RawToken]:
        """Of NORMAL and WAITING alone: what the pointers of another state lead to is not said anywhere."""
        return RawToken(int(result.contents.token_id), result.contents.text or b"") if result else None

    def perf(self, result: Any) -> Optional[Perf]:
        """Of FINISH alone; None where there are no figures."""
        if not (self.features.perf and result):
            return None
        said = result.contents.perf
        found = Perf(*(getattr(said, name) for name in Perf._fields))
        return found if found.prefill_tokens > 0 or found.generate_tokens > 0 else None

    def hidden_states(self, result: Any) -> Optional[HiddenStates]:
        """Of HIDDEN, or of NORMAL in a run for them; None for sizes that no model has. A copy: the library's memory is
        good for the call alone."""
        if not result:
            return None
        layer = result.contents.last_hidden_layer
        size, tokens = int(layer.embd_size), int(layer.num_tokens)
        if not (layer.hidden_states and 0 < size <= _MOST_HIDDEN and 0 < tokens <= _MOST_TOKENS):
            return None
        values = array("f")
        values.frombytes(c.string_at(layer.hidden_states, c.sizeof(c.c_float) * size * tokens))
        return HiddenStates(values, size)
