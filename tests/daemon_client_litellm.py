"""LiteLLM against a daemon, in both languages, run by the interpreter that has it: daemon_client_litellm.py URL.

Prints what it got as one JSON object.
"""

import json
import os
import sys

import litellm

COMMON = {"model": "openai/tiny", "api_base": f"{sys.argv[1]}/v1", "api_key": "any", "num_retries": 0, "max_retries": 0}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def failing(text: str) -> str:
    try:
        litellm.completion(messages=said(text), **COMMON)
    except Exception as error:
        return type(error).__name__
    return "nothing was wrong"


whole = litellm.completion(messages=said("say Grüße|, 世界|!"), **COMMON)
stream = litellm.completion(
    messages=said("slow 0.1 Grüße|, 世界|!"), stream=True, stream_options={"include_usage": True}, **COMMON
)
chunks = list(stream)
tools = [{"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}]
said_and_called = '<think>Dark.</think>On.|<tool_|call>{"name": "light", "arguments": {"on": true}}</tool_call>'
called = litellm.completion(messages=said(f"say {said_and_called}"), tools=tools, **COMMON).choices[0]
calling = litellm.completion(messages=said(f"say {said_and_called}"), tools=tools, stream=True, **COMMON)
joined = litellm.stream_chunk_builder(list(calling))
usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
found = {
    "called": [
        [
            choice.message.content,
            choice.message.reasoning_content,
            choice.message.tool_calls[0].function.name,
            json.loads(choice.message.tool_calls[0].function.arguments),
            choice.finish_reason,
        ]
        for choice in (called, joined.choices[0])
    ],
    "whole": whole.choices[0].message.content,
    "usage": whole.usage.total_tokens,
    "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "streamed_usage": usages[-1].total_tokens if usages else None,
    "text": litellm.text_completion(prompt="say x|y", **{**COMMON, "model": "text-completion-openai/tiny"})
    .choices[0]
    .text,
    "long": failing("long"),
    "full": failing("full"),
    "down": failing("down"),
}
OLLAMA = {"model": "ollama_chat/tiny", "api_base": sys.argv[1], "num_retries": 0, "max_retries": 0}
chunks = list(litellm.completion(messages=said("slow 0.1 Grüße|, 世界|!"), stream=True, **OLLAMA))
whole = litellm.completion(messages=said("say Grüße|, 世界|!"), **OLLAMA)
found["ollama"] = {
    "whole": whole.choices[0].message.content,
    "usage": whole.usage.total_tokens,
    "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "generated": litellm.completion(messages=said("say x|y"), **{**OLLAMA, "model": "ollama/tiny"})
    .choices[0]
    .message.content,
    "embedded": len(litellm.embedding(model="ollama/tiny", input=["a", "b"], api_base=sys.argv[1]).data),
    "json": litellm.completion(messages=said('say {"a": 1}'), response_format={"type": "json_object"}, **OLLAMA)
    .choices[0]
    .message.content,
}
found["embedded"] = len(litellm.embedding(input=["a", "b"], **{**COMMON, "model": "openai/tiny"}).data)
found["responded"] = litellm.responses(input="say x|y", **COMMON).output[0].content[0].text
os.environ["OLLAMA_API_BASE"] = sys.argv[1]
info = litellm.get_model_info("ollama_chat/tiny")
found["ollama"]["info"] = [info["max_tokens"], info["supports_function_calling"]]
print(json.dumps(found))
