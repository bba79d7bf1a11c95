"""A key that holds a text keeps what was typed, on the command line and in sweeps; in YAML it has to stand in quotes."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.command import admission, texts
from src.command.cli import compose, compose_jobs, register_schema
from src.config.schema import CONF_FOLDER, Config
from src.config.values import CHOICES, resolve, value_at
from src.files.errors import ConfigError
from src.record.records import RunFolder, run_id
from tests.command.test_command_line import assert_refused
from tests.conftest import TINY

# What Hydra reads as a number or a truth value, or YAML does, and a few plain texts.
WORDS = (
    "2024_01", "1_000", "1e5", "1234567e1", "007", "1.50", ".5", "5.", "+5", "-1_0", "0x1F", "inf", "NaN", "1E-3",
    "true", "False", "TRUE", "on", "no", "Yes", "plain", "a1", "2024-01", "1_0/x", "v1.0",
)  # fmt: skip


def text_keys(of: type = Config, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(dotted key, whether it is a list) of each text of the schema, but for those with a choice of their own."""
    for name, hint in typing.get_type_hints(of).items():
        key = f"{prefix}{name}"
        options = set(typing.get_args(hint)) or {hint}
        nested = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if isinstance(nested, type):
            yield from text_keys(nested, f"{key}.") if key != "model.shape" else ()
        elif key not in CHOICES and key != "variant.name" and (str in options or list[str] in options or hint is typing.Any):
            yield key, str not in options


KEYS = dict(text_keys())


def test_the_keys_are_all_there() -> None:
    assert {"sweep", "dataset.path", "dataset.revision", "model.id", "lora.target_modules", "dataset.labels"} <= KEYS.keys()
    assert "lora.r" not in KEYS and KEYS["dataset.labels"] and len(KEYS) > 20


@pytest.mark.parametrize("word", WORDS)
def test_every_key_of_a_text_keeps_what_was_typed(word: str) -> None:
    words = [f"{key}=[{word},x]" if many else f"{key}={word}" for key, many in KEYS.items()]
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_FOLDER), version_base="1.3"):
        node = GlobalHydra.instance().config_loader().load_configuration("config", texts.as_typed(words), RunMode.RUN)
    config = {key: value_at(node, key) for key in KEYS}  # type: ignore[arg-type]
    assert config == {key: [word, "x"] if many else word for key, many in KEYS.items()}


@pytest.mark.parametrize(("word", "value"), [
    ("sweep=null", None), ("sweep='1_0'", "1_0"), ('sweep="null"', "null"), ("sweep= 1_0 ", "1_0"), ("+sweep=1_0", "1_0"),
    ("++sweep=1_0", "1_0"), ("sweep=str(1_0)", "1_0"), ("sweep=mine", "mine"),
])  # fmt: skip
def test_null_quotes_and_signs_mean_what_they_did(word: str, value: str | None) -> None:
    assert compose([word]).sweep == value


def test_numbers_stay_numbers() -> None:
    config = compose(["lora.r=1_0", "train.lr=1e-4", "train.epochs=1e0", "force=true", "model.hold_dequantised=false", "seed=7"])
    assert (config.lora.r, config.train.lr, config.train.epochs, config.force, config.data_seed) == (10, 1e-4, 1.0, True, 7)
    assert compose(["lora.target_modules=[1_0,q_proj]"]).lora.target_modules == ["1_0", "q_proj"]
    shape = compose(["model=tiny", "model.shape={model_type:1_0,hidden_size:1_28}"]).model.shape
    assert shape is not None and (shape.model_type, shape.hidden_size) == ("1_0", 128)


def test_words_that_are_plain_stay_as_they_are() -> None:
    words = [
        "sweep=mine",
        "lora.r=1_0",
        "seed=range(0,3)",
        "train.lr=1e-3,1e-4",
        "dataset.path=null",
        "variant=lora,dora",
        "x",
        "=",
    ]
    words += [
        "dataset.subset=sort(b,a)",
        "sweep=range(2018,2021)",
        "dataset.labels=[a,b]",
        "~sweep",
        "sweep=a\\,b",
        "pack.compile=true",
        "sweep='2_0'",
    ]
    assert texts.as_typed(words) == words


def test_numbers_that_only_numbers_can_be_sorted_as_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^dataset.labels=sort\(\[2_0,1_0\]\): dataset.labels holds texts"):
        compose(["dataset.labels=sort([2_0,1_0])"])


@settings(deadline=None, max_examples=100)
@example("null")
@example("NULL")
@given(st.text("0123456789_.eE+-truefalsn", min_size=1, max_size=8))
def test_any_word_that_is_read_at_all_is_kept(word: str) -> None:
    """Whatever Hydra's grammar accepts: the text, but for null."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    try:
        parser.parse_override(f"sweep={word}")
    except HydraException:
        return
    (typed,) = texts.as_typed([f"sweep={word}"])
    assert parser.parse_override(typed).value() == (None if word.casefold() == "null" else word)


def test_both_ways_to_compose_the_jobs_of_a_sweep_keep_texts() -> None:
    """``++`` goes through Hydra, the others on the fast way."""
    jobs = [["sweep=2024_01", f"{sign}dataset.subset={word}", "lora.r=4"] for sign in ("", "++") for word in ("1_0", "true", "x")]
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_FOLDER), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        nodes = compose_jobs(loader, loader.load_configuration("config", [], RunMode.MULTIRUN), jobs)
    configs = [resolve(node) for node, _ in nodes]
    assert [config.dataset.subset for config in configs] == ["1_0", "true", "x"] * 2
    assert {config.sweep for config in configs} == {"2024_01"}
    assert [run_id(config) for config in configs[:3]] == [run_id(config) for config in configs[3:]]


@pytest.mark.parametrize("word", WORDS)
def test_a_record_reads_back_what_it_wrote(folder: Path, word: str) -> None:
    config = compose([f"dataset.revision='{word}'", f"dataset.train_files=['{word}']"])
    record = RunFolder(run_id(config))
    record.path.mkdir(parents=True)
    record.write_config(config)
    assert record.read_config() == config


def yaml_problem(folder: Path, group: str, text: str) -> str:
    """What a command says that chooses a YAML file of this text from a folder of its own."""
    (folder / "conf" / group).mkdir(parents=True, exist_ok=True)
    (folder / "conf" / group / "own.yaml").write_text(text)
    register_schema()
    options = admission.read_options(["--config-dir", str(folder / "conf"), f"{group}=own"])
    try:
        admission.refuse_command(options)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("word", ["2024_01", "1e5", "1_000", "no", "on", "true", "1.5", "0x1F", "12:30"])
def test_yaml_without_quotes_is_refused(folder: Path, word: str) -> None:
    said = yaml_problem(folder, "dataset", f"source: jsonl\nsubset: {word}\n")
    assert said.startswith(f"{folder}/conf/dataset/own.yaml: line 2: dataset.subset is a text, and {word} is read as ")
    assert said.endswith(f"; write it in quotes: '{word}'")
    assert yaml_problem(folder, "dataset", f"source: jsonl\nsubset: '{word}'\npath: null\nmax_length: 1_0_0\n") == ""


@pytest.mark.parametrize(("text", "key"), [
    ("sweep: 2024_01", "sweep"),
    ("dataset:\n  labels: [a, no]", "dataset.labels"),
    ("lora:\n  target_modules: [q_proj, 1_0]", "lora.target_modules"),
    ("hydra:\n  sweeper:\n    params:\n      dataset.subset: 2019_10", "hydra.sweeper.params.dataset.subset"),
    ("hydra:\n  sweeper:\n    params:\n      variant: 1e5", "hydra.sweeper.params.variant"),
    ("model:\n  shape:\n    model_type: 1e5", "model.shape.model_type"),
])  # fmt: skip
def test_yaml_of_an_experiment_is_refused_by_its_dotted_key(folder: Path, text: str, key: str) -> None:
    assert f": {key} is a text, and " in yaml_problem(folder, "experiment", f"# @package _global_\n{text}\n")


def test_a_file_that_is_not_chosen_does_not_matter(folder: Path) -> None:
    (folder / "conf/dataset").mkdir(parents=True)
    (folder / "conf/dataset/other.yaml").write_text("subset: 1_0\n")
    assert yaml_problem(folder, "dataset", "source: jsonl\n") == ""


def test_no_file_of_ours_has_a_number_for_a_text() -> None:
    register_schema()
    for group in texts.GROUPS:
        for path in (CONF_FOLDER / group).rglob("*.yaml"):
            package = "" if group == "experiment" else group
            assert texts._problems(path, package, 0) == (), path


def test_a_sweep_and_its_table_are_called_what_was_typed(command, folder: Path, rows: Path) -> None:
    """With -m through the sweeper, in a YAML file of its own name, alone, and in the table's command."""
    (folder / "conf/experiment").mkdir(parents=True)
    (folder / "conf/experiment/1_0.yaml").write_text("# @package _global_\nlora:\n  r: 4\n")
    named = ["--config-dir", str(folder / "conf"), "-m", "experiment=1_0", "sweep=2024_01", "train.steps=1", "variant=lora"]
    done = command("src.train", *named, *TINY, "seed=0,1", "tracking.project=1e5")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (folder / "runs/sweeps").glob("[!.]*.json")] == ["2024_01.json"]
    for path in (folder / "runs").glob("*/result.json"):
        assert json.loads(path.read_text())["sweep"] == "2024_01"
        assert RunFolder(path.parent.name).read_config().tracking.project == "1e5"
    assert command("src.eval", "sweep=2024_01").returncode == 0
    assert (folder / "reports/2024_01/report.html").is_file()


def test_of_several_experiments_a_bad_file_is_refused_before_the_first_job(command, folder: Path) -> None:
    (folder / "conf/experiment").mkdir(parents=True)
    for name, value in (("good", "'1_0'"), ("bad", "1_0")):
        (folder / f"conf/experiment/{name}.yaml").write_text(f"# @package _global_\nmodel:\n  revision: {value}\n")
    done = command("src.train", "--config-dir", str(folder / "conf"), "-m", *TINY, "experiment=good,bad")
    assert_refused(done, folder, "bad.yaml: line 3: model.revision is a text, and 1_0 is read as a number")
