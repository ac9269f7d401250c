"""How long a worker may be silent before it counts as hung: scaled by the model and the prompt, never one number.

The speeds are those of `rk3588 predict` for an RK3588, many times slower: a fixed limit has ended prefills that were
going well, and a deadline costs nothing but the wait for a worker that hangs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deadlines:
    """``weights_gb``: the size of the model file in 1e9 bytes; ``patience`` multiplies all."""

    weights_gb: float
    patience: float = 1.0

    @property
    def load_s(self) -> float:
        """Seen on a board: 3.5 GB in 17.8 s, 5 s/GB. Ten times that, and a minute for one token and a busy machine."""
        return self.patience * (60 + 50 * self.weights_gb)

    def first_token_s(self, prompt_tokens: int) -> float:
        """A board's prefill takes 2 ms for each token and 1e9 weights; 25 times that."""
        return self.patience * (30 + 0.05 * self.weights_gb * prompt_tokens)

    @property
    def token_s(self) -> float:
        """A board's decode takes 34 ms for each 1e9 weights; 60 times that."""
        return self.patience * (20 + 2 * self.weights_gb)
