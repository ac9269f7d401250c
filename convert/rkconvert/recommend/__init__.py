"""Which dtype of a model a board should run: measured on the simulated runtime, predicted for the board."""
