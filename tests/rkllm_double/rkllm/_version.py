"""Which release this is a double of; ``backend.write_wheel`` writes another."""

VERSION = "1.1.1+double"
