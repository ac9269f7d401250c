"""Every exception this toolkit raises on purpose.

RkError
├── UsageError           the call itself is wrong                        exit code 2
├── CheckpointError      a model to convert is not what it should be     exit code 1
├── BundleError          a bundle is missing, incomplete or changed
├── TargetError          the place to write to is taken or not writable
├── SimError             librksim refused an artifact or an argument
├── LibraryError         no usable librkllmrt, or one of another version
├── RuntimeFailure       librkllmrt answered with an error
└── BoardError           the catalogue or the inventory of boards

A message is one sentence: what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class RkError(Exception):
    """Base of all; the CLI prints its text after ``Error:`` and exits with ``exit_code``."""

    exit_code = 1


class UsageError(RkError):
    exit_code = 2


class CheckpointError(RkError):
    pass


class BundleError(RkError):
    pass


class TargetError(RkError):
    pass


class SimError(RkError):
    pass


class LibraryError(RkError):
    pass


class RuntimeFailure(RkError):
    pass


class BoardError(RkError):
    pass
