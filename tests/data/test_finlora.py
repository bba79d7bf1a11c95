"""FinLoRA's named configs: all there, each as published, each matched one at the same scale."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from experiments.finlora_small.configs import FOLDER, METHODS, configs
from src.command.cli import compose
from src.compare.assay import assay
from src.compare.frame import gather
from src.config.schema import Config
from src.variants.methods.scaling import effective_scale
from tests.conftest import Run

PUBLISHED = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def composed(name: str) -> Config:
    return compose([f"experiment=finlora/{name}"])


def scale(config: Config) -> float:
    return effective_scale(config.variant.scaling, config.lora.alpha, config.lora.r)


def test_the_files_are_those_of_the_table() -> None:
    written = {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8") for path in FOLDER.glob("**/*.yaml")}
    assert written == dict(configs()), "python -m experiments.finlora_small.configs writes them again"


def test_there_are_39_and_8_and_each_once_more_matched() -> None:
    """The counts of lora/finetune_configs.json by suffix, and of finetune_configs_plain.json."""
    counts = Counter(name.partition("_llama_3_1_8b_")[2] for name in PUBLISHED)
    published = {"4bits_r4": 7, "8bits_r8": 6, "8bits_r8_dora": 9, "8bits_r8_dora_a32": 8, "8bits_r8_rslora": 9, "fp16_r8": 8}
    assert counts == published and sum(counts.values()) == 39 + 8
    assert sorted(path.stem for path in (FOLDER / "matched").iterdir()) == PUBLISHED


@pytest.mark.parametrize(
    ("name", "variant", "r", "wanted", "optimizer"),
    [
        ("sentiment_llama_3_1_8b_4bits_r4", "qlora", 4, 4.0, "paged_adamw_8bit"),
        ("formula_llama_3_1_8b_8bits_r8", "lora_8bit", 8, 2.0, "adamw_bnb_8bit"),
        ("cfa_llama_3_1_8b_8bits_r8_dora", "dora_8bit", 8, 2.0, "adamw_bnb_8bit"),
        ("ner_llama_3_1_8b_8bits_r8_dora_a32", "dora_8bit", 8, 4.0, "adamw_bnb_8bit"),
        ("xbrl_term_llama_3_1_8b_8bits_r8_rslora", "rslora_8bit", 8, 5.65685, "adamw_bnb_8bit"),
        ("headline_llama_3_1_8b_fp16_r8", "lora", 8, 2.0, "adamw"),
    ],
)
def test_a_config_is_the_published_one(name: str, variant: str, r: int, wanted: float, optimizer: str) -> None:
    config = composed(name)
    assert (config.model.name, config.variant.name, config.lora.r) == ("llama_3_1_8b", variant, r)
    assert scale(config) == pytest.approx(wanted, abs=1e-5)
    assert (config.train.optimizer, config.engine, config.seed) == (optimizer, "peft", 42)
    assert (config.train.lr, config.train.schedule, config.train.warmup_steps) == (1e-4, "cosine", 10)
    assert (config.lora.dropout, config.lora.target_modules) == (0.05, ["k_proj", "q_proj", "v_proj"])
    assert config.dataset.name == f"finlora_{name.partition('_llama')[0]}"


def test_the_batch_is_that_of_four_gpus() -> None:
    """The released sentiment adapter says: 4 GPUs, total train batch size 64."""
    train = composed("sentiment_llama_3_1_8b_8bits_r8_dora").train
    assert train.batch_size * train.grad_accum == 64 and train.epochs == 4


def test_a_matched_config_differs_in_alpha_alone_and_all_have_one_scale() -> None:
    methods = {method.suffix for method in METHODS}
    names = [name for name in PUBLISHED if name.startswith(("sentiment_", "formula_"))]
    assert {name.partition("_llama_3_1_8b_")[2] for name in names} == methods
    for name in names:
        published, matched = composed(name), composed(f"matched/{name}")
        assert scale(matched) == 2.0
        matched.lora.alpha = published.lora.alpha
        assert matched == published


def rows(config: Config, name: str, count: int) -> str:
    """Rows in the form of a published file."""
    answers = {
        "label": config.dataset.labels or ["positive"],
        "number": ["15092.44", "-3.5", "1200"],
        "tags": ["us-gaap:Revenues", "us-gaap:Assets", "us-gaap:Cash"],
    }.get(config.dataset.answer, ["Amount of revenue.", "Cost of goods sold.", "Cash paid."])
    lines = (
        {"context": f"Instruction: what is row {index} of {name}?\nAnswer: ", "target": answers[index % len(answers)]}
        for index in range(count)
    )
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def published_files(config: Config, folder: Path) -> Path:
    for name, count in [(name, 400) for name in config.dataset.train_files or []] + [
        (name, 8) for name in config.dataset.test_files or []
    ]:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rows(config, name, count))
    return folder / "data"


# One of each method and of each task; with --long all 47.
SOME = [
    *("sentiment_llama_3_1_8b_4bits_r4", "headline_llama_3_1_8b_8bits_r8_dora", "ner_llama_3_1_8b_8bits_r8_dora_a32"),
    *("finer_llama_3_1_8b_8bits_r8_rslora", "xbrl_extract_llama_3_1_8b_fp16_r8", "financebench_llama_3_1_8b_8bits_r8"),
    *("formula_llama_3_1_8b_8bits_r8", "xbrl_term_llama_3_1_8b_8bits_r8", "cfa_llama_3_1_8b_8bits_r8"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_trains_scores_and_lands_in_a_table(name: str, run: Run, folder: Path, pytestconfig: pytest.Config) -> None:
    """The tiny model in the place of Llama, two steps in the place of the epochs; all else is as the config says."""
    if name not in SOME and not pytestconfig.getoption("--long"):
        pytest.skip("nine of them run each method and each task; all with --long")
    data = published_files(composed(name), folder)
    config = compose([
        *(f"experiment=finlora/{name}", "model=tiny", f"dataset.path={data}", "train.epochs=null", "train.steps=2"),
        *("train.batch_size=2", "train.grad_accum=1", "eval.test_examples=4", "eval.max_new_tokens=4", "tracking=disabled"),
    ])  # fmt: skip
    record, result = run(config=config)
    assert result["status"] == "ok", result["reason"]
    assert result["optimizer"] == composed(name).train.optimizer
    table = assay(gather([record.run_id]), "test/loss", "lora", None, None).comparison.table
    assert list(table["status"]) == ["ok"] and table["test_loss_mean"].notna().all()
