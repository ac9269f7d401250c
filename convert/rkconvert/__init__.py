"""Host side: a Hugging Face or GGUF model becomes a bundle. Imports ``rk3588``, never ``rkruntime``."""
