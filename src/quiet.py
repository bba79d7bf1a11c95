"""Keep the libraries' own chatter off the terminal: progress is ours, warnings that say nothing new are silenced."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries(progress: bool = False) -> None:
    """Call once in a process that loads models, before transformers is used."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()
    # bitsandbytes announces at import that optional downloaded kernels are absent; they are left out on purpose.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # LLM.int8() casts its inputs to fp16 by design, and says so for every layer of every step.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    # PEFT still reads an attribute that transformers has renamed; nothing a user could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
