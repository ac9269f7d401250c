"""Many conversions from one file: models x dtypes x hybrid rates x optimisation levels x LoRAs."""
