"""Embeddings in the engine: a request's texts are run one by one, and between two of them others have their turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from rk3588.errors import AnswerFailed, PromptRefused, PromptTooLong, RequestRefused

from .deadlines import Deadlines
from .jobs import Durations, Embed, Job, Piece
from .process import WorkerProcess
from .protocol import Frame
from .ticket import Ticket


async def encode(job: Job, embed: Embed, into: Ticket, encode_one: Callable[[Job], Awaitable[Frame]]) -> None:
    """Prompts of all texts, before any is run; what is wrong with one says with which."""
    for number, text in enumerate(embed.texts):
        try:
            into.waiting.append((await encode_one(replace(job, text=text)))["prompt"])
        except PromptTooLong as error:
            raise PromptTooLong(f"input {number + 1}: {error}", error.tokens, error.context) from error
        except PromptRefused as error:
            raise PromptRefused(f"input {number + 1}: {error}") from error


async def run_next(worker: WorkerProcess, ticket: Ticket, embed: Embed, deadlines: Deadlines, load_ns: int) -> None:
    """One text. Its piece is the embedding as the client gets it; its tokens are those of the prompt."""
    prompt = ticket.waiting[0]
    request = {
        "prompt": prompt, "lora": ticket.job.lora, "dimensions": embed.dimensions, "as_base64": embed.as_base64,
    }  # fmt: skip
    run = ticket.run = worker.run({"embed": True, **request})
    try:
        tokens = len(prompt) if isinstance(prompt, list) else len(prompt.encode("utf-8", "replace"))
        frame = await run.next(deadlines.first_token_s(tokens))
    finally:
        ticket.run = None
        run.stop_listening()
    if "refused" in frame:
        ticket.fail(RequestRefused(frame["refused"], "dimensions"))
    elif "error" in frame:
        ticket.fail(AnswerFailed(frame["error"]))
    else:
        ticket.waiting.popleft()
        ticket.embedded_tokens += frame["tokens"]
        before = ticket.durations or Durations(load_ns)
        ticket.put(Piece(frame["embedding"]), before.plus(Durations(load_ns, frame["elapsed_ns"])))
        if not ticket.waiting:
            ticket.finish("stop")
