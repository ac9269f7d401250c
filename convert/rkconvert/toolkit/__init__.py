"""Rockchip's rkllm-toolkit, driven in an interpreter of its own: the one program that writes a ``.rkllm``."""
