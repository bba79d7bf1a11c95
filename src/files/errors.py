"""The error for user input that cannot be run."""

from __future__ import annotations


class ConfigError(ValueError):
    """The user's input cannot be run. The message is one line that names the key and what is allowed."""
