"""What is known of chat templates without reading one: the daemon's supervisor, which renders none, needs no Jinja."""

from __future__ import annotations

FOLD, REFUSE = "fold", "refuse"  # what is done with a system prompt where the template has no system role
PREFIX = "prefix"  # of a last message: the assistant's, which the answer goes on with
# Names in templates that are not a user's to give: what we pass, what the bundle says, what Jinja and we define.
RESERVED = {
    "messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "unk_token", "pad_token",
    "raise_exception", "strftime_now", "range", "dict", "lipsum", "cycler", "joiner", "namespace",
    "self", "super", "loop", "caller", "varargs", "kwargs", "context", "environment",
}  # fmt: skip
