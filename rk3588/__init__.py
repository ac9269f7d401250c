"""The core of the RK3588 NPU toolkit: what the host and the board both need, and nothing heavy."""

__version__ = "0.1.0"
