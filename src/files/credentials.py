"""Keep secrets out of records: refuse them in configs and command lines, and redact them in other text.

Keys belong in the environment, netrc or the hub's token file, where W&B and the hub look for them. ``secret_kind`` finds a
secret in a value of a config or a command line, which is then refused; ``redact`` is for text that nobody chose, such as
the message of an exception.
"""

from __future__ import annotations

import json
import netrc
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import quote

REDACTED = "[redacted]"
SHORTEST = 12  # characters; a shorter value in the environment may be a word or a setting
NAME = re.compile(r"(?:TOKEN|KEY|SECRET|PASS|PASSWORD|PASSWD|CREDENTIAL|AUTH|AUTHORIZATION)S?(?=_|\d|$)", re.IGNORECASE)
# The name of an argument that is meant to carry a secret.
ASKING = re.compile(r"(?:.*[._-])?(?:api)?(?:token|key|secret|password|passwd|pass|credentials?|auth)", re.IGNORECASE)
WORDS = re.compile(r"[a-z]+(?:[_./, -][a-z]+)*|\d+")  # "learning_rate": a setting of some other program, not a secret
HEX_KEY = re.compile(r"[0-9a-f]{40}")  # W&B's older keys; a commit looks the same, so only some places can tell

# (text that every secret of the kind contains, for a fast search; its pattern; its name). Each secret has 20 token characters
# in a row or one of OTHER_MARKS; most texts have neither.
KINDS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (mark, re.compile(pattern, re.DOTALL), kind)
    for mark, pattern, kind in (
        ("hf_", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}", "a Hugging Face token"),
        ("wandb_v1_", r"wandb_v1_[A-Za-z0-9_-]{20,}", "a W&B key"),
        ("sk-", r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}", "an API key"),
        ("gh", r"(?<![A-Za-z0-9])gh[opsur]_[A-Za-z0-9]{30,}", "a GitHub token"),
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{20,}", "a GitHub token"),
        ("glpat-", r"glpat-[A-Za-z0-9_-]{20,}", "a GitLab token"),
        ("AKIA", r"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![A-Za-z0-9])", "an AWS key"),
        ("xox", r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{15,}", "a Slack token"),
        ("://", r"(?<=://)[^\s/:@\"']+:[^\s/@\"']+(?=@)", "a name and a password in a URL"),
        ("PRIVATE KEY", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", "a private key"),
    )
)

TOKEN_SIGNS = bytes(ord("x") if re.match(r"[A-Za-z0-9_-]", chr(sign)) else ord(" ") for sign in range(256))
RUN = b"x" * 20
OTHER_MARKS = ("@", "PRIVATE KEY")


def secret_kind(value: str, key: str = "") -> str | None:
    """Name the kind of secret in ``value``, or None. ``key`` is its config key: a ``revision`` may have 40 hexadecimal digits."""
    for mark, pattern, kind in KINDS:
        if mark in value and pattern.search(value):
            return kind
    if any(secret in value for secret in known()):
        return "a secret of this machine (an environment variable, netrc or the hub's token file)"
    if not key.endswith("revision") and any(map(HEX_KEY.fullmatch, re.split(r"[\s,\[\]{}'\"]+", value))):
        return "a W&B key (40 hexadecimal digits)"
    return None


def in_arguments(arguments: Sequence[str]) -> str | None:
    """Describe the first argument that carries a secret, without the secret, in one line; None if no argument does."""
    for number, argument in enumerate(arguments, start=1):
        key, _, value = argument.partition("=")
        kind = secret_kind(argument, key) or secret_kind(value, key) or secret_kind(key)
        name = key if value and not secret_kind(key) else f"argument {number}"
        if kind is None and value and ASKING.fullmatch(key):
            kind = "a secret"
        if kind is not None:
            return f"{name}: looks like {kind}; secrets stay in the environment (WANDB_API_KEY, HF_TOKEN) and are no argument"
    return None


def redact(text: str) -> str:
    """Replace this machine's secrets and all ``KINDS`` of secret in a text. 40 hexadecimal digits stay: they may be a commit."""
    for secret in known():
        if secret in text:
            text = text.replace(secret, REDACTED)
    signs = text.encode(errors="surrogatepass").translate(TOKEN_SIGNS)
    if RUN in signs or any(mark in text for mark in OTHER_MARKS):
        for mark, pattern, _ in KINDS:
            if mark in text:
                text = pattern.sub(REDACTED, text)
    return text


class _Redacting:
    """A text stream that redacts what is written to it and passes all other calls on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redacting(stream: TextIO) -> TextIO:
    """Wrap a text stream so that what is written to it is redacted."""
    return cast(TextIO, _Redacting(stream))


@cache
def known() -> tuple[str, ...]:
    """Collect the secrets that this process can know, each as plain text, in JSON and in a URL; the longest first."""
    values = {value for name, value in os.environ.items() if NAME.search(name) and not _is_path(value)}
    values = {value.strip() for value in values | _passwords() | _hub_token()}
    values = {value for value in values if len(value) >= SHORTEST and not WORDS.fullmatch(value)}
    forms = {form for value in values for form in (value, json.dumps(value)[1:-1], quote(value, safe=""))}
    return tuple(sorted(forms, key=len, reverse=True))


def _is_path(value: str) -> bool:
    """Tell whether a value is the path of a secret (SSH_AUTH_SOCK, GOOGLE_APPLICATION_CREDENTIALS), not a secret."""
    try:
        return value.startswith(("/", "~")) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _passwords() -> set[str]:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, ValueError, netrc.NetrcParseError):
        return set()
    return {password for _, _, password in hosts.values() if password}


def _hub_token() -> set[str]:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    try:
        return {Path(os.environ.get("HF_TOKEN_PATH") or home / "token").read_text(encoding="utf-8")}
    except (OSError, ValueError):
        return set()
