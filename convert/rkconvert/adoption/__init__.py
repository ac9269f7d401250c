"""A ``.rkllm`` that somebody else made becomes a bundle."""
