"""Rows of JSON lists, CSV and archives; JSONL is in test_datasets.py. What is malformed is one line with file and place."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.config.schema import DatasetConfig
from src.data import inputs, rows
from src.data.columns import FORMATS, Reader
from src.files.errors import ConfigError

KEY = "dataset.path"


def read(path: Path) -> list[rows.Row]:
    return list(rows.rows(rows.open_file(str(path), KEY)))


def test_a_json_list_and_a_json_of_lines(folder: Path) -> None:
    path = folder / "a.json"
    path.write_bytes(b'\xef\xbb\xbf\n [{"a": 1}, {"a": 2}]')
    assert [(row.number, row.value) for row in read(path)] == [(1, {"a": 1}), (2, {"a": 2})]
    assert read(path)[1].where == f"{KEY}: {path}, row 2"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert [row.where for row in read(path)] == [f"{KEY}: {path}, line {n}" for n in (1, 2)]


def test_csv_by_the_names_of_its_first_row(folder: Path) -> None:
    path = folder / "a.csv"
    path.write_bytes('\ufefftext,category\r\n"one, ""two""\nthree",é\r\n\r\nx,\r\n'.encode())
    assert [row.value for row in read(path)] == [{"text": 'one, "two"\nthree', "category": "é"}, {"text": "x", "category": None}]


def test_tsv_has_tabs_between_its_cells(folder: Path) -> None:
    path = folder / "a.TSV"
    path.write_bytes('\ufefftext\tcategory\r\none, two\t"a ""b"""\r\nx\t\r\n'.encode())
    assert [row.value for row in read(path)] == [{"text": "one, two", "category": 'a "b"'}, {"text": "x", "category": None}]


def test_parquet_is_read_with_its_lists_and_without_the_empty_keys_of_tables(folder: Path) -> None:
    from datasets import Dataset

    values = [{"a": "x", "m": [{"k": "v"}]}, {"a": None, "m": [{"l": 1}]}]
    Dataset.from_list(values).to_parquet(str(folder / "a.parquet"))
    assert [(row.number, row.value) for row in read(folder / "a.parquet")] == [(1, values[0]), (2, values[1])]
    assert read(folder / "a.parquet")[1].where == f"{KEY}: {folder / 'a.parquet'}, row 2"
    whole = (folder / "a.parquet").read_bytes()
    for length in range(0, len(whole), 97):
        (folder / "a.parquet").write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"a\.parquet: not Parquet \("):
            read(folder / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"[1, 2", "not JSON"),
        ("a.json", b"[]", "the file is empty"),
        ("a.json", b'["\xff"]', "not UTF-8 (byte 3 of the file)"),
        ("a.json", b'["\\ud800"]', "half of a surrogate pair"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"a,b\n", "the file is empty"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "row 2: has 3 cells where the first line names 2"),
        ("a.csv", b"a,b,a\n1,2,3\n", "has the column 'a' twice, and only one can be read"),
        ("a.tsv", b"a\tb\n1\t2\t3\n", "row 1: has 3 cells where the first line names 2"),
        ("a.tsv", b'a\tb\n1\t"2\n3\t4"\n', "row 1: a quotation mark opens a cell that goes on in the next"),
        ("a.tsv", b'a\tb\n1\t"2\n', "row 1: not TSV (unexpected end of data)"),
        ("a.parquet", b"", "not Parquet ("),
        ("a.parquet", b"PAR1 and so on PAR1", "not Parquet ("),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b", "target": "c"}\n', "line 1: has the key 'prompt' twice"),
        ("a.json", b'[{"a": {"b": 1, "b": 2}}]', "has the key 'b' twice"),
        ("a.csv", b"a,b\n1\n", "row 1: has 1 cells"),
        ("a.csv", b'a,b\n1,"2\n', "row 1: not CSV"),
        ("a.csv", b'a,b\n1,2\n1,"2"3\n', "row 2: not CSV"),
        ("a.csv", b"a,b\n1,\xff\n", "not UTF-8 (byte 7 of the file)"),
        ("a.csv", b"a,b\n1," + b"x" * 200_000, "row 1: not CSV (field larger"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(folder: Path, name: str, content: bytes, says: str) -> None:
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_a_folder_or_archive_is_found_where_it_may_stand(folder: Path) -> None:
    assert rows.places("boolq/train.json") == ["boolq/train.json", "boolq_train.json", "train.json"]
    for number, place in enumerate(("train.json", "boolq_train.json", "boolq/train.json")):
        path = folder / "data" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))  # each stands before the one that was there already
        with zipfile.ZipFile(folder / "data.zip", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, f"top/{place}")
        for where in ("data", "data.zip"):
            assert rows.open_member(where, KEY, "boolq/train.json", None).contents == str(number).encode()
    for where in ("data", "data.zip"):
        with pytest.raises(ConfigError, match=f"{KEY}={where}: has no test/x.csv, which is from somewhere"):
            rows.open_member(where, KEY, "test/x.csv", "somewhere")


def archive_of(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", content)
    return path


def test_an_archive_is_unpacked_up_to_a_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive_of(folder / "a.zip", b"0" * 2**21)
    monkeypatch.setattr(inputs, "UNPACKED", 2**21)
    assert len(inputs.member(str(path), KEY, "a.csv") or b"") == 2**21
    monkeypatch.setattr(inputs, "UNPACKED", 2**20)
    with pytest.raises(ConfigError, match="csv in it needs at most 1 MiB"):
        inputs.member(str(path), KEY, "a.csv")
    monkeypatch.setattr(inputs, "ENTRIES", 0)
    with pytest.raises(ConfigError, match="at most 0 files"):
        inputs.member(str(path), KEY, "a.csv")


def test_a_damaged_archive_is_refused_in_one_line(folder: Path) -> None:
    """Every byte of it flipped once: it is read as it was, has no such file, or is refused."""
    content = json.dumps([list(range(40))]).encode()
    path = archive_of(folder / "a.zip", content)
    good, refused = path.read_bytes(), 0
    for index in range(len(good)):
        path.write_bytes(good[:index] + bytes([good[index] ^ 0xFF]) + good[index + 1 :])
        try:
            assert inputs.member(str(path), KEY, "a.csv") in (content, None)
        except ConfigError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > len(good) / 2
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(ConfigError, match="is no archive that can be read"):
            inputs.member(str(path), KEY, "a.csv")


CELLS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=3), max_size=2))
NAMES = st.sampled_from(["question", "question_stem", "answer", "answerKey", "choices", "instruction", "input", "output", "text",
                         "category", "label_text", "mr", "ref", "meaning_representation", "human_reference", "context", "target",
                         "messages"])  # fmt: skip
OPTIONS = st.dictionaries(st.sampled_from(["text", "label"]), CELLS, max_size=2)
ROWS = st.one_of(CELLS, st.dictionaries(NAMES, st.one_of(CELLS, OPTIONS, st.just("Answer format: a/b")), max_size=6))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), ROWS)
def test_any_row_is_read_or_refused_in_one_line(name: str, row: object) -> None:
    try:
        read = Reader(DatasetConfig(format=name)).read(row, "rows, line 1")
    except ConfigError as error:
        assert str(error).startswith("rows, line 1: ") and "\n" not in str(error)
    else:
        assert read.target.strip() and read.question is not None and (not read.choices or read.target in read.choices)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["a.csv", "a.tsv", "a.json", "a.parquet", "a.zip"]),
    st.one_of(st.binary(max_size=60), st.text('a,"\n\r[]{}:\0 ', max_size=40)),
)
def test_any_bytes_are_rows_or_refused_in_one_line(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        if name == "a.zip":
            assert inputs.member(name, KEY, "a.csv") is None
        else:
            assert read(Path(name))
    except ConfigError as error:
        assert name in str(error) and str(error).isprintable()
