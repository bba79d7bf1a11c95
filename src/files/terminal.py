"""Keep the terminal clean: silence the libraries' chatter, and show a spinner while something takes time."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries(progress: bool = False) -> None:
    """Silence the libraries' progress bars and warnings. Call once in a process, before it uses transformers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()
    # bitsandbytes announces at import that optional downloaded kernels are absent; they are left out on purpose.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # LLM.int8() casts its inputs to fp16 by design, and says so for every layer of every step.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    # PEFT still reads an attribute that transformers has renamed; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def spinner(label: str) -> Iterator[None]:
    """Show ``label`` and the elapsed time on a terminal while the block runs."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(label, total=None)
        yield
