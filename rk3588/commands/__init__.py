"""The commands of `rk3588` that need only the core; each module is imported when its command is called."""
