"""Board side: the binding to librkllmrt, the terminal chat, the daemon. Imports ``rk3588``, never ``rkconvert``."""
