"""What ``python -m src.eval`` does with one trained adapter: the commands that are chosen by its first word."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from ..files.credentials import redact, redacting
from ..files.errors import ConfigError
from ..files.text import clean
from . import cli
from .admission import refuse_secrets

FAILED = 1
INTERRUPTED = 130
# The word, and the module that does it: USAGE, and run(words). A module is imported when its word is given.
COMMANDS = {
    "score": "..adapter.score",
    "generate": "..adapter.generate",
    "merge": "..adapter.merge",
    "push": "..adapter.push",
    "harness": "..adapter.harness",
}


def main(name: str, words: list[str]) -> int:
    """Run a command; 0 done, 1 out of memory, 2 bad input (one line on stderr each), 130 interrupted."""
    module = importlib.import_module(COMMANDS[name], __package__)
    options = words[: words.index("--")] if "--" in words else words
    if "--help" in options or "-h" in options:
        print(module.USAGE, end="")
        return 0
    return conducted(lambda: module.run(words), words)


def conducted(command: Callable[[], None], words: list[str]) -> int:
    sys.stderr = redacting(sys.stderr)  # also for a traceback that nobody foresaw
    try:
        refuse_secrets(words)
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        cli.drop_output()
    except (ConfigError, OSError) as error:  # OSError: a full disk, or a model that the hub does not give
        print(f"error: {redact(clean(str(error)))}", file=sys.stderr)
        return cli.BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from ..model.device import is_out_of_memory  # imports torch, which whatever raised this has done by now

        if not is_out_of_memory(error):
            raise  # a defect of ours, which a traceback shows
        print(f"error: {redact(clean(str(error) or 'out of memory'))}", file=sys.stderr)
        return FAILED
    return 0
