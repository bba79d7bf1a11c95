"""Time a prompt and each generated token, at batch size 1: base, adapter and merged model side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any

import torch

from ..measure.scorer import Solo
from ..model import device

PROMPT_TOKENS, NEW_TOKENS, REPETITIONS = 64, 8, 5


@contextmanager
def _as_served(solo: Solo) -> Iterator[None]:
    """Run the model as a server would: nothing that PEFT computes for DoRA at each call is kept from call to call."""
    solo.model.eval()
    with torch.no_grad(), solo.numerics.autocast():
        yield


def time_once(solo: Solo, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Return (seconds of the prompt, seconds per token after the first), greedy, with a key-value cache."""
    place = solo.numerics.device
    with _as_served(solo):
        device.synchronize(place)
        started = time.perf_counter()
        output = solo.model(input_ids=ids, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        device.synchronize(place)
        prompt_read = time.perf_counter()
        for _ in range(new_tokens):
            output = solo.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        device.synchronize(place)
        return prompt_read - started, (time.perf_counter() - prompt_read) / new_tokens


def compare(
    models: Mapping[str, tuple[Solo, Callable[[], AbstractContextManager[Any]] | None]],
    ids: torch.Tensor,
    new_tokens: int = NEW_TOKENS,
    repetitions: int = REPETITIONS,
) -> dict[str, Any]:
    """Return the median times of several models in milliseconds.

    ``models``: by name, each with a context to run in, such as PEFT's ``disable_adapter``; None: none.

    The models take turns within each repetition, so that what slows the machine for a while slows all of them.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repetition in range(repetitions + 1):
        for name, (solo, context) in models.items():
            with (context or nullcontext)():
                seconds = time_once(solo, ids, new_tokens)
            if repetition:  # the first is a warm-up
                times[name].append(seconds)
    first = next(iter(models.values()))[0]
    report: dict[str, Any] = {
        "device": device.describe(first.numerics.device),
        "prompt_tokens": ids.shape[1], "new_tokens": new_tokens, "repetitions": repetitions,
    }  # fmt: skip
    for name, pairs in times.items():
        prefill, per_token = zip(*pairs, strict=True)
        report[name] = {"prefill_ms": 1e3 * median(prefill), "ms_per_token": 1e3 * median(per_token)}
    return report
