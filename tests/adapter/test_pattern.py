"""A pattern from somebody else's file: those that are common pass, those that could search for hours are refused."""

from __future__ import annotations

import re
import time

import pytest

from src.adapter.pattern import LONGEST, refuse_slow
from src.files.errors import ConfigError

NAMES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(80) for name in "qkvo"]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)",
        r".*self_attn.*(q_proj|k_proj|v_proj|o_proj)$",
        r"model\.layers\.\d+\.(self_attn|mlp)\.(?:(?:q|k|v|o|gate|up|down)_proj)",
        r"^(?!.*visual).*(?:q_proj|v_proj|gate_proj)",
        r"model\.layers\.(1[0-9]|2[0-7])\..*_proj",
        r"(language_)?model\.layers\.[\d]{1,}\.mlp\.down_proj",
        r"lm_head",
    ],
)
def test_common_patterns_pass_and_are_quick(pattern: str) -> None:
    refuse_slow(pattern, "target_modules")
    started = time.process_time()
    for name in NAMES:
        re.fullmatch(pattern, name)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(.*a)*",
        r"([a-z]+)*x",
        r"(a|a)*b",
        r"(?:a?){30}b",
        r".*.*.*.*.*x",
        r"\w+\w+\w+\w+x",
        "(ab|ab)" * 24 + "x",
        "a?" * 40 + "a" * 40,
        r"(.)\1*",
        r"(?=(a+))+a*b",
        r"(?>a+)+b",
    ],
)
def test_patterns_that_could_take_long_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"^where: the pattern .* could take too long to match") as error:
        refuse_slow(pattern, "where")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<a", "a{2,1}", "\\"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="is no regular expression"):
        refuse_slow(pattern, "where")


def test_a_pattern_has_a_length() -> None:
    refuse_slow("a" * LONGEST, "where")
    with pytest.raises(ConfigError, match="needs at most 1,000 characters"):
        refuse_slow("a" * (LONGEST + 1), "where")
