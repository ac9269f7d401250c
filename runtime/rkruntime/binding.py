"""The binding to librkllmrt: one model, one owner, one run at a time.

``rkllm_run`` blocks, so it runs on a thread of its own and its tokens come over a queue: the caller's thread stays
open for Ctrl-C. Whatever ends the iteration, the run has ended too before the caller goes on.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Union

from rk3588 import runtime
from rk3588.errors import RuntimeFailure, UsageError
from rk3588.rkllm import CONTEXT_RESERVE

from . import loader
from .abi import Given, HiddenStates, State
from .generation import Generation, LibraryRun
from .generation import Token as Token


def _library(asked: Optional[loader.PathLike], model: Path) -> Path:
    npu = model.suffix == ".rkllm"
    return runtime.find(Path(asked) if asked is not None else None, npu=npu, sim=not npu)


class RKLLM:
    """A model loaded by librkllmrt; a context manager. Parameters left out are the library's defaults.

    Raises UsageError (bad argument), LibraryError (no library, or not one of 1.1), RuntimeFailure (it would not load).
    """

    def __init__(
        self,
        model_path: loader.PathLike,
        *,
        library: Optional[loader.PathLike] = None,
        max_context_len: Optional[int] = None,
        max_new_tokens: Optional[int] = None,
        top_k: Optional[int] = None,
        top_p: Optional[float] = None,
        temperature: Optional[float] = None,
        repeat_penalty: Optional[float] = None,
        frequency_penalty: Optional[float] = None,
        presence_penalty: Optional[float] = None,
        skip_special_token: Optional[bool] = None,
    ) -> None:
        others = ("self", "model_path", "library")
        given = {name: value for name, value in locals().items() if value is not None and name not in others}
        path = Path(model_path)
        if not path.is_file():
            raise UsageError(f"there is no model file {path}")
        self.library_path = _library(library, path)
        self._lib, self._abi = loader.load(self.library_path)
        self._run: Optional[LibraryRun] = None
        self._runs = 0
        self._loras: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._handle = self._abi.new_handle()
        # The library calls this object until it is destroyed: it must live as long as the handle.
        self._callback = self._abi.callback(self._on_result)
        self._init(path, given)
        atexit.register(self.close)

    def _init(self, path: Path, given: dict[str, Any]) -> None:
        parameters = self._abi.model_parameters(self._lib, str(path).encode("utf-8", "surrogateescape"), given)
        self.max_context_len = int(parameters.max_context_len)
        try:
            self._lib.rkllm_init(self._handle, parameters, self._callback)
        except RuntimeFailure as error:
            raise RuntimeFailure(f"{self.library_path} cannot load {path}: {error}") from error
        if not self._handle:
            raise RuntimeFailure(f"{self.library_path} cannot load {path}: rkllm_init gave no handle")

    def __enter__(self) -> RKLLM:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    @property
    def loras(self) -> tuple[str, ...]:
        """The names that ``generate`` takes as ``lora``."""
        return tuple(self._loras)

    def load_lora(self, path: loader.PathLike, name: str, scale: float = 1.0) -> None:
        """Load a LoRA adapter that runs may choose by ``name``; a run that names none is the model's alone.

        UsageError for a bad argument or a name that is taken, RuntimeFailure when the library refuses the file.
        """
        if not Path(path).is_file():
            raise UsageError(f"there is no LoRA file {path}")
        if not name or "\0" in name:
            raise UsageError(f"{name!r} cannot be a LoRA's name")
        if name in self._loras:
            raise UsageError(f"a LoRA called {name!r} is loaded already: give this one another name")
        if not math.isfinite(scale):
            raise UsageError(f"the scale of the LoRA {name!r} is {scale}, expected a number")
        adapter = self._abi.lora_adapter(os.fsencode(path), name.encode("utf-8", "replace"), scale)
        with self._lock:
            self._check_idle()
            try:
                self._lib.rkllm_load_lora(self._handle, adapter)
            except RuntimeFailure as error:
                raise RuntimeFailure(f"{self.library_path} cannot load the LoRA {path}: {error}") from error
            self._loras[name] = adapter  # the library may have kept its pointers

    def generate(
        self, prompt: Union[str, Sequence[int]], max_tokens: Optional[int] = None, lora: Optional[str] = None
    ) -> Generation:
        """Start a run on a text or on token ids, and iterate over its tokens.

        ``max_tokens`` aborts the run after so many, besides what the model was loaded with; ``lora`` is the name of an
        adapter that was loaded. UsageError when the prompt is empty or too long or there is no such adapter,
        RuntimeFailure when a run is going on or ends in an error.
        """
        return Generation(self._start(prompt, lora, self._abi.run_parameters), max_tokens)

    def hidden_states(self, prompt: Union[str, Sequence[int]], lora: Optional[str] = None) -> HiddenStates:
        """The last hidden layer of a prompt, of which no answer is made. Raises as ``generate`` does."""
        run = self._start(prompt, lora, self._abi.hidden_parameters)
        run.wait()
        if run.hidden is None:
            raise RuntimeFailure(f"{self.library_path} ended the run without the hidden states that it was asked for")
        return run.hidden

    def _start(
        self, prompt: Union[str, Sequence[int]], lora: Optional[str], parameters: Callable[[Optional[bytes]], Any]
    ) -> LibraryRun:
        input_ = self._input(prompt)
        if lora is not None and lora not in self._loras:
            there = ", ".join(self._loras) or "none"
            raise UsageError(f"no LoRA called {lora!r} is loaded; there are: {there}")
        with self._lock:
            self._check_idle()
            self._runs += 1
            chosen = parameters(None if lora is None else lora.encode("utf-8", "replace"))
            run = self._run = self._new_run(self._runs, input_, chosen)
            run.start()
        return run

    def abort(self) -> None:
        """Abort what runs, and wait for its end."""
        if self._run is not None:
            self._run.stop()

    def close(self) -> None:
        """Abort what runs, wait for it, and unload the model. Closing twice does no harm."""
        self.abort()
        with self._lock:
            handle, self._handle = self._handle, self._abi.new_handle()
        atexit.unregister(self.close)
        if handle:
            self._lib.rkllm_destroy(handle)

    def _check_idle(self) -> None:
        """Under the lock."""
        if not self._handle:
            raise UsageError("this model has been closed: load it again")
        if self._run is not None and not self._run.ended:
            raise RuntimeFailure("a run is going on: finish or close it first, the library does one at a time")

    def _new_run(self, number: int, input_: Any, parameters: Any) -> LibraryRun:
        lib, handle = self._lib, self._handle
        return LibraryRun(
            number,
            work=lambda: lib.rkllm_run(handle, input_, parameters, number),
            abort=lambda: lib.rkllm_abort(handle),
        )

    def _input(self, prompt: Union[str, Sequence[int]]) -> Any:
        """What rkllm_run takes; ctypes keeps the memory behind its pointers alive with it."""
        if not prompt:
            raise UsageError("the prompt is empty")
        if isinstance(prompt, str):
            if "\0" in prompt:
                raise UsageError("the prompt has a NUL character, where C would end it: remove it or pass tokens")
            return self._abi.text_input(prompt.encode("utf-8", "replace"))
        limit = self.max_context_len - CONTEXT_RESERVE
        if self.max_context_len > 0 and limit < len(prompt):
            raise UsageError(
                f"the prompt has {len(prompt)} tokens, and a context of {self.max_context_len} takes {limit}: "
                "shorten it or ask for a longer context"
            )
        return self._abi.token_input(prompt)

    def _on_result(self, number: Optional[int], state: State, given: Given) -> None:
        """On the library's thread: takes what the callback was given, and never lets an exception out into C."""
        run = self._run
        # A token that comes late belongs to a run that is over, never to the next one.
        if run is None or number != run.number:
            return
        try:
            run.receive(state, given)
        except BaseException as error:
            run.fail(error)
            self._lib.rkllm_abort(self._handle)
