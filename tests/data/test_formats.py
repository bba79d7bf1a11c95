"""Rows of each task's files and of the hub, as prompts and targets; each malformed one is refused in one line."""

from __future__ import annotations

import pytest

from src.config.schema import DatasetConfig
from src.config.values import CHOICES
from src.data.columns import FORMATS, Reader
from src.data.formats import ParsedRow, gsm8k, normalized, wording
from src.files.errors import ConfigError

ARC = (
    "Please choose the correct answer to the question: What is hot?\n\nAnswer1: ice Answer2: fire Answer3: snow\n\n"
    "Answer format: answer1/answer2/answer3"
)


def read(name: str, row: object, where: str = "") -> ParsedRow:
    return Reader(DatasetConfig(format=name)).read(row, where)


BOOLQ = "Please answer the following question with true or false, question: is it so?\n\nAnswer format: true/false"


def test_the_schema_offers_every_format() -> None:
    assert CHOICES["dataset.format"] == tuple(FORMATS)


def test_what_makes_two_rows_the_same_question() -> None:
    assert normalized(" Is  It\tSO\n") == "is it so"
    assert wording("Is it-so?") == wording("is it  so") != wording("is it not so")
    assert wording("?!") == "?!"  # nothing but signs is still something
    assert read("pairs", {"context": "3+4", "target": "7"}).question != read("pairs", {"context": "3-4", "target": "7"}).question
    chats = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]} for text in ("É", "é")]
    assert read("pairs", chats[0]).question == read("pairs", chats[1]).question


def test_gsm8k_keeps_the_worked_answer() -> None:
    row = {"question": "How many?", "answer": "2+2=<<2+2=4>>4\n#### 4"}
    assert gsm8k(row, "") == ParsedRow("Question: How many?\nAnswer:\n", row["answer"], "how many?")


def test_the_commonsense_prompt_is_that_of_llm_adapters() -> None:
    """The white space of the function generate_prompt in LLM-Adapters' finetune.py, which DoRA's repeats."""
    long = read("commonsense", {"instruction": ARC, "input": "", "output": "the correct answer is answer2", "answer": "answer2"})
    pad = " " * 16
    assert long.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n\n"
        f"{pad}### Instruction:\n{pad}{ARC}\n\n{pad}### Response:\n{pad}"
    )
    assert long.target == "the correct answer is answer2"
    assert long.choices == tuple(f"the correct answer is answer{n}" for n in (1, 2, 3))
    with_input = read("commonsense", {"instruction": ARC, "input": "Hint.", "output": "the correct answer is answer2"}).prompt
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        f"that appropriately completes the request.\n\n{pad}### Instruction:\n{pad}{ARC}\n\n{pad}### Input:\n{pad}Hint.\n\n"
        f"{pad}### Response:\n{pad}"
    )


def test_rows_of_the_hub_become_the_same_examples() -> None:
    options = {"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]}
    local = read("commonsense", {"instruction": ARC, "output": "the correct answer is answer2"})
    assert read("commonsense", {"id": "1", "question": "What is hot?", "choices": options, "answerKey": "B"}) == local
    assert read("commonsense", {"question_stem": "What is hot?", "choices": options, "answerKey": "B"}) == local
    numbered = options | {"label": ["1", "2", "3"]}
    assert read("commonsense", {"question": "What is hot?", "choices": numbered, "answerKey": "2"}) == local
    true = read("commonsense", {"instruction": BOOLQ, "output": "the correct answer is true"})
    assert read("commonsense", {"question": "is it so", "answer": True, "passage": "..."}) == true
    assert true.choices == ("the correct answer is true", "the correct answer is false")
    assert read("banking77", {"text": "t", "label": 3, "label_text": "a"}) == read("banking77", {"text": "t", "category": "a"})
    assert read("e2e", {"meaning_representation": "m", "human_reference": "r"}) == read("e2e", {"mr": "m", "ref": "r"})


def test_banking77_and_e2e() -> None:
    assert read("banking77", {"text": "Lost my card?", "category": "lost"}) == ParsedRow(
        "Query: Lost my card?\nIntent:\n", "lost", "lostmycard"
    )
    assert read("e2e", {"mr": "name[X],  food[Y]", "ref": "X has Y."}) == ParsedRow(
        "Data: name[X],  food[Y]\nText:\n", "X has Y.", "name[x], food[y]"
    )


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("gsm8k", [1], "needs an object with 'question' and 'answer'"),
        ("gsm8k", {"question": "q"}, "each a text; 'answer' is missing"),
        ("gsm8k", {"question": "q", "answer": 4}, "'answer' is no text"),
        ("gsm8k", {"question": " ", "answer": "#### 4"}, "'question' is no text"),
        ("gsm8k", {"question": "q", "answer": "4"}, "needs '####'"),
        ("gsm8k", {"question": "q", "answer": "4 ####\n"}, "needs '####'"),
        ("commonsense", None, "needs an object with 'instruction' and 'output'"),
        ("commonsense", {"instruction": "What?", "output": "the correct answer is a"}, "needs 'Answer format: A/B'"),
        ("commonsense", {"instruction": ARC, "output": "answer2"}, "'output' is none of"),
        ("commonsense", {"instruction": ARC, "output": "the correct answer is answer4"}, "'output' is none of"),
        ("commonsense", {"instruction": ARC, "input": 3, "output": "the correct answer is answer2"}, "'input' is no text"),
        (
            "commonsense",
            {"question": "q", "choices": {"text": ["a"], "label": []}, "answerKey": "A"},
            "'choices' needs the lists",
        ),
        ("commonsense", {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "one of the labels"),
        ("commonsense", {"question": "q", "choices": {"text": 3, "label": ["A"]}, "answerKey": "A"}, "needs the lists"),
        ("commonsense", {"question": "q"}, "'answer' is missing"),
        ("banking77", {"text": "t", "category": ""}, "'category' is no text"),
        ("banking77", {"text": "t", "label_text": 3}, "'label_text' is no text"),
        ("e2e", {"mr": "m"}, "'ref' is missing"),
        ("e2e", {"meaning_representation": "m"}, "'human_reference' is missing"),
        ("e2e", {"meaning_representation": "m", "human_reference": "r", "mr": "m"}, "has keys that are not read: mr"),
        ("gsm8k", {"question": "q", "answer": "#### 4", "hint": "h"}, "has keys that are not read: hint"),
        ("commonsense", {"question": "q", "answer": "yes"}, "'answer' needs true or false"),
    ],
)
def test_a_malformed_row_is_refused_with_its_place(name: str, row: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(name, row, "rows.csv, row 3")
    assert str(caught.value).startswith("rows.csv, row 3: ") and says in str(caught.value) and "\n" not in str(caught.value)
