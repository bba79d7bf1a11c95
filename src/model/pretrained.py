"""Load a saved model with all of its tensors and no others, or say in one line what is wrong with it.

transformers draws what a file lacks at random and drops what it does not know; its report of that is silenced here, as it
speaks of much that is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..files.errors import ConfigError
from ..files.text import clean, counted

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Passed to transformers each time: without it, it asks on the terminal where a model brings its own code.
NO_CODE = {"trust_remote_code": False}
LONGEST = 300  # characters of what a library says
CONVERSION = "above report"  # what transformers calls a text that was not shown
UNUSED = "rotary_emb.inv_freq"  # files of earlier versions hold this table, which is computed now


def load_whole(source: Any, where: str, dtype: torch.dtype | str = "auto", **options: Any) -> PreTrainedModel:
    """Load the causal language model of a folder or hub id in ``dtype``; ``where`` is what a message calls it.

    ``device_map={"": "meta"}`` gives all modules without reading a number.

    Raises:
        ConfigError: tensors are missing, left over, of other shapes, or cannot be read; names how many and the first. Or it is
            no causal model.
    """
    from transformers import AutoModelForCausalLM

    known: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with one_line(where):
        network, report = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **known, **NO_CODE, **options)
    _refuse_differences(report, where)
    if getattr(network, "_hf_peft_config_loaded", False):
        raise ConfigError(f"{where}: an adapter lies beside its weights and is loaded over them; merge it, or take it away")
    _refuse_both_ways(network, where)
    loaded: PreTrainedModel = network
    return loaded


def load_tokenizer(source: Any, where: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with a pad token: its own, else its end token.

    Raises:
        ConfigError: it cannot be read, or has no end token.
    """
    from transformers import AutoTokenizer

    with one_line(f"{where}: its tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **NO_CODE, **options)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{where}: its tokenizer has no end token, which every target ends with; set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _refuse_differences(report: dict[str, Any], where: str) -> None:
    """Raise ConfigError where the file and the model that config.json describes have not the same tensors."""
    surplus = [name for name in report["unexpected_keys"] if not name.endswith(UNUSED)]
    if missing := sorted(report["missing_keys"]):
        renamed = f"; it holds {len(surplus)} of other names, such as {sorted(surplus)[0]}" if surplus else ""
        raise ConfigError(
            f"{where}: {counted(len(missing), 'tensor')} of the model that config.json describes {_are(missing)} not in its"
            f" weights, the first is {missing[0]}{renamed}"
        )
    if surplus:
        raise ConfigError(
            f"{where}: {counted(len(surplus), 'tensor')} in its weights {_are(surplus)} no part of the model that config.json"
            f" describes, the first is {sorted(surplus)[0]}"
        )
    if other := sorted(report["mismatched_keys"]):
        name, held, wanted = other[0]
        raise ConfigError(
            f"{where}: {counted(len(other), 'tensor')} {'has' if len(other) == 1 else 'have'} other shapes than config.json says,"
            f" the first is {name}: {list(held)} in its weights, {list(wanted)} wanted"
        )


def _refuse_both_ways(network: Any, where: str) -> None:
    """Raise ConfigError where tokens see later ones, as in BERT: it would be told the target that it is scored on."""
    causal = {module.is_causal for module in network.get_decoder().modules() if isinstance(getattr(module, "is_causal", 0), bool)}
    if causal == {False}:  # where some are, the others look at an encoder, which is not run
        raise ConfigError(
            f"{where}: tokens of this {network.config.model_type} see later ones, so it predicts nothing; take a decoder, such as"
            " one with is_decoder=true in config.json"
        )


def _are(names: list[Any]) -> str:
    return "is" if len(names) == 1 else "are"


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn an error of the block into one line that begins with ``what``.

    One that has its own words already stays, and one that means that memory is short, which a smaller pack may cure.
    """
    try:
        yield
    except Exception as error:
        from .device import is_out_of_memory

        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        text = clean(str(error)) or type(error).__name__
        cause = "its tensors cannot be turned into those of this kind of model" if CONVERSION in text else text
        raise ConfigError(f"{what} cannot be loaded: {cause[:LONGEST]}") from error
