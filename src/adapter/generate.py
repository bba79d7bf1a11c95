"""``python -m src.eval generate``: print the answers of a trained adapter."""

from __future__ import annotations

import sys
from typing import Any

from ..command import words
from ..command.words import Key
from ..data import datasets
from ..files.errors import ConfigError
from ..files.terminal import quiet_libraries
from . import adapted, serving
from .adapted import Source

USAGE = f"""\
usage: python -m src.eval generate run=ID "prompt" ["prompt" ...] [max_new_tokens=64] [temperature=0.7] [seed=0] [chat=true]
       python -m src.eval generate adapter=FOLDER [model=NAME] [precision=nf4] "prompt" ...

Prints the answer to each prompt, greedy unless there is a temperature. After -- every word is a prompt.

{adapted.USAGE}\
  max_new_tokens=N at most N tokens per answer (default: the run's eval.max_new_tokens, or 64)
  temperature=T    sample from the whole distribution at temperature T, 0.001 to 10 (default: greedy)
  seed=N           the seed of the sampling (default: 0)
  chat=BOOL        put each prompt into the model's chat template (default: as the run's dataset did)
"""
KEYS = adapted.KEYS | {
    "max_new_tokens": Key(words.whole(1, 65536), "64"),
    "temperature": Key(words.number(1e-3, 10), "0.7"),
    "seed": Key(words.whole(0, 2**31 - 1), "0"),
    "chat": Key(words.switch, "true"),
}
NEW_TOKENS = 64


def run(arguments: list[str]) -> None:
    """Do what the words ask for."""
    values, prompts = words.read(arguments, KEYS, free="a prompt")
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ConfigError('needs a prompt, such as python -m src.eval generate run=ID "What is two plus one?"')
    if "seed" in values and "temperature" not in values:
        raise ConfigError("seed: greedy answers need none; it goes with temperature=")
    source = adapted.find(values)
    quiet_libraries()
    if source.settings and serving.refusals(source.settings):
        print(f"note: {source.advice[0]}", file=sys.stderr)
    chat = values.get("chat")
    answers = generate(
        source,
        prompts,
        max_new_tokens=values.get("max_new_tokens") or source.config.eval.max_new_tokens or NEW_TOKENS,
        chat=uses_chat(source) if chat is None else chat,
        temperature=values.get("temperature"),
        seed=values.get("seed", 0),
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"> {prompt}\n{printable(answer)}" if len(prompts) > 1 else printable(answer))


def uses_chat(source: Source) -> bool:
    """Tell whether the run's prompts went through the chat template: its config says so, or its rows are chats."""
    if source.record is None or source.config.dataset.chat_template:
        return source.config.dataset.chat_template
    try:
        splits = datasets.load(source.config.dataset)
    except (ConfigError, OSError):  # its file may be gone, which is no reason to answer nothing
        print(
            "warning: the run's dataset cannot be read, so prompts are taken as plain text; chat=true otherwise", file=sys.stderr
        )
        return False
    return not isinstance(splits.train[0].prompt, str)


def generate(
    source: Source, prompts: list[str], max_new_tokens: int, chat: bool, temperature: float | None = None, seed: int = 0
) -> list[str]:
    """Return the answer to each prompt, up to the first token at which decoding stops (src/data/ending.py).

    Raises:
        ConfigError: a prompt and its answer do not fit into the model's positions, or there is no chat template.
    """
    import torch
    from transformers import GenerationConfig

    from ..data.batches import tokenize
    from ..data.ending import stop_ids
    from ..model import models

    opened = adapted.open_source(source)
    tokenizer, network = opened.tokenizer, opened.network
    room = int(getattr(network.config, "max_position_embeddings", None) or 2**20) - max_new_tokens
    examples = [datasets.Example(str(index), prompt, "", str(index)) for index, prompt in enumerate(prompts)]
    items = tokenize(examples, tokenizer, max(room, 2), chat)
    if room < 2 or any(item.cut for item in items):
        raise ConfigError(
            f"max_new_tokens={max_new_tokens}: with a prompt that is more than the {room + max_new_tokens} positions of the model"
        )
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}  # the distribution, uncut
    # transformers fills what a call leaves open from the model's own settings, which may hold penalties.
    own = models.generation_config(source.config.model, tokenizer)
    stop = stop_ids(tokenizer, (item.end for item in items), own)
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id, **sampling)
    torch.manual_seed(seed)
    answers = []
    for item in items:  # one by one, so that no answer depends on the other prompts
        ids = torch.tensor([item.prompt], device=opened.numerics.device)
        with torch.no_grad(), opened.numerics.autocast():
            output = network.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, use_cache=True
            )
        answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def printable(text: str) -> str:
    """Escape what a terminal would obey instead of show; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
