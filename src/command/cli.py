"""Compose a config from a command line, and run a command: what is wrong becomes one line on stderr and an exit code."""

from __future__ import annotations

import copy
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
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
from ..files.credentials import redact, redacting
from ..files.durable import CannotWrite
from ..files.errors import ConfigError
from . import admission, bounds, texts
from .messages import join_lines, one_line, raised_by_libraries

FAILED, BAD_INPUT = 1, 2
SIGNALED = 128  # plus the signal's number: the exit code of what a signal stopped
LONGEST = 500  # characters of a message; of a longer one the two ends are shown
RESUMES = "; the same command goes on from here"
GOES_ON = f"; what is done stays, and{RESUMES[1:]}"


def register_schema() -> None:
    """Make the dataclasses the schema that every YAML and every override is checked against."""
    ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str]) -> Config:
    """Return the checked config of one command line.

    Raises:
        ConfigError: one line that names the key and what is allowed.
    """
    admission.refuse_secrets(overrides)
    refuse_malformed(overrides)
    register_schema()
    GlobalHydra.instance().clear()
    overrides = texts.as_typed(overrides)
    with initialize_config_dir(config_dir=str(CONF_FOLDER), version_base="1.3"):
        try:
            texts.refuse_unquoted(GlobalHydra.instance().config_loader(), overrides)
            return resolve(hydra_compose(config_name="config", overrides=overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(one_line(error)) from error


def compose_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[tuple[DictConfig, Any]]:
    """Return (composed config, Hydra's group choices) of each job of a multirun.

    Composing takes 0.1 s, and a sweep has thousands of jobs: each combination of group choices is composed once, and
    plain values are set on copies of it. Anything else, and anything that fails, goes through Hydra, whose errors say why.
    """
    groups = set(loader.list_groups(""))
    parser = OverridesParser.create()
    composed: dict[tuple[str, ...], tuple[DictConfig, Any]] = {}
    nodes = []

    def compose_by_hydra(overrides: Sequence[str]) -> tuple[DictConfig, Any]:
        texts.refuse_unquoted(loader, overrides)
        node = loader.load_sweep_config(master, list(overrides))
        admission.refuse_settings(node)  # a job's experiment has a hydra section of its own
        with open_dict(node):
            return node, node.pop("hydra").runtime.choices

    for words in jobs:
        parsed = parser.parse_overrides(list(words))
        job = [texts.quoted(override) for override in parsed]
        if job != list(words):
            parsed = parser.parse_overrides(job)
        values = [o for o in parsed if o.key_or_group not in groups and not o.key_or_group.startswith("hydra")]
        choices = tuple(text for text, o in zip(job, parsed, strict=True) if o not in values)
        try:
            if any(o.type is not OverrideType.CHANGE or o.package is not None for o in values):
                raise ValueError("an override that adds or deletes")
            if choices not in composed:
                composed[choices] = compose_by_hydra(choices)
            node, chosen = copy.deepcopy(composed[choices])
            for override in values:
                OmegaConf.update(node, override.key_or_group, override.value(), merge=True)
        except (HydraException, OmegaConfBaseException, ValueError):
            node, chosen = compose_by_hydra(job)
        nodes.append((node, chosen))
    return nodes


def refuse_malformed(arguments: list[str]) -> None:
    """Raise ConfigError for a word that is not key=value, or is not admitted. Hydra's errors would not say which word it is."""
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
            raise ConfigError(f"{argument}: cannot be read ({join_lines(str(error))})") from error
        if override is None or not override.key_or_group:
            hint = """; a value with spaces or signs is quoted: 'key="my file"'""" if "=" in argument[1:] else ""
            raise ConfigError(f"{argument if argument.strip() else repr(argument)}: not of the form key=value{hint}")
        word = texts.quoted(override)
        admission.refuse_override(override if word == argument else parser.parse_override(word))


class Signaled(KeyboardInterrupt):
    """A signal by which schedulers and terminals ask a command to stop; it stops as on Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


def _on_signal(number: int, frame: object) -> NoReturn:
    raise Signaled(number)


def run(command: Callable[[], int | None], resumes: bool = True) -> NoReturn:
    """Run a command and end the process with its exit code.

    0 done, 1 some runs failed or memory ran out, 2 bad input, 128 + n stopped by signal n. Each failure is one line on stderr.
    ``resumes``: an interrupted command continues where it stopped when it is given again, and the line says so.
    """
    # Hydra would print its own many-line report and exit with 1; with this it lets the exception through to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is after nohup
            signal.signal(number, _on_signal)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sign that the terminal does not have must not end a command
    sys.stderr = redacting(sys.stderr)  # also for a traceback that nobody foresaw
    try:
        code = command() or 0
        sys.stdout.flush()  # a reader that has left is noticed here, not at exit
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        say(error)
        code = BAD_INPUT
    except BrokenPipeError:
        _drop_output()
        code = 0
    except OSError as error:
        say(error, GOES_ON if isinstance(error, CannotWrite) else "")
        code = BAD_INPUT if raised_by_libraries(error) else FAILED
    except KeyboardInterrupt as error:
        print(f"interrupted{RESUMES * resumes}", file=sys.stderr)
        code = SIGNALED + (error.number if isinstance(error, Signaled) else signal.SIGINT)
    except Exception as error:
        if raised_by_libraries(error):
            say(error)
            code = BAD_INPUT
        elif _is_out_of_memory(error):
            _print_error(join_lines(str(error)) or "out of memory")
            code = FAILED
        else:
            raise  # a defect of ours, which a traceback shows
    sys.exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # whatever fills a GPU has imported it; a command without it must not wait for it
        return isinstance(error, MemoryError)
    from ..model.device import is_out_of_memory

    return is_out_of_memory(error)


def _drop_output() -> None:
    """Send stdout to nowhere: the reader, such as head, has left, and what is still buffered must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(error: BaseException, more: str = "") -> None:
    """Print an error as one line on stderr; where it names no word of the command line, with that line."""
    text = one_line(error)
    words = sys.argv[1:]
    named = any(word.lstrip("+~").partition("=")[0] in text for word in words if word)
    if not named and not isinstance(error, ConfigError | CannotWrite):
        text += f"; in: {' '.join(words)}"  # such as the experiment whose file it is about
    _print_error(text, more)


def _print_error(text: str, more: str = "") -> None:
    """Print one line of at most ``LONGEST`` characters, with escapes for what a terminal would not show, or would obey.

    Secrets are taken out first: half of one, at a cut, would no longer look like one.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(text))
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"
    print(f"error: {shown}{more}", file=sys.stderr)
