"""``rk3588 bench``: how fast a model answers, in llama-bench's terms; what measures, what is kept, compared and shown.

``plan``, ``prompts``, ``events``, ``completions``, ``counting``, ``serving``, ``clients`` and ``on_board`` are sent to
boards: they need the standard library and ``rk3588.errors`` alone.
"""
