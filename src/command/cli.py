"""The command line: Hydra composes, and whatever is wrong leaves as one clear line on stderr with exit code 2."""

from __future__ import annotations

import copy
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any, NoReturn

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ..config.schema import CONF_FOLDER, Config
from ..config.values import resolve
from ..files.credentials import redacting
from ..files.durable import CannotWrite
from ..files.errors import ConfigError
from . import admission, bounds

BAD_INPUT = 2
SIGNALLED = 128  # plus the signal's number: the exit code of what a signal stopped
OURS = ("__main__", __name__.partition(".")[0], "hydra_plugins")
LIBRARIES = ("hydra", "omegaconf", "antlr4", "yaml")  # they read what the user wrote
LONGEST = 500  # characters of a message; of a longer one the two ends are shown
GOES_ON = "; what is done stays, and the same command goes on from here"


def register_schema() -> None:
    """Make the dataclasses the schema that every YAML and every override is checked against."""
    ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str]) -> Config:
    """The checked config of one command line.

    Raises:
        ConfigError: with one line that names the key and what is allowed.
    """
    admission.refuse_secrets(overrides)
    refuse_malformed(overrides)
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_FOLDER), version_base="1.3"):
        try:
            return resolve(hydra_compose(config_name="config", overrides=overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(one_line(error)) from error


def compose_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[tuple[DictConfig, Any]]:
    """(composed config, Hydra's group choices) of each job of a multirun.

    Composing takes 0.1 s, and a sweep has thousands of jobs: each combination of group choices is composed once, and
    plain values are set on copies of it. Whatever is not plain, or fails, goes through Hydra, whose errors say why.
    """
    groups = set(loader.list_groups(""))
    parser = OverridesParser.create()
    composed: dict[tuple[str, ...], tuple[DictConfig, Any]] = {}
    nodes = []

    def load(overrides: Sequence[str]) -> tuple[DictConfig, Any]:
        node = loader.load_sweep_config(master, list(overrides))
        admission.refuse_settings(node)  # a job's experiment has a hydra section of its own
        with open_dict(node):
            return node, node.pop("hydra").runtime.choices

    for job in jobs:
        parsed = parser.parse_overrides(list(job))
        values = [o for o in parsed if o.key_or_group not in groups and not o.key_or_group.startswith("hydra")]
        choices = tuple(text for text, o in zip(job, parsed, strict=True) if o not in values)
        try:
            if any(o.type is not OverrideType.CHANGE or o.package is not None for o in values):
                raise ValueError("an override that adds or deletes")
            if choices not in composed:
                composed[choices] = load(choices)
            node, chosen = copy.deepcopy(composed[choices])
            for override in values:
                OmegaConf.update(node, override.key_or_group, override.value(), merge=True)
        except (HydraException, OmegaConfBaseException, ValueError):
            node, chosen = load(job)
        nodes.append((node, chosen))
    return nodes


def refuse_malformed(arguments: list[str]) -> None:
    """Raise ConfigError for an override that is not key=value, or is not admitted. Hydra's errors would not say which."""
    bounds.refuse_large_arguments(arguments)
    parser = OverridesParser.create()
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="backslashreplace").decode()
            raise ConfigError(f"{shown}: not in UTF-8; the records could not hold it") from None
        try:
            override = parser.parse_override(argument)
        except HydraException:
            override = None
        except Exception as error:  # what Python raises in it: on 5,000 digits, or 1,000 brackets
            raise ConfigError(f"{argument}: cannot be read ({_join(str(error))})") from error
        if override is None or not override.key_or_group:
            hint = """; a value with spaces or signs is quoted: 'key="my file"'""" if "=" in argument[1:] else ""
            raise ConfigError(f"{argument if argument.strip() else repr(argument)}: not of the form key=value{hint}")
        admission.refuse_override(override)


class Signalled(KeyboardInterrupt):
    """One of the signals arrived by which schedulers and terminals ask to stop: stop as on Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


def _on_signal(number: int, frame: object) -> NoReturn:
    raise Signalled(number)


def run(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and end the process: 0 done, 1 some runs failed, 2 bad input, 128 + n stopped by signal n."""
    # Hydra would print its own many-line report and exit with 1; with this it lets the exception through to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is after nohup
            signal.signal(number, _on_signal)
    sys.stderr = redacting(sys.stderr)  # also for a traceback that nobody foresaw
    try:
        code = command() or 0
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        say(error)
        code = BAD_INPUT
    except BrokenPipeError:
        drop_output()
        code = 0
    except OSError as error:
        say(error, GOES_ON if isinstance(error, CannotWrite) else "")
        code = BAD_INPUT if of_the_libraries(error) else 1
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        code = SIGNALLED + (error.number if isinstance(error, Signalled) else signal.SIGINT)
    except Exception as error:
        if not of_the_libraries(error):
            raise  # a defect of ours, which a traceback shows
        say(error)
        code = BAD_INPUT
    sys.exit(code)


def drop_output() -> None:
    """The reader, such as head, has seen enough: what is left in the buffer must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(error: BaseException, more: str = "") -> None:
    """Print the error as one line on stderr, with escapes for what a terminal would not show, or would obey."""
    text = one_line(error)
    words = sys.argv[1:]
    named = any(word.lstrip("+~").partition("=")[0] in text for word in words if word)
    if not named and not isinstance(error, ConfigError | CannotWrite):
        text += f"; in: {' '.join(words)}"  # such as the experiment whose file it is about
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"
    print(f"error: {shown}{more}", file=sys.stderr)


def of_the_libraries(error: BaseException) -> bool:
    """Whether ``LIBRARIES`` raised it, or Python inside them: then it is about the text that they were given."""
    called = ""
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        package = frame.tb_frame.f_globals.get("__name__", "").split(".")[0]
        if package in (*OURS, *LIBRARIES):
            called = package
        frame = frame.tb_next
    return called in LIBRARIES


def one_line(error: BaseException) -> str:
    """What the user did wrong, in one line. Hydra's and OmegaConf's messages span several and repeat themselves."""
    text = str(error)
    cause = f"{text}\n{error.__cause__ or ''}"
    if isinstance(error, ConfigError):
        return _join(text)
    if match := re.search(
        r"Could not find '(\w+)/([^']*)'.*?Available options in '\w+':\n(.*?)\n(?:Config search|\Z)", cause, re.S
    ):
        group, choice, options = match.groups()
        names = options.split()
        return f"{group}={choice}: no such {group}{suggest(choice, names)}; choose one of {', '.join(names)}"
    if match := re.search(r"Could not find '(\w+)/([^']*)'", cause):
        return f"{match[1]}={match[2]}: no such {match[1]}"
    if match := re.search(r"Ambiguous value for argument '(.*?)'", cause):
        return f"{match[1]}: several values make a sweep, which needs -m; a list is written key=[a,b]"
    if match := re.search(r"field '(\S+)' is not Optional", cause):
        return f"{match[1]}=null: needs a value"
    if match := re.search(r"Value '(.*?)'(?: of type '.*')? could not be converted to (\w+)", cause, re.S):
        wanted = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(match[2], match[2])
        return f"{_full_key(cause)}={match[1]}: needs {wanted}"
    if match := re.search(r"(?:Could not override|Error merging override) '?([^'\s=]+)", cause):
        if "not in struct" in cause or "not in 'Config'" in cause or re.search(r"Key '.*' (?:is )?not in", cause):
            key = match[1].lstrip("+~")
            return f"{key}: no such key{suggest(key, known_keys())}"
        return f"{match[1]}: {_join(str(error.__cause__ or text).splitlines()[0])}"
    if match := re.search(r"^(.+?)\n\s*full_key: (\S+)", text, re.S):
        return f"{match[2]}: {_join(match[1])}"
    return _join(text) or f"cannot be composed ({type(error).__name__})"


def _join(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _full_key(text: str) -> str:
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else "a value"


def suggest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)``, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def known_keys() -> list[str]:
    """Every key of the schema, dotted."""

    def below(node: object, prefix: str) -> list[str]:
        keys = []
        for entry in fields(node):  # type: ignore[arg-type]
            value = getattr(node, entry.name)
            keys.append(prefix + entry.name)
            if is_dataclass(value):
                keys += below(value, f"{prefix}{entry.name}.")
        return keys

    return below(Config(), "")
