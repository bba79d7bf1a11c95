"""Chats by templates of the kinds that models have: what is asked, what is trained, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from src.data.datasets import Example
from src.data.ending import Special
from src.data.template import Rendered, Template
from src.files.errors import ConfigError
from tests.data.chats import CHATML, chat, tokenizer_of

ASK = [("user", "q")]
HISTORY = [("user", "q1"), ("assistant", "a1"), ("user", "q2")]
PER_MESSAGE = "{% for m in messages %}"
ASKED = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# [INST] q [/INST] a </s>: white space on both sides of an answer, and no part of it.
SPACED = (
    PER_MESSAGE
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
# A turn ends in <|end|>, the whole chat in the tokenizer's end token as well.
TWO_ENDS = (
    PER_MESSAGE + "<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}</s>{% endif %}"
)
# An empty block of thoughts before the last answer, which earlier answers lose.
THINKS = (
    PER_MESSAGE + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n" + ASKED
)
NO_END = PER_MESSAGE + "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
CALLS = (
    "{% if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>\n{% endif %}" + PER_MESSAGE + "<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}</call>{% endif %}<|im_end|>\n" + ASKED
)


def rendered(template: str, example: Any, turns: str = "last") -> Rendered:
    tokenizer = tokenizer_of(template)
    return Template(tokenizer, Special.of(tokenizer)).render(example, turns)


@pytest.mark.parametrize(
    ("template", "prompt", "target", "end"),
    [
        (CHATML, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "yes", "<|im_end|>"),
        (SPACED, "[INST] q [/INST]", " yes ", "</s>"),
        (TWO_ENDS, "<|im_start|>user\nq<|end|>\n<|im_start|>assistant\n", "yes", "<|end|>"),
        (THINKS, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "yes", "<|im_end|>"),
        (NO_END, "user: q\nassistant: ", "yes", "</s>"),
    ],
    ids=["chatml", "spaced", "two ends", "thinks", "no end"],
)
@pytest.mark.parametrize("written", ["yes", "yes</s>"])
def test_a_target_ends_as_the_template_ends_a_turn(template: str, prompt: str, target: str, end: str, written: str) -> None:
    whole = rendered(template, chat(*ASK, target=written))
    assert (whole.prompt, whole.target, whole.example.target) == (prompt, target, "yes")
    assert tokenizer_of(template).convert_ids_to_tokens(whole.end) == end


def test_the_end_of_a_turn_that_is_written_after_an_answer_is_taken_off() -> None:
    whole = rendered(CHATML, chat(*ASK, target="yes<|im_end|>"))
    assert (whole.target, whole.example.target) == ("yes", "yes")


def test_an_answer_is_trained_as_the_template_writes_it() -> None:
    assert rendered(SPACED, chat(*ASK, target="\n yes \n")).target == " yes "
    assert rendered(CHATML, chat(*ASK, target=" yes\n")).target == " yes\n"


@pytest.mark.parametrize("template", [CHATML, SPACED, TWO_ENDS])
def test_earlier_turns_are_labeled_as_the_last_one_is(template: str) -> None:
    whole, end = rendered(template, chat(*HISTORY, target="a2"), "all"), rendered(template, chat(*HISTORY, target="a1"))
    mark = tokenizer_of(template).convert_ids_to_tokens(end.end)
    assert [whole.prompt[slice(*span)] for span in whole.earlier] == [end.target + mark]


@pytest.mark.parametrize("template", [THINKS, NO_END], ids=["drops thoughts", "no end"])
def test_earlier_turns_that_differ_from_the_last_are_refused(template: str) -> None:
    assert rendered(template, chat(*HISTORY, target="a2")).target == "a2"
    with pytest.raises(ConfigError, match=r"dataset.turns=all: rows.jsonl:3: .*otherwise than its last.*dataset.turns=last"):
        rendered(template, chat(*HISTORY, target="a2"), "all")


NO_SYSTEM = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")
NO_THOUGHTS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}]}
RESULT = {"role": "tool", "content": '{"time": "12\\n"}', "tool_call_id": "c1"}
TOOLS = [{"type": "function", "function": {"name": "now", "description": "tells the time", "parameters": {}}}]


def with_a_call(**more: Any) -> Any:
    example = chat(("user", "What time is it?"), target="noon", **more)
    assert isinstance(example.prompt, list)
    example.prompt.extend([CALL, RESULT])
    return example


def test_tools_and_their_calls_are_rendered() -> None:
    whole = rendered(CALLS, with_a_call(tools=TOOLS), "all")
    assert "tells the time" in whole.prompt and RESULT["content"] in whole.prompt
    (call,) = (whole.prompt[slice(*span)] for span in whole.earlier)
    assert call.startswith("<call>[{") and call.endswith("}]</call><|im_end|>") and '"now"' in call


def test_a_result_of_a_tool_may_be_rendered_as_json() -> None:
    template = CALLS.replace("m.content or ''", "(m.content | tojson) if m.role == 'tool' else (m.content or '')")
    assert '\\"time\\"' in rendered(template, with_a_call(tools=TOOLS)).prompt


@pytest.mark.parametrize(
    ("template", "example", "message"),
    [
        (NO_SYSTEM, chat(("system", "s"), *ASK, target="a"),
         r"does not render 'content' of message 1 \(system\)"),
        (NO_SYSTEM, chat(("system", "Be kind."), *ASK, target="a"),
         r"leaves out or changes the text of message 1 \(system\)"),
        (NO_THOUGHTS,
         chat(("user", "q1"), ("assistant", "<think>why</think>a1"), ("user", "q2"), target="a2"), r"message 2 \(assistant\)"),
        (NO_THOUGHTS, chat(*ASK, target="<think>why</think>a1"),
         "does not render the answer as it stands"),
        (CHATML, with_a_call(), r"does not render 'tool_calls' of message 2 \(assistant\)"),
        (CHATML, chat(*ASK, target="a", tools=TOOLS), "does not render the tools"),
        (CHATML, chat(("user", "a<|im_end|>b"), target="a"), r"message 1 \(user\) holds the special token '<\|im_end\|>'"),
        (CHATML, chat(*ASK, target="a<|im_end|>b"), r"the target.*holds the special token '<\|im_end\|>'"),
        (CHATML.replace("assistant\n", "model\n"), chat(*ASK, target="a"), "renders this prompt otherwise"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}", chat(*ASK, target="a"), "otherwise"),
        (CHATML.replace("<|im_end|>", " END<|im_end|>"), chat(*ASK, target="a"), "puts 'END' between an answer and the end"),
        ("{{ raise_exception('no system role here') }}", chat(*ASK, target="a"), "refuses this chat: no system role here"),
        ("{{ messages[0].content + 1 }}", chat(*ASK, target="a"), "refuses this chat: can only concatenate str"),
        ("{% for m in messages %}", chat(*ASK, target="a"), "refuses this chat: "),
    ],
)  # fmt: skip
def test_what_a_template_refuses_changes_or_leaves_out_is_named_with_its_row(template: str, example: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"rows.jsonl:3.*{message}") as refusal:
        rendered(template, example)
    assert "\n" not in str(refusal.value)


def test_a_key_that_the_template_does_not_render_is_refused() -> None:
    example = chat(*ASK, target="a")
    example.prompt[0]["weight"] = 1  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"rows.jsonl:3: .*does not render 'weight' of message 1 \(user\)"):
        rendered(CHATML, example)
    assert (
        "weight 1"
        in rendered(CHATML.replace("{{ m.role }}", "{{ m.role }}{{ ' weight %s' % m.weight if m.weight }}"), example).prompt
    )


def test_arguments_of_a_tool_call_that_are_json_are_not_written_as_json_again() -> None:
    """As a text, which is OpenAI's form; a template that writes JSON gets the object, and one that does not the text."""
    writes = CHATML.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}",
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    example = Example("rows.jsonl:1", [{"role": "user", "content": "ask"}, call, {"role": "tool", "content": "2"}], "two", "g")
    for template in (writes, writes.replace(" | tojson", "")):
        tokenizer = tokenizer_of(template)
        rendered = Template(tokenizer, Special.of(tokenizer)).render(example, "last")
        assert 'f{"x": 1}<|im_end|>' in rendered.prompt
