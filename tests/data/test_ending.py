"""Where decoding stops, and targets in which it would stop too early."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import ByT5Tokenizer, GenerationConfig

from src.data.ending import pattern, refuse_unreachable, stop_ids, without_end
from src.files.errors import ConfigError

TOKENIZER = ByT5Tokenizer()


@pytest.mark.parametrize(("own", "stop"), [(None, [1, 9]), (1, [1, 9]), (7, [1, 7, 9]), ([7, 9, 300], [1, 7, 9, 300])])
def test_decoding_stops_at_all_ends_and_at_the_bases_own(own: Any, stop: list[int]) -> None:
    assert stop_ids(TOKENIZER, [9, None, 9], GenerationConfig(eos_token_id=own)) == stop


def test_settings_that_name_no_token_are_refused() -> None:
    settings = GenerationConfig()
    settings.eos_token_id = ["</s>"]
    with pytest.raises(ConfigError, match=r"eos_token_id=\['</s>'\]: needs a whole number or a list"):
        stop_ids(TOKENIZER, [], settings)


def test_a_target_in_which_decoding_would_stop_is_refused() -> None:
    line_break = ord("\n") + 3
    refuse_unreachable("row:1", [100, line_break], [line_break], TOKENIZER)
    with pytest.raises(ConfigError, match=r"row:1: the target holds '\\n', at which generation_config.json"):
        refuse_unreachable("row:1", [100, line_break, 100, 1], [1, line_break], TOKENIZER)


def test_labels_lose_a_written_end_token_and_stay_apart() -> None:
    assert without_end(["no", "yes</s>", "yes", "no<pad>"], TOKENIZER, [1]) == ["no", "yes", "no<pad>"]


def test_the_longest_special_token_is_seen_and_none_where_there_is_none() -> None:
    found = pattern(["<a>", "<a><b>", ""]).search("x<a><b>")
    assert found and found[0] == "<a><b>" and not pattern([]).search("x")
