"""How ``model.sim.gguf`` is made: blocks of rows, quantised, hashed and written from its first byte to its last."""
