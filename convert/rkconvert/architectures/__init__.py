"""What a checkpoint of each family means: its settings and tensor names, as features of one transformer."""
