"""One run of the library, and the iterator over its tokens that the caller holds."""

from __future__ import annotations

import codecs
import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Optional, Union

from rk3588.errors import RuntimeFailure

from .abi import HiddenStates, Perf, RawToken, State

NORMAL, WAITING, FINISH = State.NORMAL, State.WAITING, State.FINISH
Received = Union[RawToken, HiddenStates, Perf, None]  # what comes with a call of the callback
_ABORT_EVERY_S = 0.2
_GRACE_S = 2.0  # for a FINISH that comes late, or, as after an abort perhaps, not at all
_PREFILL_S = 60.0  # a library that runs on though rkllm_run has returned is silent for the prompt
_STOP_S = 600.0  # no abort reaches the inside of a prompt, and the longest takes minutes


class Token(NamedTuple):
    """One generated token. ``text`` is empty while a character is incomplete (``WAITING``).

    A last one with state ``FINISH`` comes only when the answer ends inside a character; it is no token of its own.
    """

    text: str
    id: int
    state: State


class LibraryRun:
    """What the caller's thread and the library's thread share. ``work`` calls rkllm_run, ``abort`` rkllm_abort.

    A run ends with FINISH, ERROR or the return code of ``work``. rkllm_run blocks until then; should a release return
    early, its callbacks are waited for. rkllm_is_running is not asked: releases differ in what 0 means.
    """

    def __init__(self, number: int, work: Callable[[], object], abort: Callable[[], object]) -> None:
        self.number = number
        # Each with the time since the run began, in ns: whoever takes it out may be late.
        self.tokens: queue.SimpleQueue[Optional[tuple[State, RawToken, int]]] = queue.SimpleQueue()
        self.hidden: Optional[HiddenStates] = None
        self.perf: Optional[Perf] = None  # the library's own figures, where it gives any
        self.failure: Optional[BaseException] = None
        self.stopping = False
        self._run_library, self._abort = work, abort
        self._last_callback: Optional[float] = None  # when the last callback came
        self._end_heard = threading.Event()  # FINISH or ERROR has come
        self._returned = threading.Event()  # and the library has let go
        # A daemon, so that an exit from the program gets as far as closing the model, which aborts the run.
        self._thread = threading.Thread(target=self._on_thread, name=f"rkllm_run {number}", daemon=True)

    @property
    def ended(self) -> bool:
        """The library has let go: another run may begin, and the handle may be destroyed."""
        return self._returned.is_set()

    def start(self) -> None:
        self._started_ns = time.perf_counter_ns()
        try:
            self._thread.start()
        except BaseException:  # no thread is to be had: nothing has begun that could end
            self._returned.set()
            raise

    def receive(self, state: State, what: Received) -> None:
        """On the library's thread: a token into the queue, or the end."""
        self._last_callback = time.monotonic()
        if isinstance(what, RawToken):
            self.tokens.put((state, what, time.perf_counter_ns() - self._started_ns))
        elif isinstance(what, HiddenStates):
            self.hidden = what
            self._end_heard.set()  # whether a FINISH follows is not said anywhere
        elif state == State.ERROR:
            self.fail(RuntimeFailure("the library ended the run with an error: its own log lines say why"))
            self._end_heard.set()
        elif state == FINISH:
            self.perf = what if isinstance(what, Perf) else None
            self._end_heard.set()

    def fail(self, error: BaseException) -> None:
        """Keep the first error for the caller's side."""
        self.failure = self.failure or error

    def stop(self) -> None:
        """Abort and wait for the end.

        A second Ctrl-C waits its turn: the library cannot stop inside the prompt, and a handle that runs must not be
        left behind. RuntimeFailure for a library that hangs.
        """
        interrupt: Optional[BaseException] = None
        latest = time.monotonic() + _STOP_S
        while not self.ended:
            if time.monotonic() > latest:
                raise RuntimeFailure(
                    f"the library has not heeded an abort for {_STOP_S:.0f} s: it hangs, end this process"
                ) from interrupt
            try:
                self.stopping = True
                # Again and again: an abort that comes before the run has begun is lost.
                self._abort()
                self._returned.wait(_ABORT_EVERY_S)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _on_thread(self) -> None:
        try:
            if not self.stopping:
                self._run_library()
                self._wait_for_end()
        except BaseException as error:
            self.fail(error)
        self._returned.set()
        self.tokens.put(None)

    def _wait_for_end(self) -> None:
        """``work`` has returned without an error: FINISH or ERROR has come, or is waited for, but not for ever."""
        blocked = self._last_callback is not None or self.stopping
        quiet = _GRACE_S if blocked else _PREFILL_S
        last = time.monotonic()
        while not self._end_heard.wait(max(last + quiet - time.monotonic(), 0)):
            if self._last_callback is None or self._last_callback <= last:
                break
            last = self._last_callback
        else:
            return
        if not blocked:
            self._abort()  # should it run on all the same
            self.fail(RuntimeFailure(f"rkllm_run returned, and no end of the answer came for {quiet:.0f} s"))


class Generation(Iterator[Token]):
    """The tokens of a run. ``close()``, Ctrl-C, an exception and dropping it abort the run and wait for its end."""

    def __init__(self, run: LibraryRun, max_tokens: Optional[int]) -> None:
        self._run, self._tokens_left = run, max_tokens
        self._text = TextOfTokens()
        self._last_id = -1
        self.elapsed_ns = 0  # from the start of the run to the callback of the token that was given out last
        self._ended = False

    @property
    def aborted(self) -> bool:
        """Whether somebody ended the run before it did: ``max_tokens``, ``close``, or whoever closed the model."""
        return self._run.stopping

    @property
    def perf(self) -> Optional[Perf]:
        """The library's own figures of the run, once it has ended; None from a release that has none."""
        return self._run.perf

    def __iter__(self) -> Generation:
        return self

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __next__(self) -> Token:
        if self._tokens_left is not None and self._tokens_left <= 0:
            self.close()
        if self._ended:
            raise StopIteration
        try:
            item = self._run.tokens.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if item is None:
            return self._end()
        state, raw, self.elapsed_ns = item
        self._last_id = raw.id
        if self._tokens_left is not None:
            self._tokens_left -= 1
        return Token(self._text.feed(raw.text, state == WAITING), raw.id, state)

    def close(self) -> None:
        """Abort the run and wait for its end; nothing happens if it has ended."""
        self._ended = True
        self._run.stop()

    def _end(self) -> Token:
        self._ended = True
        if self._run.failure is not None:
            raise self._run.failure
        tail = self._text.end()
        if not tail:
            raise StopIteration
        return Token(tail, self._last_id, FINISH)


class TextOfTokens:
    """Bytes to text, whichever way a release hands over a character that several tokens make up.

    With WAITING come no bytes, or the next bytes, or all bytes so far; with the token that completes the character,
    the rest or the whole. What is held back ends inside a character, so bytes that begin with it repeat it.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""

    def feed(self, raw: bytes, waiting: bool) -> str:
        joined = raw if raw.startswith(self._held) else self._held + raw
        self._held = joined if waiting else b""
        return "" if waiting else self._decoder.decode(joined)

    def end(self) -> str:
        return self._decoder.decode(self._held, final=True)
