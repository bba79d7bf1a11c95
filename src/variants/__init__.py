"""The variants, one file per idea, and what each costs: ``python -m src.variants``."""
