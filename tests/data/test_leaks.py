"""Questions that are the same but for their spelling are no training rows of each other, also within one file."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from src.command.cli import compose
from src.config.schema import DatasetConfig
from src.data.datasets import Example, Splits, load
from src.data.leaks import same_question, spelled
from src.record.records import run_id
from src.sweep.plan import Job, refuse

SPELLINGS = {
    "case": lambda text: text.upper(),
    "white space": lambda text: f" {text.replace(' ', '  ')}\n",
    "Unicode form": lambda text: unicodedata.normalize("NFD", text),
    "wide letters": lambda text: text.replace("Q", "\uff31"),
}


def write(path: Path, prompts: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": "c"}) + "\n" for prompt in prompts))
    return path


def prompts(examples: list[Example]) -> list[Any]:
    return [example.prompt for example in examples]


def plain(path: Path, **settings: Any) -> Splits:
    return load(DatasetConfig(path=str(path), val_share=0.1, test_share=0.2, **settings))


@pytest.mark.parametrize("spelling", sorted(SPELLINGS))
def test_a_twin_of_one_file_is_left_out_of_training_and_counted(folder: Path, spelling: str) -> None:
    asked = [f"Qué is wörd {n}?" for n in range(60)]
    twins = [SPELLINGS[spelling](text) for text in asked]
    path = write(folder / "a.jsonl", [text for both in zip(asked, twins, strict=True) for text in both])
    splits = plain(path)
    keys = [{spelled(text) for text in prompts(split)} for split in (splits.train, splits.val, splits.test)]
    assert all(keys) and not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    exact = plain(path, leaks="exact")
    assert splits.left_out >= 16 and splits.leaking == exact.left_out == 0
    # What has no twin in another split stays where it was, and the test split is the same as ever.
    assert prompts(splits.test) == prompts(exact.test)
    assert [text for text in prompts(exact.train) if text in set(prompts(splits.train))] == prompts(splits.train)
    assert len(exact.train) + len(exact.val) + len(exact.test) == 120
    gone = len(exact.train) - len(splits.train) + len(exact.val) - len(splits.val)
    assert splits.left_out == gone
    held = {spelled(text) for text in [*prompts(exact.test), *prompts(exact.val)]}
    assert exact.leaking == sum(spelled(text) in held for text in prompts(exact.train)) > 0


def test_rows_without_twins_are_split_as_they_always_were(folder: Path) -> None:
    path = write(folder / "a.jsonl", [f"What is word {n}?" for n in range(120)])
    near, exact, off = (plain(path, leaks=leaks) for leaks in ("near", "exact", "off"))
    assert near == exact == off and near.left_out == near.leaking == 0


def test_nothing_is_left_out_where_leaks_are_let_be_but_they_are_counted(folder: Path) -> None:
    train = write(folder / "train.jsonl", ["a", "b", "C", "d"])
    test = write(folder / "test.jsonl", ["A", "b"])
    settings: dict[str, Any] = {"path": str(train), "test_path": str(test), "val_share": 0.0}
    counts = {}
    for leaks in ("near", "exact", "off"):
        splits = load(DatasetConfig(**settings, leaks=leaks))
        counts[leaks] = ("".join(prompts(splits.train)), splits.left_out, splits.leaking)
    assert counts == {"near": ("Cd", 2, 0), "exact": ("aCd", 1, 1), "off": ("abCd", 0, 2)}


@pytest.mark.parametrize("turns", ["last", "all"])
def test_every_turn_that_carries_loss_is_a_question(folder: Path, turns: str) -> None:
    """Chats that are stored once for each turn: the longer row trains the question of the shorter one."""
    rows = []
    for n in range(60):
        first = [{"role": "user", "content": f"Name {n}"}, {"role": "assistant", "content": f"n{n}"}]
        rows += [first, [*first, {"role": "user", "content": "More"}, {"role": "assistant", "content": f"m{n}"}]]
    (folder / "a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    splits = plain(folder / "a.jsonl", turns=turns)
    first_of = [{example.prompt[0]["content"] for example in split} for split in (splits.train, splits.test)]
    trained = {example.prompt[0]["content"] for example in splits.train if len(example.prompt) > 1}
    scored = {example.prompt[0]["content"] for example in splits.test}
    assert splits.train and splits.test and all(first_of)
    assert bool(trained & scored) == (turns == "last")
    assert bool(splits.left_out) == (turns == "all")


def test_chats_are_compared_message_by_message() -> None:
    def chat(text: str) -> list[dict[str, Any]]:
        return [{"role": "system", "content": "s"}, {"role": "user", "content": text}]

    assert same_question(chat("One\nword"), "near") == same_question(chat("one  word "), "near")
    assert same_question(chat("one"), "near") != same_question(chat("two"), "near")
    assert same_question(chat("one"), "near") != same_question(chat("one")[1:], "near")
    assert same_question(chat("One"), "exact") != same_question(chat("one"), "exact")


def test_a_sign_tells_questions_apart() -> None:
    assert spelled("3+4") != spelled("3-4") and spelled("x²") == spelled("x2")


def test_the_default_dataset_has_no_twins_and_its_splits_are_those_of_its_records() -> None:
    """The fingerprint that runs of earlier versions have recorded."""
    splits = load(DatasetConfig(name="cldr_names", source="cldr_names"))
    assert splits.fingerprint() == "aa8911606e5e9aa5e6d3e4b24b80a8e04329675894030f604256d3eb80626700"
    assert (splits.left_out, splits.leaking) == (0, 0)


def test_planning_says_how_many_leaks_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "a.jsonl", [text for n in range(60) for text in (f"word {n}", f"Word  {n}")])
    for leaks in ("near", "exact"):
        config = compose(["model=tiny", "dataset=jsonl", "dataset.path=a.jsonl", f"dataset.leaks={leaks}"])
        leaking = load(config.dataset).leaking
        refuse([Job(run_id(config), config)])
        note = f"note: {leaking} training rows ask questions of validation or test, as dataset.leaks=exact lets them\n"
        assert capsys.readouterr().err == ("" if leaks == "near" else note)
