"""Data files, experiments, prose and records at random: each is used, or refused in one clear line and exit code 2."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.eval import __main__ as eval_command
from src.files.durable import dump_json, seal_text, write_atomically
from src.record.records import RUNS
from src.sweep.plan import Job
from tests.compare import synthetic
from tests.faults import entry
from tests.faults.files import SWEEPS, damaged, experiments, jsonl, settings_beside
from tests.faults.overrides import KNOWN
from tests.faults.test_fuzz_overrides import STEADY, Figure, Size, bounded, train_to_a_record

ROW = "Bad input: JSONL and YAML files"
FILES = ("rows.jsonl", "good.jsonl", "nosuch", "pipe", "dataset", "train.batch_size")


@pytest.fixture
def data(folder: Path) -> Path:
    """The file whose contents are random, beside a good one."""
    answers = "".join(f'{{"context": "Is {n} even? ", "target": "{("yes", "no")[n % 2]}"}}\n' for n in range(40))
    (folder / "good.jsonl").write_text(answers)
    (folder / "pipe").touch()
    path = folder / "rows.jsonl"
    path.touch()
    return path


def test_a_data_file_trains_or_is_refused_in_one_line(folder: Path, data: Path, size: Size, figure: Figure) -> None:
    before = entry.tree(folder)
    counts: Counter[str] = Counter()
    accepted: dict[str, tuple[Job, bytes]] = {}

    @settings(STEADY, max_examples=size(12, 3000))
    @given(jsonl(), settings_beside())
    def one(content: bytes, line: list[str]) -> None:
        data.write_bytes(content)
        try:
            ended = entry.train("model=tiny", "dataset=jsonl", "dataset.path=rows.jsonl", *line)
            entry.check(ended, FILES, before)
        finally:
            entry.restore(folder, before)
        counts[entry.what(ended)] += 1
        accepted.update({f"{job.run_id} {hash(content)}": (job, content) for job in ended.jobs})

    one()
    chosen = list(accepted.values())[: size(1, 20)]
    for job, content in chosen:
        data.write_bytes(content)
        train_to_a_record(bounded(job.config))
        entry.restore(folder, before)
    figure(ROW, f"JSONL, {entry.tally(counts)}; {len(chosen)} of the accepted trained to a record")


def test_prose_is_read_or_refused_in_one_line(folder: Path, data: Path, size: Size, figure: Figure) -> None:
    before = entry.tree(folder)
    counts: Counter[str] = Counter()

    @settings(STEADY, max_examples=size(5, 300))
    @given(jsonl())
    def one(content: bytes) -> None:
        data.write_bytes(content)
        try:
            ended = entry.train("model=tiny", "forgetting.path=rows.jsonl")
            entry.check(ended, ["forgetting.path=rows.jsonl"], before)
        finally:
            entry.restore(folder, before)
        counts[entry.what(ended)] += 1

    one()
    figure(ROW, f"prose, {entry.tally(counts)}")


def test_an_experiment_composes_or_is_refused_in_one_line(folder: Path, size: Size, figure: Figure) -> None:
    """No tag of YAML makes Python of it: what the strategies name would leave a file."""
    path = folder / "mine" / "experiment" / "x.yaml"
    path.parent.mkdir(parents=True)
    path.touch()
    before = entry.tree(folder)
    counts: Counter[str] = Counter()

    @settings(STEADY, max_examples=size(10, 1000))
    @given(experiments())
    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            ended = entry.train("--config-dir", "mine", "experiment=x", "model=tiny")
            entry.check(ended, ["x.yaml", "experiment", *KNOWN], before)
        finally:
            entry.restore(folder, before)
        counts[entry.what(ended)] += 1

    one()
    figure(ROW, f"YAML, {entry.tally(counts)}")


@pytest.fixture
def records(folder: Path) -> list[str]:
    """A finished run, one that has only its order, and a sweep of both."""
    ids = [synthetic.run(), synthetic.run(seed=1, recorded=False)]
    listed = seal_text(dump_json({"name": "study", "run_ids": ids}))  # the same every time
    write_atomically(RUNS / "sweeps" / "study.json", listed)
    return ids


def test_a_damaged_order_or_list_of_runs_leaves_the_table(
    folder: Path, records: list[str], size: Size, figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warn in one line of records that cannot be read, and compare the rest; without any left, end with one line of error."""
    good = {path: path.read_bytes() for path in (RUNS / records[1] / "config.yaml", RUNS / "sweeps" / "study.json")}
    before = entry.tree(folder)
    counts: Counter[str] = Counter()
    tables: list[int] = []
    monkeypatch.setattr(eval_command, "report", lambda found, arguments: tables.append(len(found.frame())))
    assert entry.evaluate("sweep=study").code == 0 and tables == [2]

    @settings(STEADY, max_examples=size(30, 2000))
    @given(st.sampled_from(sorted(good)), st.data())
    def one(path: Path, drawn: st.DataObject) -> None:
        whole = path.suffix == ".json" and drawn.draw(st.booleans())
        path.write_bytes(drawn.draw(SWEEPS if whole else damaged(good[path])))
        tables.clear()
        ended = entry.evaluate("sweep=study")
        path.write_bytes(good[path])
        assert entry.tree(folder) == before
        *warnings, last = ended.stderr.splitlines() or [""]
        assert all(line.startswith("warning: ") and line.isprintable() for line in warnings), ended.stderr
        if ended.refused:
            assert last.startswith("error: ") and last.isprintable() and "study" in last and not tables
        else:
            assert ended.code == 0 and tables and (last == "" or last.startswith("warning: runs/")), ended
        counts["refused with one line and code 2" if ended.refused else "compared"] += 1

    one()
    figure(ROW, f"config.yaml and lists of runs, read by python -m src.eval, {entry.tally(counts)}")


def test_a_run_is_added_to_a_damaged_list_or_refused_in_one_line(
    folder: Path, records: list[str], size: Size, figure: Figure
) -> None:
    path = RUNS / "sweeps" / "study.json"
    before = entry.tree(folder)
    counts: Counter[str] = Counter()

    @settings(STEADY, max_examples=size(4, 300))
    @given(st.one_of(SWEEPS, damaged(path.read_bytes())))
    def one(content: bytes) -> None:
        path.write_bytes(content)
        ended = entry.train("model=tiny", "sweep=study")
        entry.check(ended, ["runs/sweeps/study.json"], before)
        assert path.read_bytes() == content or not ended.refused
        counts[entry.what(ended)] += 1

    one()
    figure(ROW, f"lists of runs, added to by python -m src.train, {entry.tally(counts)}")
