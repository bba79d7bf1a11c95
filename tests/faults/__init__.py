"""Faults injected for real."""
