"""Where models come from: Hugging Face folders and GGUF files, down to tensors at known places in files."""
