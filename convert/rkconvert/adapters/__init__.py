"""LoRA adapters of PEFT: read and checked, kept as files of their own, or merged."""
