"""Refuse, from its files alone, a tokenizer that a base cannot be trained with: ids beyond its embedding, no end token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files.errors import ConfigError
from ..files.text import counted
from .configs import dimension, parsed

SETTINGS, ROLES, VOCABULARY = "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"
FILES = (
    *(SETTINGS, VOCABULARY, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "added_tokens.json"),
)
VOCABULARY_BYTES = 200_000_000
IN_USE = ("pad_token", "eos_token", "bos_token", "unk_token")  # every run, or every text, may use these
# Classes that have no tokens of their own: without an entry in the files there is none.
BARE = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")


def refuse(folder: Path, config: dict[str, Any], where: str) -> None:
    """Raise ConfigError where the files in ``folder`` tell that no run can use this tokenizer with a base of this config."""
    if not any((folder / name).is_file() for name in FILES) and not any(folder.glob("*.tiktoken")):
        raise ConfigError(f"{where}: has no tokenizer (none of {', '.join(FILES[:4])}); copy its files from the original")
    settings, roles, vocabulary = (read(folder, name, where) for name in (SETTINGS, ROLES, VOCABULARY))
    if settings.get("tokenizer_class") in BARE and not vocabulary and not any((folder / name).is_file() for name in FILES[2:]):
        raise ConfigError(f"{where}: its tokenizer lacks {VOCABULARY}, which has the tokens; copy it from the original")
    named = {role: token for role in IN_USE if (token := _text(settings.get(role)) or _text(roles.get(role)))}
    bare = settings.get("tokenizer_class") in BARE or ("eos_token" in settings and settings["eos_token"] is None)
    if "eos_token" not in named and bare:
        raise ConfigError(
            f"{where}: its tokenizer has no end token, which every target ends with; set eos_token in {SETTINGS}, such as"
            ' "eos_token": "</s>"'
        )
    rows = dimension(config, "vocab_size")
    if rows is not None and vocabulary:
        _refuse_beyond(vocabulary, named, rows, where)


def read(folder: Path, name: str, where: str) -> dict[str, Any]:
    """Read one of the files; an empty object where it is missing."""
    path = folder / name
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > VOCABULARY_BYTES:
            raise ConfigError(f"{where}: {name} needs at most {VOCABULARY_BYTES:,} bytes")
        return parsed(path.read_bytes(), name, where)
    except OSError as error:
        raise ConfigError(f"{where}: {name} cannot be read ({error.strerror})") from error


def ids(vocabulary: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """List what tokenizer.json holds: the ids of the plain tokens, and of those that were added."""
    model = vocabulary.get("model")
    plain = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(plain, list):  # of a unigram model: pairs of a token and its score, in the order of the ids
        plain = {str(entry[0]): place for place, entry in enumerate(plain) if isinstance(entry, list) and entry}
    added = vocabulary.get("added_tokens")
    known = {
        str(entry.get("content")): entry["id"]
        for entry in (added if isinstance(added, list) else [])
        if isinstance(entry, dict) and type(entry.get("id")) is int
    }
    listed = plain if isinstance(plain, dict) else {}
    return {token: place for token, place in listed.items() if type(place) is int}, known


def _refuse_beyond(vocabulary: dict[str, Any], named: dict[str, str], rows: int, where: str) -> None:
    """Raise ConfigError where a token that a text can need has no row in the embedding.

    An added special token that has no role is left alone: published models carry some, such as the place of an image, and
    a text that holds one is refused when it is tokenized.
    """
    plain, added = ids(vocabulary)
    special = {
        str(entry.get("content"))
        for entry in vocabulary.get("added_tokens") or []
        if isinstance(entry, dict) and entry.get("special")
    }
    used = plain | {token: place for token, place in added.items() if token in named.values() or token not in special}
    beyond = sorted((place, token) for token, place in used.items() if place >= rows)
    if not beyond:
        return
    place, token = beyond[0]
    role = next((f"its {role}, " for role, text in named.items() if text == token), "")
    raise ConfigError(
        f"{where}: its tokenizer has {counted(len(beyond), 'token')} beyond the {rows} rows of its embedding (vocab_size in"
        f" config.json), such as {role}{token!r} with the id {place}; resize the embedding and save the model again, or take the"
        " tokenizer that belongs to it"
    )


def _text(token: Any) -> str | None:
    """Read a token's text: files hold it bare, or as an object with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None
