"""Every exception this toolkit raises on purpose.

RkError
├── UsageError           the call itself is wrong                        exit code 2
├── CheckpointError      a model to convert is not what it should be     exit code 1
│   └── WrongModel       what the call names is none, or none for this target   exit code 2
├── BundleError          a bundle is incomplete, changed, or not what its manifest says
│   └── NoSuchBundle     there is none where the call says               exit code 2
├── ToolkitError         rkllm-toolkit is missing, failed, or was killed
├── TargetError          the place to write to is not writable
│   └── TargetTaken      something lies there already                    exit code 2
├── SimError             librksim refused an artifact or an argument
├── LibraryError         no usable librkllmrt, or one of another version
│   └── NoSuchLibrary    there is none where the call says               exit code 2
├── RuntimeFailure       librkllmrt answered with an error
├── BoardError           the catalogue or the inventory of boards, or a simulated board that does not come up
├── ConnectError         a board cannot be reached, or not be logged in to, or the link to it was lost
│   └── HostKeyError     its SSH key is unknown, another than the known one, or revoked
├── DeployError          a board refuses a release, or a step on it failed
├── BenchError           a server or a runtime cannot be measured, or what it says cannot be
└── ServiceError         the chat daemon cannot answer a request
    ├── RequestRefused   the HTTP request asks for what cannot be done
    ├── QueueFull        too many wait already
    ├── PromptTooLong    the prompt does not fit the context
    ├── PromptRefused    the chat template does not take this conversation
    ├── Unavailable      there is no model that could answer, now or at all
    ├── Overdue          the deadline has passed
    └── AnswerFailed     the runtime failed in the middle of an answer

The call is wrong (2) where it names what is not there, or asks for what cannot be: only another call would do. All
else has failed (1), what is there and is not what it should be as well: the same call may do once that is mended.

A message is one sentence: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Optional, TextIO


class RkError(Exception):
    """Base of all; the CLI prints its text after ``Error:`` and exits with ``exit_code``."""

    exit_code = 1


class UsageError(RkError):
    exit_code = 2


class CheckpointError(RkError):
    pass


class WrongModel(CheckpointError):
    exit_code = 2


class BundleError(RkError):
    pass


class NoSuchBundle(BundleError):
    exit_code = 2


class ToolkitError(RkError):
    pass


class TargetError(RkError):
    pass


class TargetTaken(TargetError):
    exit_code = 2


class SimError(RkError):
    pass


class LibraryError(RkError):
    pass


class NoSuchLibrary(LibraryError):
    exit_code = 2


class RuntimeFailure(RkError):
    pass


class BoardError(RkError):
    pass


class ServiceError(RkError):
    pass


class RequestRefused(ServiceError):
    """``status`` of HTTP; ``param`` is the field that is wrong, ``code`` a name that programs can test for."""

    def __init__(
        self, message: str, param: Optional[str] = None, status: int = 400, code: Optional[str] = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class QueueFull(ServiceError):
    """``retry_after_s``: when to try again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PromptTooLong(ServiceError):
    """``tokens`` of prompt, and the ``context`` they would have to fit into with room for an answer."""

    def __init__(self, message: str, tokens: int, context: int) -> None:
        super().__init__(message)
        self.tokens, self.context = tokens, context


class PromptRefused(ServiceError):
    pass


class Unavailable(ServiceError):
    """``retry_after_s``: when to try again; None where waiting will not help."""

    def __init__(self, message: str, retry_after_s: Optional[int] = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overdue(ServiceError):
    pass


class AnswerFailed(ServiceError):
    pass


class ConnectError(RkError):
    pass


class HostKeyError(ConnectError):
    pass


class DeployError(RkError):
    pass


class BenchError(RkError):
    pass


# Control characters (C0 but tab and newline, C1), line separators, marks that turn the direction of text round,
# and halves of surrogate pairs, which no terminal can be given.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` without what steers a terminal: a board, a bundle or a model's answer may say anything."""
    return _STEERING.sub("\ufffd", text)


def shown(text: str, stream: Optional[TextIO]) -> str:
    """``text`` as it may be written to ``stream``: harmless to a terminal, and untouched for a pipe or a file."""
    return printable(text) if stream is not None and stream.isatty() else text


def printable_json(value: Any, indent: Optional[int] = 2) -> str:
    """``value`` as JSON for people and programs: what steers a terminal is escaped, which means the same."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
