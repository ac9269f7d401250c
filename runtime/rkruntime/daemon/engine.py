"""The engine: one queue, one worker, one answer at a time; restarts what dies and says truly how things stand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Optional

from rk3588 import bundle as bundles
from rk3588 import runtime
from rk3588.errors import AnswerFailed, Overdue, PromptRefused, PromptTooLong, QueueFull, Unavailable
from rk3588.rkllm import MAX_CONTEXT
from rkruntime.abi import Perf

from . import embedding
from .changes import Changes
from .deadlines import Deadlines
from .jobs import Durations, EngineSettings, Job, Piece, Status
from .loadguard import LIMIT, LoadGuard, identity
from .process import KILL_GRACE_S, WorkerGone, WorkerProcess, library_variables, prompt_length
from .protocol import Frame, ProtocolError
from .queue import FairQueue
from .ticket import Ticket

log = logging.getLogger("rkchatd")
_BACKOFF_S = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # before a load, by failures in a row


class WorkerEngine:
    """``Engine`` of jobs.py over a worker process. ``command`` and ``worker_env`` replace and extend how it is started.

    Raises BundleError or LibraryError if there is nothing to run, or nothing to run it with.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        command: Optional[Sequence[str]] = None,
        worker_env: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.settings = settings
        bundle = bundles.read(settings.bundle)
        self._choice = runtime.choose(bundle, settings.model.library)
        # The worker is told, so that both sides mean the same library and the same model. Lengths are each request's.
        self._model = replace(settings.model, library=self._choice.library, max_tokens=-1)
        self._sampling = self._model.sampling(bundle.sampling)
        self._deadlines = Deadlines(self._choice.model.stat().st_size / 1e9, settings.patience)
        self._guard = LoadGuard(identity(bundle), settings.state_dir)
        self._command, self._env = command, {**library_variables(settings, bundle), **(worker_env or {})}
        self._queue: FairQueue[Ticket] = FairQueue()
        self._encoding: Optional[asyncio.Lock] = None
        self._being_encoded = 0  # have a place in the queue, but no prompt yet
        self._running: Optional[Ticket] = None
        self._state, self._reason = "loading", ""
        self._load_failed = False  # the last load failed: whoever comes is told so instead of waiting
        self._failures = 0  # in a row, of loads and of runs
        self._starts = 0
        self._context, self._prompt_limit, self._load_ns = 0, 0, 0
        self._most_context = MAX_CONTEXT
        self._mean_answer_s = 5.0  # a running mean of how long answers took
        self._worker: Optional[WorkerProcess] = None
        self._changes = Changes()
        self._closing = False

    # What the HTTP side calls.

    async def start(self) -> None:
        log.info("%s; %s", self._choice, self._sampling)
        self._supervising = asyncio.get_running_loop().create_task(self._supervise())

    async def close(self, drain_s: float) -> None:
        self._closing = True
        loop = asyncio.get_running_loop()
        end = loop.time() + drain_s
        while (self.status.queued or self._running) and loop.time() < end and not self._load_failed:
            await self._changes.wait(end - loop.time())
        self._supervising.cancel()
        await asyncio.gather(self._supervising, return_exceptions=True)
        self._set_state("closed", "the daemon has shut down")
        self._refuse_all(self._reason)
        if self._worker is not None:
            await self._worker.close(KILL_GRACE_S)

    @property
    def status(self) -> Status:
        queued = len(self._queue) + self._being_encoded
        return Status(
            self._state, self._reason, self._context, queued, self._running is not None, max(self._starts - 1, 0)
        )

    @property
    def worker_pid(self) -> Optional[int]:
        return None if self._worker is None else self._worker.pid

    async def submit(self, job: Job) -> Ticket:
        self._check_open()
        self._check_queue_has_room()
        most = self.settings.deadline_s
        ticket = Ticket(job, min(job.deadline_s or most, most), self._cancel)
        self._being_encoded += 1
        try:
            await asyncio.wait_for(self._encode_into(ticket), ticket.left_s)
            self._check_open()
        except BaseException as error:
            ticket.finish("")
            if isinstance(error, asyncio.TimeoutError):
                raise Overdue(f"the model was not ready within {ticket.deadline_s:.0f} s") from None
            raise
        finally:
            self._being_encoded -= 1
        self._queue.push(ticket)
        ticket.find_place = self._queue.place
        self._changes.announce()
        return ticket

    async def _encode_into(self, ticket: Ticket) -> None:
        """The prompt of a job, or all of them; PromptTooLong for one that does not fit."""
        if ticket.job.embed is not None:
            await embedding.encode(ticket.job, ticket.job.embed, ticket, self._encode_fitting)
        else:
            frame = await self._encode_fitting(ticket.job)
            ticket.prompt, ticket.opened = frame["prompt"], frame.get("opened", "")

    async def _encode_fitting(self, job: Job) -> Frame:
        frame = await self._encode(job)
        self._check_prompt_fits(frame)
        return frame

    async def count(self, job: Job) -> Optional[int]:
        self._check_open()
        self._check_queue_has_room()
        self._being_encoded += 1
        try:
            frame = await self._encode(job)
        finally:
            self._being_encoded -= 1
        prompt = frame.get("prompt")
        return None if isinstance(prompt, str) else prompt_length(frame)

    def _check_queue_has_room(self) -> None:
        queued = self.status.queued
        if queued >= self.settings.queue_length:
            wait = min(max(int(self._mean_answer_s * queued), 1), 300)
            raise QueueFull(f"{queued} requests are waiting already: try again in about {wait} s", wait)

    def _check_prompt_fits(self, frame: Frame) -> None:
        tokens = prompt_length(frame)
        if not isinstance(frame.get("prompt"), str) and tokens > self._prompt_limit:
            longer = self._model.longer_than(self._context, self._most_context)
            raise PromptTooLong(
                f"the prompt has {tokens} tokens, and a context of {self._context} takes {self._prompt_limit}: shorten "
                f"the conversation, or load the model with {longer}",
                tokens,
                self._context,
            )

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the daemon is shutting down", retry_after_s=10)
        if self._state in ("failed", "reboot"):
            raise Unavailable(self._reason)
        if self._load_failed:
            raise Unavailable(self._reason, retry_after_s=int(self._backoff_s) + 1)

    async def _encode(self, job: Job) -> Frame:
        """The job's prompt, or only its length where it is too long, from whichever worker is ready next."""
        messages = None if job.messages is None else [dict(message) for message in job.messages]
        tools = None if job.tools is None else [dict(tool) for tool in job.tools]
        request: Frame = {"text": job.text, "messages": messages, "tools": tools}
        request["variables"] = dict(job.template_variables)
        if job.embed is not None:
            request.update(typed=True, truncate=job.embed.truncate)
        for attempt in (1, 2):
            try:
                frame = await self._encode_once(request)
                break
            except ProtocolError as error:
                raise PromptRefused(f"this conversation is too large to be handed over: {error}") from error
            except WorkerGone as error:
                # Once may be somebody else's doing; what ends two workers must not end them all.
                if attempt == 2:
                    raise AnswerFailed(f"this conversation cannot be turned into a prompt: {error}") from error
        if "refused" in frame:
            raise PromptRefused(frame["refused"])
        if "failed" in frame:
            raise AnswerFailed(f"this conversation cannot be turned into a prompt: {frame['failed']}")
        return frame

    async def _encode_once(self, request: Frame) -> Frame:
        """One at a time, as the worker does it: its time must not run while it is at somebody else's.

        So it is the worker that ends this, also for a client that has gone.
        """
        if self._encoding is None:  # made here: up to Python 3.9 a lock belongs to the loop it is made in
            self._encoding = asyncio.Lock()
        encoding = self._encoding
        await encoding.acquire()
        try:
            worker = await self._ready_worker()
            asked = asyncio.ensure_future(worker.encode(request, self._deadlines.first_token_s(0)))
        except BaseException:
            encoding.release()
            raise
        asked.add_done_callback(lambda _: encoding.release())
        return await asyncio.shield(asked)

    async def _ready_worker(self) -> WorkerProcess:
        while self._state != "ready" or self._worker is None or self._worker.gone.done():
            self._check_open()
            await self._changes.wait()
        return self._worker

    def _cancel(self, ticket: Ticket) -> None:
        """The client has gone, or the deadline has: out of the queue, or out of the run when the library lets go."""
        if ticket.run is not None:
            ticket.run.abort()
        else:
            self._queue.remove(ticket)
            self._changes.announce()

    # The life of the worker.

    async def _supervise(self) -> None:
        """Until no worker can be had any more; a defect of ours ends there, too, instead of in silence."""
        try:
            await self._load_and_serve()
        except Exception as error:
            log.exception("the engine has failed")
            self._set_state("failed", f"the daemon itself has failed ({error!r}): restart it and report this")
        self._refuse_all(self._reason)

    async def _load_and_serve(self) -> None:
        while self._state not in ("failed", "reboot"):
            await asyncio.sleep(self._backoff_s)
            worker = await self._load()
            if worker is None:
                self._failures += 1
                continue
            reason = await self._serve(worker)
            log.warning("the worker is gone: %s", reason)
            self._failures += 1
            self._set_state("loading", f"loading again: {reason}")
            await self._end_worker(worker)

    @property
    def _backoff_s(self) -> float:
        return _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]

    async def _load(self) -> Optional[WorkerProcess]:
        """Start a worker and have it load the model; None, and the state says why, if that fails."""
        if self._guard.gives_up:
            hint = f" remove {self._guard.path} and" if self._guard.path else ""
            why = f" ({self._reason})" if self._reason else ""
            self._set_state(
                "failed",
                f"{self.settings.bundle} ended its process {LIMIT} times while it was loaded, and is not tried again"
                f"{why}: check the model, the runtime's version and the memory, then{hint} start the daemon again",
            )
            return None
        self._guard.begin()
        self._starts += 1
        worker: Optional[WorkerProcess] = None
        try:
            worker = self._worker = await WorkerProcess.start(log.info, self._command, self._env)
            frame = await worker.load(self.settings.bundle, self._model.frame(), self._deadlines.load_s)
            problem = None if frame["event"] == "ready" else str(frame["message"])
            if problem is not None:
                self._guard.end()  # it said what is wrong: that is no crash
        except WorkerGone as error:
            frame, problem = {}, str(error)
        except OSError as error:  # no descriptors, memory or processes left, which may be otherwise in a while
            self._guard.end()  # nothing was loaded
            frame, problem = {}, f"the runtime's process cannot be started: {(error.strerror or str(error)).lower()}"
        except asyncio.CancelledError:
            self._guard.end()  # called off
            raise
        if problem is not None:
            self._load_failed = True
            log.error("cannot load %s: %s", self.settings.bundle, problem)
            self._set_state("loading", f"the model cannot be loaded: {problem}")
            if worker is not None:
                await self._end_worker(worker)
            return None
        self._guard.end()
        self._context, self._prompt_limit, self._load_ns = frame["context"], frame["prompt_limit"], frame["load_ns"]
        self._most_context = frame.get("most_context", MAX_CONTEXT)
        self._load_failed = False
        self._set_state("ready", "")
        return worker

    async def _end_worker(self, worker: WorkerProcess) -> None:
        """End what is left of a worker. One that SIGKILL does not end holds the NPU: no other may be started."""
        self._worker = None
        if not await worker.close(0 if worker.gone.done() else KILL_GRACE_S):
            self._set_state(
                "reboot",
                f"the runtime's process {worker.pid} hangs in the NPU driver and cannot be killed: reboot the board",
            )

    async def _serve(self, worker: WorkerProcess) -> str:
        """Answer what waits, one after the other, until the worker is gone; returns why it is."""
        while not worker.gone.done():
            ticket = self._queue.pop()
            if ticket is None:
                await self._changes.wait(or_done=worker.gone)
                continue
            if ticket.over:  # overdue at the very moment it was queued
                continue
            self._running = ticket
            try:
                if ticket.job.embed is None:
                    await self._answer(worker, ticket)
                else:
                    await embedding.run_next(worker, ticket, ticket.job.embed, self._deadlines, self._load_ns)
                    self._failures = 0
                    if not ticket.over:  # behind the others
                        self._queue.push(ticket)
            except WorkerGone as error:
                self._retry_or_fail(ticket, str(error))
            except asyncio.CancelledError:
                ticket.fail(Unavailable("the daemon was shut down before the answer was whole"))
                raise
            except Exception as error:
                ticket.fail(AnswerFailed(f"the answer was lost: the daemon itself has failed ({type(error).__name__})"))
                raise
            finally:
                self._running = None
                self._changes.announce()
        return worker.gone.result()

    async def _answer(self, worker: WorkerProcess, ticket: Ticket) -> None:
        """One run. The NPU is free only when the worker says that the run has ended, whoever still listens."""
        job = ticket.job
        limit = self.settings.model.max_tokens if job.max_tokens is None else job.max_tokens
        began = asyncio.get_running_loop().time()
        first_ns = 0
        request = {
            "prompt": ticket.prompt, "max_tokens": limit, "lora": job.lora, "sampling": dict(job.sampling),
            "marks": list(job.marks),
        }  # fmt: skip
        run = ticket.run = worker.run(request)
        try:
            silence = self._deadlines.first_token_s(ticket.prompt_tokens or self._context)
            while True:
                frame = await run.next(silence)
                if "end" in frame or "error" in frame:
                    break
                if frame["text"] or frame["tokens"]:  # what is neither would look like a sign of life
                    first_ns = first_ns or frame["elapsed_ns"]
                    durations = Durations(self._load_ns, first_ns, frame["elapsed_ns"] - first_ns)
                    ticket.put(Piece(frame["text"], frame["tokens"]), durations)
                silence = self._deadlines.token_s
        finally:
            ticket.run = None
            run.stop_listening()
        if "error" in frame:
            ticket.fail(AnswerFailed(frame["error"]))
        elif frame["end"] in ("stop", "length"):
            ticket.perf = Perf(**frame["perf"]) if frame.get("perf") else None
            ticket.finish(frame["end"])
        else:  # nothing, if it was the client or the deadline that ended it
            ticket.fail(AnswerFailed("the answer was lost: its run was aborted, and nobody had asked for that"))
        self._failures = 0
        self._mean_answer_s += 0.2 * (asyncio.get_running_loop().time() - began - self._mean_answer_s)

    def _retry_or_fail(self, ticket: Ticket, reason: str) -> None:
        """The worker died under an answer: once more if nobody has seen any of it; embeddings go out all together."""
        if ticket.over:
            return
        unseen = ticket.job.embed is not None or ticket.completion_tokens == 0
        if unseen and not ticket.retried:
            ticket.retried = True
            self._queue.push_first(ticket)
        else:
            ticket.fail(AnswerFailed(f"the answer was lost: {reason}"))

    def _refuse_all(self, reason: str) -> None:
        while (ticket := self._queue.pop()) is not None:
            ticket.fail(Unavailable(reason))

    def _set_state(self, state: str, reason: str) -> None:
        if state != self._state:
            log.info("%s%s", state, f": {reason}" if reason else "")
        self._state, self._reason = state, reason
        self._changes.announce()
