"""vLLM's rules on an adapter, as read in its source."""

from __future__ import annotations

from typing import Any

import pytest

from src.adapter.serving import advice, refusals

PLAIN: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "modules_to_save": None,
}


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, []),
        ({"use_rslora": True}, []),
        ({"r": 512}, []),
        ({"r": 513}, ["LoRA rank 513 is greater than max_lora_rank 512."]),
        ({"rank_pattern": {"q_proj": 600}}, ["LoRA rank 600 is greater than max_lora_rank 512."]),
        ({"use_dora": True}, ["vLLM does not yet support DoRA."]),
        ({"modules_to_save": ["lm_head"]}, ["vLLM only supports modules_to_save being None."]),
        ({"bias": "all", "use_dora": True}, ["vLLM does not yet support DoRA.", "Adapter bias is not supported."]),
    ],
)
def test_what_is_refused(settings: dict[str, Any], refused: list[str]) -> None:
    assert refusals(PLAIN | settings) == refused
    lines = advice(PLAIN | settings)
    assert bool(refused) == ("merge first" in lines[0]) == ("--enable-lora" not in lines[0])


@pytest.mark.parametrize(
    ("r", "flag"), [(4, None), (16, None), (17, 32), (64, 64), (100, 128), (256, 256), (300, 320), (321, 512)]
)
def test_the_rank_that_the_server_must_be_told(r: int, flag: int | None) -> None:
    line = advice(PLAIN | {"r": r})[0]
    assert (f"--max-lora-rank {flag} " in line) if flag else ("--max-lora-rank" not in line)


def test_what_a_server_may_get_wrong_is_said() -> None:
    assert "alpha/r" in " ".join(advice(PLAIN | {"use_rslora": True}))
    assert "trained over a quantized base" in " ".join(advice(PLAIN, quantized=True))
