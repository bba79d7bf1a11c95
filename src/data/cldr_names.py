"""Names of territories, languages and currencies in eight languages, from the CLDR tables that Babel ships."""

from __future__ import annotations

from collections.abc import Iterator

LANGUAGES = {
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "pt": "Portuguese",
    "ru": "Russian",
    "ar": "Arabic",
    "zh": "Chinese",
    "ja": "Japanese",
}
KINDS = {"territory": "territories", "language": "languages", "currency": "currencies"}


def cldr_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield (kind, English name, language, name in that language), each (kind, name, language) once, in a fixed order."""
    from babel import Locale

    english = Locale("en")
    for code, language in LANGUAGES.items():
        locale = Locale(code)
        for kind, table in KINDS.items():
            source, target = getattr(english, table), getattr(locale, table)
            names = {source[key]: target[key] for key in sorted(source) if key in target}
            for name, translation in names.items():
                yield kind, name, language, translation
