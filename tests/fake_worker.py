"""A worker process without a model: speaks the daemon's protocol and misbehaves as RKSIM_FAULTS says.

It reads the words that the simulated runtime reads, so that the same tests run over both; two are its own:
``print_at=N``: a line ``E RKNN`` on stderr at the N-th token, after which it goes on as if nothing had happened;
``abort_at=N``: the run is aborted there, though nobody has asked for it. A prompt's ids are its characters; the answer
repeats the prompt, a character a token.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

from rkruntime.daemon.protocol import Channel, Frame

CONTEXT = 256
RESERVE = 4


class Faults:
    def __init__(self, text: str) -> None:
        words = dict(word.partition("=")[::2] for word in text.split(",") if word)
        self.once = words.pop("once", "")
        self.words: dict[str, Any] = words

    def acts(self, name: str, at: int | None = None) -> bool:
        if name not in self.words or (at is not None and int(self.words[name]) != at):
            return False
        try:
            if self.once:
                os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def sleep(self, name: str) -> None:
        time.sleep(int(self.words.get(name, 0)) / 1e3)


class Fake:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.faults = Faults(os.environ.get("RKSIM_FAULTS", ""))
        self.aborted = 0
        self.lied = False

    def serve(self) -> None:
        while frame := self.channel.receive():
            if frame["op"] == "quit":
                return
            if frame["op"] == "abort":
                self.aborted = frame["id"]
            elif frame["op"] == "encode":
                self.encode(frame)
            else:
                threading.Thread(target=self.load if frame["op"] == "load" else self.run, args=[frame]).start()

    def load(self, _frame: Frame) -> None:
        self.faults.sleep("load_ms")
        if "refuses" in self.faults.words:
            self.channel.send(event="failed", message="there is no model file model.rkllm")
            return
        if self.faults.acts("init_lies"):
            print("E RKNN: [..] invalid rknn llm model magic", file=sys.stderr, flush=True)
            self.die("GGML_ASSERT(ctx) failed")
        self.answer(0, "x", 1)
        self.channel.send(event="ready", context=CONTEXT, prompt_limit=CONTEXT - RESERVE, load_ns=1_000_000)

    def encode(self, frame: Frame) -> None:
        text = frame["text"]
        if text is None:
            text = "".join(f"{message['role']}={message['content']};" for message in frame["messages"])
        if "end here" in text:
            os.abort()
        if "refuse this" in text:
            self.channel.send(id=frame["id"], refused="the template refuses this conversation")
            return
        self.channel.send(id=frame["id"], prompt=[ord(c) for c in text])

    def run(self, frame: Frame) -> None:
        limit = frame["max_tokens"]
        text = "".join(map(chr, frame["prompt"]))
        end = self.answer(frame["id"], text, limit if limit is not None and limit >= 0 else len(text) + 1)
        if end:
            self.channel.send(id=frame["id"], end=end)

    def answer(self, number: int, text: str, limit: int) -> str | None:
        """As a run goes: the prompt, then token by token. Number 0: the load's own, which nobody sees."""
        self.faults.sleep("prefill_ms")
        for at in range(min(limit, len(text)) + 1):
            if self.aborted == number != 0:
                return "abort"
            if self.faults.acts("crash_at", at):
                self.die("GGML_ASSERT(crash) failed")
            if self.faults.acts("hang_at", at):
                time.sleep(3600)
            if self.faults.acts("print_at", at):
                print("E RKNN: [..] failed to submit", file=sys.stderr, flush=True)
                time.sleep(0.5)
            if number and self.faults.acts("abort_at", at):
                return "abort"
            if self.faults.acts("error_at", at):
                if number:
                    self.channel.send(id=number, error="the library ended the run with an error")
                return None
            if at and number:
                self.faults.sleep("token_ms")
                self.channel.send(id=number, text=text[at - 1], tokens=1, elapsed_ns=at * 1_000_000)
        return "length" if limit <= len(text) else "stop"

    def die(self, words: str) -> None:
        print(words, file=sys.stderr, flush=True)
        os.abort()


if __name__ == "__main__":
    Fake(Channel(socket.socket(fileno=int(sys.argv[1])))).serve()
    os._exit(0)
