"""The worker process: owns the library's handle, renders and counts prompts, runs one answer at a time.

The argument is FD, a socket to the supervisor. The first thread reads frames and
encodes prompts, also while an answer is under way; the second loads and runs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Optional

from rk3588.errors import RkError, UsageError
from rk3588.rkllm import CONTEXT_RESERVE, OPEN_FILES
from rk3588.runtime import Choice
from rkruntime import pooling, thoughts
from rkruntime.generation import FINISH
from rkruntime.model import Model
from rkruntime.prompts import Prompt
from rkruntime.settings import Settings

from . import template_facts
from .protocol import Channel, Frame
from .rendering import Renderer


class Worker:
    """What the two threads share. ``serve`` is the first one's loop, ``_run_jobs`` the second's."""

    def __init__(self, channel: Channel, renderer: Renderer) -> None:
        self._channel, self._renderer = channel, renderer
        self._jobs: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._model: Optional[Model] = None
        self._aborted: Optional[int] = None
        self._sampling_ignored = False  # and said so
        self._marks: dict[int, str] = {}  # what answers are read by, of which the library says nothing but the id

    def serve(self) -> None:
        """Until ``quit``, or the supervisor is gone."""
        threading.Thread(target=self._run_jobs, name="rkllm", daemon=True).start()
        while True:
            frame = self._channel.receive()
            if frame is None or frame["op"] == "quit":
                return
            if frame["op"] == "encode":
                self._encode(frame)
            elif frame["op"] == "abort":
                self._aborted = frame["id"]
            else:
                self._jobs.put(frame)

    def _run_jobs(self) -> None:
        with _exit_on_defect():
            while True:
                frame = self._jobs.get()
                if frame["op"] == "load":
                    self._load(frame)
                elif frame.get("embed"):
                    self._embed(frame)
                else:
                    self._run(frame)

    def _load(self, frame: Frame) -> None:
        """Load the model and have it answer one token: rkllm_init returns 0 for models that it could not load, too."""
        try:
            model = Model(Path(frame["bundle"]), Settings.from_frame(frame["settings"]), _warn, _check_files_for)
            with closing(model.tokens(model.prompts.plain("Hello"), 1)) as tokens:
                for _ in tokens:
                    pass
        except Exception as error:
            self._channel.send(event="failed", message=_message_of(error))
            return
        model.prompts.renderer = self._renderer
        self._marks = model.prompts.special_ids(template_facts.ALL_MARKS)
        self._model = model
        limit = model.context - CONTEXT_RESERVE
        sizes = {"context": model.context, "most_context": model.most_context, "prompt_limit": limit}
        self._channel.send(event="ready", load_ns=model.load_ns, **sizes)

    def _encode(self, frame: Frame) -> None:
        """A job's prompt: ids, or a text where the bundle has no vocabulary; of one too long only its length.

        Whatever a request is made of, it is that request alone which fails here.
        """
        assert self._model is not None
        number, send = frame["id"], self._channel.send
        try:
            prompt, model_prompts = self._prompt(self._model, frame), self._model.prompts
            limit = self._model.context - CONTEXT_RESERVE
            if frame.get("truncate") and not isinstance(prompt, str):
                prompt = prompt[:limit]
            if not isinstance(prompt, str) and len(prompt) > limit:
                send(id=number, tokens=len(prompt))
            else:
                send(id=number, prompt=prompt, opened=thoughts.opened_by(model_prompts.end_of(prompt)))
        except RkError as error:
            send(id=number, refused=str(error))
        except Exception as error:
            _warn(f"a request could not be encoded: {_message_of(error)}")
            send(id=number, failed=_message_of(error))

    @staticmethod
    def _prompt(model: Model, frame: Frame) -> Prompt:
        if frame.get("typed"):
            prompt = model.prompts.typed(frame["text"])
        elif frame["text"] is not None:
            prompt = model.prompts.plain(frame["text"])
        else:
            prompt = model.prompts.chat(frame["messages"], {**frame["variables"], "tools": frame["tools"]})
        if not prompt:
            raise UsageError("the prompt is empty: there is nothing to go on from")
        if isinstance(prompt, str) and "\0" in prompt:
            raise UsageError("the prompt has a NUL character, where it would end for the runtime: remove it")
        return prompt

    def _run(self, frame: Frame) -> None:
        """Tokens as they come, then ``end``: the library has let go of the NPU by then."""
        assert self._model is not None
        number, model, send = frame["id"], self._model, self._channel.send
        aborted = False
        try:
            _choose_lora(model, frame["lora"])
            shown = {id: text for id, text in self._marks.items() if text in frame["marks"]}
            sampling = self._sampling_of(model, frame)
            with closing(model.tokens(frame["prompt"], frame["max_tokens"], sampling)) as tokens:
                for token in tokens:
                    # An abort reaches the library at the next token, which is when the library would heed it itself.
                    aborted = self._aborted == number
                    if aborted:
                        break
                    count = 1 if token.state != FINISH else 0
                    text = token.text or (shown.get(token.id, "") if count else "")
                    send(id=number, text=text, tokens=count, elapsed_ns=model.cost.last_ns)
        except Exception as error:
            send(id=number, error=_message_of(error))
            return
        perf = model.cost.perf
        end = "abort" if aborted else model.cost.finish_reason
        send(id=number, end=end, perf=perf._asdict() if perf else None)

    def _sampling_of(self, model: Model, frame: Frame) -> Mapping[str, float]:
        """None where the library's file was replaced by an older one after the supervisor had looked at it."""
        wanted: Mapping[str, float] = frame["sampling"]
        if not wanted or model.features.per_run_sampling:
            return wanted
        if not self._sampling_ignored:
            self._sampling_ignored = True
            _warn(
                "the library was replaced by a release that fixes sampling when it loads a model: what requests ask of "
                "it has no effect, and is not named to them before the daemon is started again"
            )
        return {}

    def _embed(self, frame: Frame) -> None:
        """The embedding of a text, pooled here: the hidden states of all its tokens would be megabytes."""
        assert self._model is not None
        number, model, send = frame["id"], self._model, self._channel.send
        try:
            _choose_lora(model, frame["lora"])
            began = time.perf_counter_ns()
            states = model.hidden_states(frame["prompt"])
            vector = pooling.embedding(states, frame["dimensions"])
            elapsed_ns = time.perf_counter_ns() - began
            shown = pooling.as_base64(vector) if frame["as_base64"] else pooling.as_json(vector)
            send(id=number, embedding=shown, tokens=states.tokens, elapsed_ns=elapsed_ns)
        except pooling.TooManyDimensions as error:
            send(id=number, refused=str(error))
        except Exception as error:
            send(id=number, error=_message_of(error))


def _choose_lora(model: Model, name: Optional[str]) -> None:
    """By name only: a request must not make this process open files."""
    if name is not None and name not in model.bundle.loras:
        raise UsageError(
            f"{model.bundle.name} has no LoRA {name!r}: there are {', '.join(model.bundle.loras) or 'none'}"
        )
    model.choose_lora(name)


def _message_of(error: BaseException) -> str:
    """Our own errors by their text. Others by kind and place: what they say may quote what somebody wrote."""
    if isinstance(error, RkError):
        return str(error)
    places = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}{where}"


@contextlib.contextmanager
def _exit_on_defect() -> Iterator[None]:
    """A defect ends the process at once: an orderly exit would stop the run, and it would look whole."""
    try:
        yield
    except BaseException as error:
        _warn(f"the worker ends: {_message_of(error)}")
        os._exit(1)


def _warn(message: str) -> None:
    print(f"W rkchatd: {message}", file=sys.stderr, flush=True)


def _set_process_limits() -> None:
    """Be the one that waits, that may open many files, and that the kernel ends first where memory runs out."""
    # The supervisor has little to do, but at once: where the library computes on every core, each token would wait.
    os.nice(5)
    if "INVOCATION_ID" in os.environ:  # a unit keeps the supervisor on the little cores (CPUAffinity), not the library
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _check_files_for(choice: Choice) -> None:
    """Say that there may be too few, before the library fails for it without a word; the simulated one needs none."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not choice.simulated and hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        _warn(f"this process may open {hard} files; a large model on an NPU wants {OPEN_FILES} (LimitNOFILE)")


def main() -> None:
    _set_process_limits()
    with _exit_on_defect():
        end = socket.socket(fileno=int(sys.argv[1]))
        renderer = Renderer(end)  # before the library and its threads
        Worker(Channel(end), renderer).serve()
    # Without cleaning up: a run may be under way that nobody waits for, and the kernel frees everything.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
