"""/tokenize: how many tokens a prompt has, without an answer; in the words of vLLM's and llama.cpp's servers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Optional

from rk3588.errors import Overdue, RequestRefused
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields
from rkruntime.daemon.jobs import Engine, Job

from . import openai_requests
from .dialect import FindModel, Object

PATH = "/tokenize"


def read(body: Mapping[str, Any], config: Config, find: FindModel) -> Job:
    """A conversation in `messages`, or a text in `prompt` or `content`; as the endpoints that answer read them."""
    fields = Fields(body)
    texts = [name for name in ("messages", "prompt", "content") if name in fields]
    if len(texts) != 1:
        raise RequestRefused("one of 'messages', 'prompt' and 'content' has to be there, and no two of them", "prompt")
    if texts == ["messages"]:
        return openai_requests.chat(body, config, find, "").job
    return openai_requests.completion({"prompt": fields[texts[0]], "model": fields.get("model")}, config, find, "").job


async def count(engine: Engine, job: Job, deadline_s: Optional[float]) -> Object:
    """The number, and how many there may be."""
    most = min(deadline_s or engine.settings.deadline_s, engine.settings.deadline_s)
    try:
        tokens = await asyncio.wait_for(engine.count(job), most)
    except asyncio.TimeoutError:
        raise Overdue(f"the model was not ready within {most:.0f} s") from None
    if tokens is None:
        raise RequestRefused("this bundle has no vocabulary to count tokens with: convert it again", status=501)
    return {"count": tokens, "max_model_len": engine.status.context}
