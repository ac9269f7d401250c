"""Model cards: what a bundle says of itself to people."""
