"""The commands of `rk3588` that run a model; each module is imported when its command is called."""
