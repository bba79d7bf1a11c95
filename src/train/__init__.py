"""Train a pack of runs, from their configs to their records. life.py tells how."""
