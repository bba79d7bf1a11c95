"""Sources, splits without leaks, and files that are refused with their name and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.config.schema import DatasetConfig
from src.data.cldr_names import LANGUAGES
from src.data.columns import Reader
from src.data.datasets import Example, Splits, load, refuse_impossible
from src.files.errors import ConfigError

CLDR = DatasetConfig(name="cldr_names", source="cldr_names")


def jsonl(path: Path | str, **more: object) -> DatasetConfig:
    return DatasetConfig(name="jsonl", source="jsonl", path=str(path), **more)  # type: ignore[arg-type]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_cldr_names() -> None:
    splits = load(CLDR)
    examples = splits.train + splits.val + splits.test
    assert 9_000 < len(examples) < 10_000
    assert len({example.id for example in examples}) == len(examples)
    assert {example.id.rsplit("/", 1)[1] for example in examples} == set(LANGUAGES.values())
    franc = next(example for example in examples if example.id == "currency/Swiss Franc/German")
    assert (franc.prompt, franc.target) == ('The currency "Swiss Franc" in German is "', "Schweizer Franken")


def test_no_source_name_is_in_two_splits() -> None:
    splits = load(CLDR)
    train, val, test = ({example.group for example in split} for split in (splits.train, splits.val, splits.test))
    assert not (train & val or train & test or val & test)
    assert 0.07 < len(splits.test) / 9503 < 0.13


def test_a_split_does_not_move_when_rows_are_added(folder: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p{n}", "completion": "x"} for n in range(200)]
    small, large = load(jsonl(write(folder / "a.jsonl", rows[:150]))), load(jsonl(write(folder / "b.jsonl", rows)))
    assert {e.prompt for e in small.test} <= {e.prompt for e in large.test}
    assert {e.prompt for e in small.train} <= {e.prompt for e in large.train}


def test_equal_prompts_stay_in_one_split(folder: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p{n % 30}", "completion": f"{n}"} for n in range(300)]
    splits = load(jsonl(write(folder / "a.jsonl", rows)))
    train, test = ({str(e.prompt) for e in split} for split in (splits.train, splits.test))
    assert not train & test
    assert sum(len(split) for split in (splits.train, splits.val, splits.test)) == 300


def test_files_for_each_split(folder: Path) -> None:
    def rows(name: str) -> str:
        return str(write(folder / f"{name}.jsonl", [{"context": f"{name}{n}", "target": "t"} for n in range(3)]))

    splits = load(jsonl(rows("train"), val_path=rows("val"), test_path=rows("test")))
    assert [[e.prompt for e in split] for split in (splits.train, splits.val, splits.test)] == [
        [f"{name}{n}" for n in range(3)] for name in ("train", "val", "test")
    ]


def test_the_fingerprint_sees_every_change() -> None:
    a = load(CLDR)
    changed = Splits([*a.train[:-1], Example("id", a.train[-1].prompt, "other", "g")], a.val, a.test)
    assert a.fingerprint() == load(CLDR).fingerprint() != changed.fingerprint()
    assert Splits(a.train, a.test, a.val).fingerprint() != a.fingerprint()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"context": "c", "target": "t"}, ("c", "t")),
        ({"prompt": "p", "completion": "c"}, ("p", "c")),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            ([{"role": "user", "content": "q"}], "a"),
        ),
    ],
)
def test_rows(row: object, expected: object) -> None:
    read = Reader(DatasetConfig()).read(row, "here")
    assert (read.prompt, read.target) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"context": "a", "target": "b"}\n{"context": "a"}\n', "line 2: no target"),
        (b'{"prompt": "a", "completion": 3}\n', "line 1: no target"),
        (b'{"prompt": "a", "completion": " "}\n', "line 1: the target 'completion' is empty"),
        (b'{"context": "a", "target": "b"}\n\xff\xfe\n', "line 2: not UTF-8"),
        (b'{"context": "a", "target": "b"}\n{"context"\n', "line 2: not JSON"),
        (b"[1, 2]\n", "line 1: needs an object"),
        (b'{"body": "a"}\n', "line 1: needs the keys"),
        (b'{"messages": [{"role": "user", "content": "a"}]}\n', "line 1: no target"),
        (b'{"messages": "a"}\n', "line 1: 'messages' needs a list"),
        (b'{"context": "\\ud800", "target": "b"}\n', "line 1: has half of a surrogate pair"),
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(folder: Path, content: bytes, says: str) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(jsonl(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_too_few_rows(folder: Path, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.path=nosuch\.jsonl: no such file"):
        load(jsonl("nosuch.jsonl"))
    with pytest.raises(ConfigError, match=r"dataset\.path: dataset=jsonl needs a file"):
        load(DatasetConfig(source="jsonl"))
    with pytest.raises(ConfigError, match=r"train\.batch_size=100: dataset=jsonl has only \d+ training examples"):
        refuse_impossible(jsonl(rows), 100)
    two = write(folder / "two.jsonl", [{"context": "a", "target": "b"}, {"context": "c", "target": "d"}])
    with pytest.raises(ConfigError, match="examples are left"):
        refuse_impossible(jsonl(two), 1)


def texts(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"p{n}", "completion": "c"} for n in range(count)]


@pytest.mark.parametrize("count", range(3, 12))
def test_few_rows_are_told_the_smallest_shares_that_leave_no_split_empty(folder: Path, count: int) -> None:
    dataset = jsonl(write(folder / "few.jsonl", texts(count)), val_share=0.01, test_share=0.01)
    with pytest.raises(ConfigError) as caught:
        refuse_impossible(dataset, 1)
    message = str(caught.value)
    start = f"dataset=jsonl: no validation and no test examples are left of {count}; "
    assert message.startswith(start) and message.endswith(" leaves some in each, or add rows")
    words = message.removeprefix(start).removesuffix(" leaves some in each, or add rows").split()
    shares = {word.partition("=")[0].removeprefix("dataset."): float(word.partition("=")[2]) for word in words}
    splits = refuse_impossible(jsonl(folder / "few.jsonl", **shares), 1)
    assert splits is not None and splits.train and splits.val and splits.test
    with pytest.raises(ConfigError, match="no test examples are left"):
        refuse_impossible(jsonl(folder / "few.jsonl", **shares | {"test_share": shares["test_share"] - 0.0001}), 1)
    with pytest.raises(ConfigError, match="no validation examples are left"):
        refuse_impossible(jsonl(folder / "few.jsonl", **shares | {"val_share": shares["val_share"] - 0.0001}), 1)


@pytest.mark.parametrize("count", [1, 2])
def test_so_few_rows_that_no_share_helps_are_told_to_add_some(folder: Path, count: int) -> None:
    path = write(folder / "few.jsonl", texts(count))
    with pytest.raises(ConfigError, match=rf"^dataset=jsonl: no .* examples are left of {count}; add rows$"):
        refuse_impossible(jsonl(path), 1)


def test_no_training_row_is_left_where_all_stand_in_the_test(folder: Path) -> None:
    path = write(folder / "a.jsonl", texts(9))
    says = (
        r"^dataset=jsonl: no training and no validation examples are left of 9, as 9 more ask questions of the other splits; add"
    )
    with pytest.raises(ConfigError, match=says):
        refuse_impossible(jsonl(path, test_path=str(path)), 1)


def test_training_rows_that_stand_in_a_given_test_file_are_left_out_and_counted(folder: Path) -> None:
    train = write(folder / "train.jsonl", [{"context": f"p{n}", "target": "t"} for n in range(10)])
    test = write(folder / "test.jsonl", [{"context": f"p{n}", "target": "t"} for n in (3, 4, 99)])
    splits = load(jsonl(train, test_path=str(test), val_share=0.0))
    assert ([e.prompt for e in splits.train], splits.left_out) == ([f"p{n}" for n in (0, 1, 2, 5, 6, 7, 8, 9)], 2)


def test_a_target_that_is_no_label_is_refused(folder: Path) -> None:
    path = write(folder / "a.jsonl", [{"context": f"p{n}", "target": ("pos", "neg")[n % 2]} for n in range(60)])
    assert refuse_impossible(jsonl(path, labels=["Pos", "neg"]), 4) is not None
    with pytest.raises(ConfigError, match=r"dataset\.labels: a\.jsonl:\d+ has the target 'neg', which is none of them"):
        refuse_impossible(jsonl(path, labels=["pos", "foo"]), 4)


def test_a_folder_is_no_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        load(jsonl(folder))


def test_a_byte_order_mark_is_no_error(folder: Path) -> None:
    path = folder / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"context": "a", "target": "b"}\n')
    assert load(jsonl(path)).train[0].target == "b"


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"question": [f"q{n}" for n in range(50)], "answer": [f"a{n}" for n in range(50)]})
    asked = []

    def load_dataset(*arguments: object, **options: object) -> datasets.Dataset:
        asked.append((arguments, options))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DatasetConfig(
        source="hub", id="a/b", revision="abc", prompt_column="question", target_column="answer", test_split="test"
    )
    splits = load(config)
    assert asked == [(("a/b", None), {"split": s, "revision": "abc"}) for s in ("test", "train")]
    assert [e.target for e in splits.test] == [f"a{n}" for n in range(50)]
    assert splits.train == [] and splits.left_out == 50  # the same rows as in the given test split
    labeled = table.add_column("label", [0, 1] * 25).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: labeled)
    config.target_column, config.test_split = "label", None
    with pytest.raises(ConfigError, match=r"dataset\.id=a/b: train, row 0: has keys that are not read: answer; name them in"):
        load(config)
    config.ignore_columns = ["answer"]
    assert {e.target for e in load(config).train} == {"no", "yes"}
    config.prompt_column = "nosuch"
    with pytest.raises(
        ConfigError, match=r"no column nosuch, which dataset\.prompt_column names; it has question, answer, label"
    ):
        load(config)
