"""Measure speed and memory, side by side with PEFT. Random weights of the real shapes: right for speed, never for quality."""
