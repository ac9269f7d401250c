"""What the HTTP side asks of the engine, and what it gets back: the words both sides of the daemon share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional, Protocol

from rkruntime.abi import Perf
from rkruntime.settings import Settings

Message = Mapping[str, Any]


@dataclass(frozen=True)
class EngineSettings:
    """One bundle and how it is served."""

    bundle: Path
    model: Settings = field(default_factory=Settings)  # its max_tokens: of an answer that names no limit of its own
    sim_library: Optional[Path] = None  # librksim.so, which counts tokens
    queue_length: int = 32  # requests that may wait, besides the one that runs
    deadline_s: float = 600.0  # from arrival to the last token, unless a request asks for less
    patience: float = 1.0  # multiplies every deadline that the worker has: a slower machine wants more
    state_dir: Optional[Path] = None  # where failed loads are remembered; None: in memory only


@dataclass(frozen=True)
class Embed:
    """Texts whose embeddings are wanted, in this form. ``truncate``: cut what is too long, instead of refusing it."""

    texts: Sequence[str]
    dimensions: Optional[int] = None
    as_base64: bool = False
    truncate: bool = False


@dataclass(frozen=True)
class Job:
    """One answer that somebody wants: a conversation in the model's template, or a text as it is; or embeddings."""

    messages: Optional[Sequence[Message]] = None
    text: Optional[str] = None
    tools: Optional[Sequence[Mapping[str, Any]]] = None  # for the template
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: Optional[int] = None
    owner: str = ""  # whom the queue is fair to: the name of an API key
    background: bool = False  # after everything interactive
    deadline_s: Optional[float] = None
    lora: Optional[str] = None
    sampling: Mapping[str, float] = field(default_factory=dict)  # other than the model's, where the runtime can
    embed: Optional[Embed] = None  # instead of an answer: a piece for each text, in their order
    marks: tuple[str, ...] = ()  # special tokens that the answer is to show, by their texts


class Piece(NamedTuple):
    """Some of an answer. ``tokens`` is how many it came from: 0 for a mere sign of life while nothing comes."""

    text: str
    tokens: int = 1


class Durations(NamedTuple):
    """How long an answer took, in nanoseconds, as the worker measured it around the run."""

    load_ns: int = 0  # of loading the model it came from, whenever that was
    prompt_ns: int = 0  # from the start of the run to its first token
    answer_ns: int = 0  # from there to the latest

    def plus(self, other: Durations) -> Durations:
        """Of two runs of one model."""
        return Durations(self.load_ns, self.prompt_ns + other.prompt_ns, self.answer_ns + other.answer_ns)


class Answer(Protocol):
    """An answer under way. Counts and the reason are final when ``pieces`` has ended.

    ``finish_reason``: "stop" (the model ended it), "length" (max_tokens, the context is full, or a loop).
    """

    @property
    def prompt_tokens(self) -> Optional[int]:
        """None: the bundle has no vocabulary to count with."""
        ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def durations(self) -> Optional[Durations]:
        """Up to the latest token; None before the first."""
        ...

    @property
    def perf(self) -> Optional[Perf]:
        """The library's own figures, of an answer that has ended; None from one that gives none."""
        ...

    @property
    def finish_reason(self) -> str: ...

    @property
    def opened(self) -> str:
        """The tag with which the prompt begins the model's thought; "" where it does not."""
        ...

    @property
    def place(self) -> Optional[int]:
        """In the queue; 0: it is being answered; None: nobody can say."""
        ...

    def pieces(self, heartbeat_s: Optional[float] = None) -> AsyncIterator[Piece]:
        """The answer as it comes; with ``heartbeat_s``, an empty piece after each so many seconds of silence.

        Raises Overdue, Unavailable or AnswerFailed. To be iterated once.
        """
        ...

    async def close(self) -> None:
        """Give the answer up, in the queue, in prefill or in decode. Closing what has ended does nothing."""
        ...


@dataclass(frozen=True)
class Status:
    """What the engine knows of itself. ``state``: loading, ready, failed, reboot or closed."""

    state: str
    reason: str = ""  # one sentence where it is not ready
    context: int = 0  # tokens, once a model was loaded
    queued: int = 0
    running: bool = False
    restarts: int = 0


class Engine(Protocol):
    """One model behind one worker process."""

    settings: EngineSettings

    async def start(self) -> None: ...

    async def close(self, drain_s: float) -> None:
        """Take no more, give what is under way ``drain_s`` seconds to end, then stop the worker."""
        ...

    @property
    def status(self) -> Status: ...

    @property
    def worker_pid(self) -> Optional[int]:
        """The process that has the model; None where there is none."""
        ...

    async def submit(self, job: Job) -> Answer:
        """Queue a job: returns when its prompt has been counted and has a place in the queue.

        Raises QueueFull, PromptTooLong, PromptRefused (the template), Unavailable, Overdue, AnswerFailed.
        """
        ...

    async def count(self, job: Job) -> Optional[int]:
        """Tokens of the job's prompt, without running it; None if they cannot be counted.

        Raises PromptRefused or Unavailable.
        """
        ...
