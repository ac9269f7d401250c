"""Tokenizers as the artifact carries them, from each kind of source, and back into a tokenizer.json."""
