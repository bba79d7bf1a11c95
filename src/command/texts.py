"""Keep a text as it was typed: ``sweep=2024_01`` is no number, and ``dataset.subset=on`` no truth value.

Hydra reads a word such as 1_000, 1e5 or true as a number or a truth value, and OmegaConf makes a text of that again: another one.
So such a word is put in quotes where its key holds a text. YAML is read before anyone can see what was written there, so a file
that has such a value without quotes is refused.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from antlr4 import CommonTokenStream, InputStream  # type: ignore[import-untyped]
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser
from hydra.types import RunMode
from omegaconf._utils import get_yaml_loader

from ..config.schema import Config
from ..files.errors import ConfigError

GROUPS = ("model", "variant", "dataset", "tracking", "experiment")  # a choice of theirs is the name of a file
LITERALS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
READ_AS = {"int": "a number", "float": "a number", "bool": "true or false"}
PARAMS = "hydra.sweeper.params"


class _Typed(HydraOverrideVisitor):
    """Hydra's reading of an override, in which each number and truth value is the text that was typed."""

    def visitPrimitive(self, ctx: Any) -> Any:
        words = [child for child in ctx.getChildren() if not self.is_ws(child)]
        if len(words) == 1 and words[0].symbol.type in LITERALS:
            return QuotedString(words[0].getText(), Quote.single)
        return super().visitPrimitive(ctx)


def as_typed(words: Sequence[str]) -> list[str]:
    """Put the values of keys that hold texts in quotes, where Hydra would read something else. Malformed words stay."""
    parser = OverridesParser.create()
    typed = []
    for word in words:
        try:
            typed.append(quoted(parser.parse_override(word)))
        except HydraException:
            typed.append(word)
    return typed


def quoted(override: Override) -> str:
    """Return the word of an override, with quotes around numbers and truth values where its key holds texts."""
    word, value = str(override.input_line), override._value
    hint = str if override.key_or_group in GROUPS else _type_of(override.key_or_group)
    if hint is None or override.value_type is None or not (_has_literal(value) or "(" in word):
        return word
    try:
        parser = OverrideParser(CommonTokenStream(OverrideLexer(InputStream(word))))
        meant = _Typed(create_functions()).visit(parser.override())  # type: ignore[no-untyped-call]
    except HydraException as error:  # such as sort([10,9]), which sorts numbers but no texts in quotes
        if not _has_literal(value):
            return word
        raise ConfigError(
            f"{word}: {override.key_or_group} holds texts, which stand in no such function; write them out"
        ) from error
    new = _merged(hint, value, meant._value)
    return word if new == value else f"{override.get_key_element()}={_written(new)}"


def _has_literal(value: Any) -> bool:
    if isinstance(value, ChoiceSweep):
        return _has_literal(value.list)
    if isinstance(value, list | dict):
        return any(map(_has_literal, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float)


def _merged(hint: Any, value: Any, typed: Any) -> Any:
    """Take from ``typed`` what belongs to a text of the schema, and from ``value`` all else."""
    if isinstance(value, ChoiceSweep) and isinstance(typed, ChoiceSweep):
        values = [_merged(hint, *pair) for pair in zip(value.list, typed.list, strict=True)]
        return ChoiceSweep(tags=value.tags, list=values, simple_form=value.simple_form, shuffle=value.shuffle)
    if isinstance(value, Sweep):  # range(1,3): numbers that nobody typed
        return value
    if isinstance(value, list) and isinstance(typed, list):
        return [_merged(_part(hint, list), *pair) for pair in zip(value, typed, strict=True)]
    if isinstance(value, dict) and isinstance(typed, dict):
        return {key: _merged(_part(hint, dict, key), part, typed[key]) for key, part in value.items()}
    if not _is_text(hint) or not isinstance(typed, QuotedString | str) or typed == value:
        return value
    return QuotedString(typed, Quote.single) if isinstance(typed, str) else typed  # str(1_0)


def _written(value: Any) -> str:
    if not isinstance(value, ChoiceSweep):
        return Override._get_value_element_as_str(value)
    values = ",".join(map(Override._get_value_element_as_str, value.list))
    return f"shuffle({values})" if value.shuffle else values if value.simple_form else f"choice({values})"


@cache
def _type_of(key: str) -> Any:
    """Look up the type of a dotted key in the schema; None where there is no such key. ``Any`` is a text or a list of texts."""
    hint: Any = Config
    for part in key.removeprefix("_global_.").split("."):
        hint = _part(hint, list if part.isdigit() else dict, part)
    return hint


def _part(hint: Any, container: type, name: object = None) -> Any:
    """Look up the type of an entry of a list, of a dict, or of a dataclass; None where there is none."""
    if hint is Any:
        return str if container is list else None
    for option in _options(hint):
        if container is dict and is_dataclass(option):
            return get_type_hints(option).get(str(name))
        if get_origin(option) is container:
            return get_args(option)[-1]
    return None


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_text(hint: Any) -> bool:
    return hint is Any or (str in _options(hint) and not {int, float, bool} & set(_options(hint)))


def refuse_unquoted(loader: ConfigLoader, overrides: Sequence[str]) -> None:
    """Raise ConfigError where a YAML file that a command line chooses has a number or a truth value for a text."""
    folders = [Path(source.path) for source in loader.get_sources() if source.scheme() == "file"]
    for default in loader.compute_defaults_list("config", list(overrides), RunMode.MULTIRUN).defaults:
        files = [folder / f"{default.config_path}.yaml" for folder in folders]
        file = next((path for path in files if path.is_file()), None)
        if default.config_path is not None and file is not None:
            changed = file.stat().st_mtime_ns
            for problem in _problems(file, (default.package or "").removeprefix("_global_").lstrip("."), changed):
                raise ConfigError(problem)


@cache
def _problems(path: Path, package: str, changed: int) -> tuple[str, ...]:
    """List the values of a YAML file, read into ``package`` of the config, that are no texts where their keys hold texts."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=get_yaml_loader())
    except (yaml.YAMLError, UnicodeDecodeError):
        return ()  # which is refused where it is read
    problems = []
    for key, hint, scalar in _scalars(node, _type_of(package) if package else Config, package):
        if _is_text(hint) and scalar.tag not in (TEXT, NULL):
            kind = READ_AS.get(scalar.tag.rpartition(":")[2], "something else")
            problems.append(
                f"{path}: line {scalar.start_mark.line + 1}: {key} is a text, and {scalar.value} is read as {kind}; write it in"
                f" quotes: '{scalar.value}'"
            )
    return tuple(problems)


def _scalars(node: Any, hint: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each scalar of a YAML tree with its dotted key and its type in the schema."""
    if isinstance(node, yaml.MappingNode):
        for name, part in node.value:
            inner = f"{key}.{name.value}" if key else str(name.value)
            # Sweeps stand there by their dotted keys.
            of_sweep = str if name.value in GROUPS else _type_of(str(name.value))
            yield from _scalars(part, of_sweep if key == PARAMS else _part(hint, dict, name.value), inner)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _scalars(part, _part(hint, list), key)
    elif isinstance(node, yaml.ScalarNode):
        yield key, hint, node
