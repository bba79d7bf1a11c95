"""Decide which rows of different splits ask the same question, and which therefore leave training."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from .formats import Messages, normalized


def same_question(prompt: str | Messages, leaks: str) -> str:
    """Make the key that two equal questions share, as ``leaks``, a value of dataset.leaks, takes them for equal."""
    if leaks == "exact":
        return json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return json.dumps(_spelled(prompt), sort_keys=True, ensure_ascii=False)


def spelled(text: str) -> str:
    """Remove differences in letter case, white space and Unicode form: ``é`` may be one character or two."""
    return normalized(_form(normalized(_form(text))))


def _form(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _spelled(value: Any) -> Any:
    """Respell every text of a prompt, at any depth."""
    if isinstance(value, str):
        return spelled(value)
    if isinstance(value, list):
        return [_spelled(part) for part in value]
    return {key: _spelled(part) for key, part in value.items()} if isinstance(value, dict) else value
