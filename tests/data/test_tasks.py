"""Named datasets: their files in a folder or an archive, leaks between splits, what is missing, and what the hub is asked."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from src.command.cli import compose
from src.config.schema import CONF_FOLDER, DatasetConfig
from src.data import datasets as ours
from src.data.columns import FORMATS
from src.data.datasets import Splits, load, refuse_impossible
from src.files.errors import ConfigError
from src.record.records import run_id

NAMED = sorted(path.stem for path in (CONF_FOLDER / "dataset").glob("*.yaml") if "source: task" in path.read_text())
REAL = os.environ.get("LORA_ASSAY_DATA")


def dataset(name: str, *overrides: str) -> DatasetConfig:
    return compose([f"dataset={name}", *overrides]).dataset


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, head: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows]) + "\n")


def sizes(splits: Splits) -> tuple[int, int, int, int, int]:
    return len(splits.train), len(splits.val), len(splits.test), splits.left_out, splits.repeated


@pytest.mark.parametrize("name", NAMED)
def test_each_named_dataset_says_what_it_is(name: str) -> None:
    config = dataset(name)
    assert config.name == name and config.version is not None and config.train_files and config.files_from
    assert name == "finlora_tfns_nwgi" or config.test_files
    # Either the hub has it, or the files are named that it needs.
    if config.id is None:
        with pytest.raises(ConfigError) as caught:
            refuse_impossible(config, 1)
        message = str(caught.value)
        assert (
            message.startswith(f"dataset.path: dataset={name} needs a folder with {config.train_files[0]}")
            and "\n" not in message
        )
        assert config.files_from in message
    else:
        assert refuse_impossible(config, 1) is None


def test_a_folder_that_is_not_there_is_named_with_what_should_be_in_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load(dataset("gsm8k", "dataset.path=nowhere"))
    assert str(caught.value) == (
        "dataset.path=nowhere: no such file or folder; dataset=gsm8k needs a folder with train.jsonl, test.jsonl, from"
        " openai/grade-school-math on GitHub, grade_school_math/data"
    )


def test_what_was_never_released_is_named() -> None:
    with pytest.raises(ConfigError, match=r"dataset=finlora_cfa needs .*train/cfa_train\.jsonl.* never released"):
        load(dataset("finlora_cfa"))


def test_rows_of_ones_own_stand_in_for_what_was_never_released(folder: Path) -> None:
    write_jsonl(folder / "cfa.jsonl", [{"context": f"q{n}", "target": "ABC"[n % 3]} for n in range(60)])
    splits = load(dataset("finlora_cfa", "dataset.path=cfa.jsonl"))
    assert splits.labels == ("A", "B", "C") and len(splits.train) + len(splits.val) + len(splits.test) == 60


def test_finlora_pools_tests_and_takes_their_labels_alone_to_account(folder: Path) -> None:
    """The training file of four tests has labels that one of them lacks; a test row with such a label is refused."""
    grades = ["positive", "mildly positive", "negative"]
    write_jsonl(
        folder / "train/finlora_sentiment_train.jsonl", [{"context": f"t{n}", "target": grades[n % 3]} for n in range(90)]
    )
    for test in ("fpb", "fiqa", "tfns", "nwgi"):
        write_jsonl(folder / f"test/{test}_test.jsonl", [{"context": f"{test} T{n}", "target": "neutral"} for n in range(3)])
    write_jsonl(folder / "test/fiqa_test.jsonl", [{"context": " T5\n", "target": "positive"}])
    pooled = load(dataset("finlora_sentiment", "dataset.path=."))
    assert {example.id.partition("_")[0] for example in pooled.test} == {"fpb", "fiqa", "tfns", "nwgi"}
    assert len(pooled.test) == 10 and pooled.left_out == 1  # "t5" is " T5"
    assert "t5" not in {example.prompt for example in pooled.train + pooled.val}
    alone = refuse_impossible(dataset("finlora_fpb", "dataset.path=."), 4)
    assert alone is not None and len(alone.test) == 3 and alone.labels == ("negative", "neutral", "positive")
    write_jsonl(folder / "test/fpb_test.jsonl", [{"context": "x", "target": "mildly positive"}])
    with pytest.raises(ConfigError, match=r"fpb_test\.jsonl:1 has the target 'mildly positive', which is none of them"):
        refuse_impossible(dataset("finlora_fpb", "dataset.path=."), 4)
    # All lie in one folder, as a reader may have put them.
    for path in [*folder.glob("train/*"), *folder.glob("test/*")]:
        path.rename(folder / path.name)
    assert len(load(dataset("finlora_tfns", "dataset.path=.")).test) == 3
    (folder / "tfns_test.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"^dataset\.path=\.: has no test/tfns_test\.jsonl, which is from Open-Finance-Lab/FinLoRA"
    ):
        load(dataset("finlora_tfns", "dataset.path=."))


def test_a_re_split_needs_no_training_file_and_keeps_equal_prompts_together(folder: Path) -> None:
    for test in ("tfns", "nwgi"):
        rows = [{"context": f"{test} {'News' if n % 2 else 'news '} {n // 2}", "target": "neutral"} for n in range(200)]
        write_jsonl(folder / f"{test}_test.jsonl", rows)
    splits = load(dataset("finlora_tfns_nwgi", "dataset.path=."))
    asked = [{" ".join(str(e.prompt).lower().split()) for e in split} for split in (splits.train, splits.val, splits.test)]
    assert all(asked) and not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    assert sum(map(len, asked)) == 200  # two rows for each question


def test_gsm8k_of_a_folder_and_of_one_file(folder: Path) -> None:
    rows = [{"question": f"How many is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(60)]
    write_jsonl(folder / "train.jsonl", rows[:50])
    write_jsonl(folder / "test.jsonl", [*rows[50:], rows[50], rows[3]])
    splits = load(dataset("gsm8k", "dataset.path=."))
    assert len(splits.test) == 12 and splits.left_out == 1 and splits.repeated == 1
    assert len(splits.train) + len(splits.val) == 49 and splits.val
    alone = load(dataset("gsm8k", "dataset.path=train.jsonl"))
    assert len(alone.train) + len(alone.val) + len(alone.test) == 50 and alone.test
    both = load(dataset("gsm8k", "dataset.path=train.jsonl", "dataset.test_path=test.jsonl"))
    assert both.fingerprint() == splits.fingerprint()
    (folder / "train.jsonl").write_text('{"question": "q", "answer": "4"}\n')
    with pytest.raises(ConfigError, match=r"^dataset\.path: \./train\.jsonl, line 1: 'answer' needs '####'"):
        load(dataset("gsm8k", "dataset.path=."))


def test_banking77_finds_leaks_that_punctuation_hides_and_collects_its_labels(folder: Path) -> None:
    write_csv(folder / "train.csv", "text,category", [*(f"query {n},intent_{n % 5}" for n in range(50)), "Lost my card?,lost"])
    write_csv(folder / "test.csv", "text,category", ["lost  my card,lost", "Lost my card!,lost", "new one,intent_1"])
    splits = load(dataset("banking77", "dataset.path=."))
    assert (len(splits.test), splits.left_out, splits.repeated) == (3, 1, 1)
    assert splits.labels == ("intent_0", "intent_1", "intent_2", "intent_3", "intent_4", "lost")


def test_e2e_asks_once_for_each_meaning_and_knows_all_its_references(folder: Path) -> None:
    head = "mr,ref"
    write_csv(folder / "top/trainset.csv", head, [f'"name[N{n // 3}]","Text {n}."' for n in range(60)])
    write_csv(folder / "top/devset.csv", head, ['"name[D]","One."', '"name[d] ","Two."', '"name[T]","Also in the test."'])
    write_csv(folder / "top/testset_w_refs.csv", head, ['"name[T]","A."', '"name[U]","B."', '"name[T]","C."', '"name[N0]","D."'])
    with zipfile.ZipFile(folder / "e2e-dataset.zip", "w") as archive:
        for path in sorted((folder / "top").iterdir()):
            archive.write(path, f"e2e-dataset/{path.name}")
    splits = load(dataset("e2e_nlg", "dataset.path=e2e-dataset.zip"))
    assert splits.fingerprint() == load(dataset("e2e_nlg", "dataset.path=top")).fingerprint()
    assert sizes(splits) == (57, 1, 3, 3, 0)
    assert splits.val[0].references == ("One.", "Two.")
    answers = {example.prompt: (example.target, example.references) for example in splits.test}
    assert answers["Data: name[T]\nText:\n"] == ("A.", ("A.", "C."))
    assert all(not example.references for example in splits.train)
    (folder / "broken.zip").write_bytes((folder / "e2e-dataset.zip").read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"dataset\.path=broken\.zip: is no archive that can be read"):
        load(dataset("e2e_nlg", "dataset.path=broken.zip"))


def test_rows_of_ones_own_that_a_sign_tells_apart_are_no_leak(folder: Path) -> None:
    write_jsonl(folder / "train.jsonl", [{"context": text, "target": "x"} for text in ("3+4", "3-4", "ABC", "d  e", "f")])
    write_jsonl(folder / "test.jsonl", [{"context": text, "target": "x"} for text in ("34", "abc ", "D e")])
    splits = load(dataset("jsonl", "dataset.path=train.jsonl", "dataset.test_path=test.jsonl", "dataset.val_share=0"))
    assert [example.prompt for example in splits.train] == ["3+4", "3-4", "f"] and splits.left_out == 2


def test_the_hub_is_asked_for_the_pinned_revision_in_the_tasks_format(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*arguments: object, **options: object) -> Any:
        asked.append((*arguments, options["split"], options["revision"]))
        rows = range(20) if options["split"] == "train" else range(100, 104)
        choices = {"text": ["ice", "fire"], "label": ["A", "B"]}
        return datasets.Dataset.from_list([{"question": f"q{n}", "choices": choices, "answerKey": "AB"[n % 2]} for n in rows])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = dataset("arc_easy")
    splits = load(config)
    assert asked == [("allenai/ai2_arc", "ARC-Easy", split, config.revision) for split in ("validation", "test", "train")]
    assert sizes(splits) == (20, 0, 4, 0, 0)  # validation and test have the same rows here, and the test keeps them
    assert splits.train[1].target == "the correct answer is answer2" and len(splits.train[1].choices) == 2


def test_a_version_and_a_judging_are_the_identity_of_a_run() -> None:
    base = ["dataset=gsm8k", "dataset.path=x"]
    assert run_id(compose(base)) != run_id(compose([*base, "dataset.version=2"]))
    assert run_id(compose(base)) != run_id(compose([*base, "dataset.answer=text"]))
    assert run_id(compose(base)) == run_id(compose([*base, "dataset.files_from=elsewhere"]))
    defaults = ["dataset.version=null", "dataset.format=pairs", "dataset.answer=text", "dataset.train_files=null"]
    assert run_id(compose(defaults)) == run_id(compose([]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dataset.answer=exact"], "dataset.answer=exact: choose one of text, label, number, choice, tags, overlap, bleu"),
        (["dataset.format=csv"], f"dataset.format=csv: choose one of {', '.join(FORMATS)}"),
        (["dataset.version=0"], "dataset.version=0: needs a whole number from 1"),
        (["dataset.answer=choice"], "dataset.answer=choice: rows of dataset.format=pairs name no choices"),
        (["dataset.answer=number", "dataset.labels=[a]"], "dataset.labels: belong to dataset.answer=label, not to number"),
        (["dataset.test_files=[[a]]"], "dataset.test_files=[['a']]: needs a list of texts such as [a.jsonl]"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert says in str(caught.value)


@pytest.mark.skipif(REAL is None, reason="LORA_ASSAY_DATA names no folder with the files of these tasks")
@pytest.mark.parametrize(
    ("name", "path", "left_out", "repeated"),
    [
        ("boolq", "commonsense", 6, 1), ("arc_easy", "commonsense", 2, 0), ("arc_challenge", "commonsense", 0, 0),
        ("openbookqa", "commonsense", 0, 0), ("gsm8k", "gsm8k", 0, 0), ("banking77", "banking77", 29, 4),
        ("e2e_nlg", "e2e/e2e-dataset.zip", 0, 0), ("finlora_xbrl_term", "finlora", 2, 0), ("finlora_formula", "finlora", 0, 0),
        ("finlora_financebench", "finlora", 0, 0), ("finlora_ner", "finlora/ner_test.jsonl", 0, 61),
    ],
)  # fmt: skip
def test_known_leaks_of_the_real_files_are_found(name: str, path: str, left_out: int, repeated: int) -> None:
    splits = ours.load(dataset(name, f"dataset.path={REAL}/{path}"))
    assert (splits.left_out, splits.repeated) == (left_out, repeated)
