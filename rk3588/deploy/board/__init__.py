"""Programs that run on the board: standard library only, Python 3.9, each one file. They are sent, never imported here
but by tests."""
