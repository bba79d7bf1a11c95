"""lora-assay: what a LoRA variant is worth on your model and your data."""
