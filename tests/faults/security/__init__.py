"""Attacks that are tried."""
