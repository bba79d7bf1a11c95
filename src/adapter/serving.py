"""Tell whether a server loads an adapter as it is or needs it merged first: vLLM's published rules as data.

Source: vLLM, ``vllm/lora/peft_helper.py`` (``_validate_features``, ``validate_legal``) and ``vllm/config/lora.py``
(``MaxLoRARanks``), read in November 2026. They are vLLM's to change; nothing here was run against a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank can be
DEFAULT_MAX_LORA_RANK = 16
MERGE_FIRST = "merge first (python -m src.eval merge), then serve the folder as a model of its own"


@dataclass(frozen=True)
class Refusal:
    """A field of ``adapter_config.json`` that vLLM refuses: for which values, and in its own words."""

    field: str
    refused: Callable[[Any], bool]
    words: str


REFUSALS = (
    Refusal("use_dora", bool, "vLLM does not yet support DoRA."),
    Refusal("modules_to_save", bool, "vLLM only supports modules_to_save being None."),
    Refusal("bias", lambda value: value not in (None, "none"), "Adapter bias is not supported."),
)


def largest_rank(adapter_config: Mapping[str, Any]) -> int:
    """Return the highest rank of any module."""
    return max([int(adapter_config["r"]), *map(int, (adapter_config.get("rank_pattern") or {}).values())])


def refusals(adapter_config: Mapping[str, Any]) -> list[str]:
    """List the reasons why vLLM does not load this adapter; empty where it does."""
    reasons = [rule.words for rule in REFUSALS if rule.refused(adapter_config.get(rule.field))]
    if largest_rank(adapter_config) > MAX_LORA_RANKS[-1]:
        reasons.append(f"LoRA rank {largest_rank(adapter_config)} is greater than max_lora_rank {MAX_LORA_RANKS[-1]}.")
    return reasons


def advice(adapter_config: Mapping[str, Any], quantized: bool = False) -> list[str]:
    """Say how to serve an adapter, in lines. ``quantized``: it was trained over a 4-bit or 8-bit base."""
    if reasons := refusals(adapter_config):
        return [f"vLLM refuses this adapter ({' '.join(reasons)}): {MERGE_FIRST}."]
    rank = largest_rank(adapter_config)
    room = next(size for size in MAX_LORA_RANKS if size >= rank)
    flag = f" --max-lora-rank {room}" if room > DEFAULT_MAX_LORA_RANK else ""
    lines = [f"vLLM loads this adapter as it is: vllm serve BASE --enable-lora{flag} --lora-modules NAME=FOLDER"]
    if adapter_config.get("use_rslora"):
        lines.append("It is an rsLoRA: a server that ignores use_rslora scales it by alpha/r, which is another model.")
    if quantized:
        lines.append("It was trained over a quantized base: over 16-bit weights its answers differ; merge measures by how much.")
    return lines
