"""Test the study of rank stability: its norms against dense products, PEFT's modules and the theory; its files; its slopes."""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.rank_stability import measure, plan, report, results
from experiments.rank_stability.norms import Norms, product_norms
from experiments.rank_stability.plan import DEFAULTS, Planned
from src.command import cli
from src.data import batches, datasets
from src.engine.packed.engine import PackedEngine
from src.engine.packed.members import member, slot_order
from src.files.errors import ConfigError
from src.model import device, models
from src.model.losses import target_losses
from src.variants import adapters

SMALL: dict[str, Any] = DEFAULTS | {"model": "tiny", "steps": 4, "rows": 4, "schedule": "constant"}
WORDS = ["model=tiny", "steps=3", "rows=4", "test=4", "logged=0,2"]


def packed(values: dict[str, Any], runs: list[Planned]) -> tuple[PackedEngine, Norms, list[Planned], Any]:
    """(a pack of the tiny model, its norms, the runs by slot, the rows that are watched)"""
    configs = [plan.config_of(run, values) for run in runs]
    order = slot_order([member(config) for config in configs])
    numerics = device.Numerics(torch.device("cpu"), torch.float32, None)
    network, tokenizer = models.load(configs[0].model, numerics.base, numerics.device)
    splits = datasets.load(configs[0].dataset)
    items = batches.tokenize(splits.train[:64], tokenizer, 512, False)
    watched = batches.collate(batches.tokenize(splits.val[:8], tokenizer, 512, False), tokenizer.pad_token_id, numerics.device)
    engine = PackedEngine(network, [configs[at] for at in order], items, tokenizer.pad_token_id, values["steps"], numerics)
    return engine, Norms(engine.model, watched), [runs[at] for at in order], watched


RUNS = [Planned(("fixed",), variant, r, 1e-2, 0) for variant in ("lora", "rslora") for r in (2, 3, 24)]


def update(engine: PackedEngine, run: int, name: str) -> torch.Tensor:
    """s B A [out, in] of a module, from what would be exported."""
    trained = engine.trained(run)
    b, a = (trained[f"base_model.model.{name}.lora_{part}.default.weight"].double() for part in ("B", "A"))
    (scale,) = engine.scales(run)
    return scale * b @ a


def test_a_product_norm_is_that_of_the_product() -> None:
    left, right = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(3, 5, 11, dtype=torch.float64)
    assert torch.allclose(product_norms(left, right), (left @ right).norm(dim=(1, 2)), rtol=1e-12)
    # [3; 4] [1, 2] = [[3, 6], [4, 8]], whose squares sum to 125.
    assert product_norms(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 2.0]])).item() == pytest.approx(math.sqrt(125))


def test_weights_and_changes_are_those_of_the_dense_matrices() -> None:
    engine, norms, runs, _ = packed(SMALL, RUNS)
    frozen = {name: engine.network.get_submodule(name).frozen.dense().double() for name, _, _ in engine.model.blocks.modules}
    engine.advance(0, 2)
    old = [{name: update(engine, run, name) for name in frozen} for run in range(len(runs))]
    before = norms.values()
    engine.advance(2, 3)
    weights, changes = norms.weights(), norms.changes(before)
    for run in range(len(runs)):
        new = {name: update(engine, run, name) for name in frozen}
        ratios = {name: float(new[name].norm() / frozen[name].norm()) for name in frozen}
        moved = {name: float((new[name] - old[run][name]).norm() / frozen[name].norm()) for name in frozen}
        for module in ("q_proj", "down_proj", "all"):
            chosen = [name for name in frozen if module in ("all", name.rpartition(".")[2])]
            assert len(chosen) == (14 if module == "all" else 2)
            assert weights[module][run] == pytest.approx(np.mean([ratios[name] for name in chosen]), rel=1e-9)
            assert changes[module][run] == pytest.approx(np.mean([moved[name] for name in chosen]), rel=1e-6)


def test_activations_are_those_of_pefts_own_modules() -> None:
    """PEFT's model with the trained adapter, rows of the same length side by side: scaling B(A(x)) and W x, as it has them."""
    engine, norms, runs, watched = packed(SMALL, RUNS)
    engine.advance(0, 3)
    found = norms.activations()
    for at in (1, len(runs) - 1):
        config = plan.config_of(runs[at], SMALL)
        base, _ = models.load(config.model, torch.float32, torch.device("cpu"))
        peft: Any = adapters.attach(base, config.variant, config.lora, config.seed).eval()
        peft.load_state_dict(engine.trained(at), strict=False)
        ratios: dict[str, list[float]] = {}
        real = watched.attention_mask.bool()

        def watch(module: Any, args: Any, output: Any, name: str, ratios: Any = ratios, real: Any = real) -> None:
            low = module.lora_A["default"](args[0])
            added = module.scaling["default"] * module.lora_B["default"](low)
            ratios.setdefault(name, []).append(float(added[real].norm() / module.base_layer(args[0])[real].norm()))

        for name, module in peft.named_modules():
            if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
                module.register_forward_hook(lambda m, a, o, name=name: watch(m, a, o, name.rpartition(".")[2]))
        with torch.no_grad():
            peft(input_ids=watched.input_ids, attention_mask=watched.attention_mask)
        assert found["v_proj"][at] == pytest.approx(np.mean(ratios["v_proj"]), rel=1e-4)
        assert found["all"][at] == pytest.approx(np.mean([value for kind in ratios.values() for value in kind]), rel=1e-4)


def test_the_first_gradient_is_as_theory_says() -> None:
    """E ||dL/dB||^2 = gamma^2 r v ||G||^2 with v = 1 / (3 in), for G = dL/dW of the frozen model by autograd."""
    runs = [Planned(("fixed",), variant, 256, 1e-3, seed) for variant in ("lora", "rslora") for seed in (0, 1)]
    engine, norms, runs, _ = packed(SMALL, runs)
    (step,) = engine.advance(0, 1)
    b, a = norms.gradients("B"), norms.gradients("A")
    assert a["all"] == [0.0] * 4
    assert b["all"] == pytest.approx(step.grad_norm, rel=1e-3)  # the engine sums a million squares in fp32
    gamma = {"lora": 16 / 256, "rslora": 1.0}
    config = plan.config_of(runs[0], SMALL)
    network, _ = models.load(config.model, torch.float32, torch.device("cpu"))
    network.requires_grad_(True)
    for seed in (0, 1):
        (rows,) = batches.micro_batches(0, config.train, len(engine.feed.items), seed)
        batch = batches.collate([engine.feed.items[row] for row in rows], engine.feed.pad, torch.device("cpu"))
        network.zero_grad()
        (target_losses(network, batch)[0].sum() / batch.target_tokens).backward()
        squares = [
            float(network.get_submodule(name).weight.grad.double().square().sum()) / (3 * kind.in_features)
            for name, _, kind in engine.model.blocks.modules
        ]
        for at in (at for at, run in enumerate(runs) if run.seed == seed):
            expected = gamma[runs[at].variant] * math.sqrt(256 * sum(squares))
            assert b["all"][at] == pytest.approx(expected, rel=0.05)
    of = {(run.variant, run.seed): norm for run, norm in zip(runs, b["all"], strict=True)}
    assert of["rslora", 0] / of["lora", 0] == pytest.approx(math.sqrt(256), rel=1e-6)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_rate_that_is_best_and_fixed_is_trained_once(folder: Path) -> None:
    Path("rates.csv").write_text("variant,r,learning_rate,n\nlora,2,0.001,4\nrslora,4,0.003,4\n")
    words = ["ranks=2,4", "seeds=0,1", "rates=rates.csv", "runs=5", f"out={folder / 'out'}"]
    assert measure.main([*WORDS, *words]) == 0
    found = rows_of(folder / "out")
    runs = Counter((row["form"], row["variant"], row["r"], row["learning_rate"]) for row in found if row["module"] == "all")
    assert set(runs) == {
        *(("fixed", variant, r, "0.001") for variant in ("lora", "rslora") for r in ("2", "4")),
        ("best", "lora", "2", "0.001"),
        ("best", "rslora", "4", "0.003"),
    }
    assert set(runs.values()) == {2 * 3}, "two seeds, steps 0, 2 and 3"
    both = [{k: v for k, v in row.items() if k != "form"} for row in found if row["variant"] == "lora" and row["r"] == "2"]
    assert all(both.count(row) == 2 for row in both)
    last = [row for row in found if row["step"] == "3" and row["module"] == "all"]
    assert all(row["test_loss"] and row["train_loss"] and row["grad_A"] and not row["change"] for row in last)
    assert report.main([f"folder={folder / 'out'}"]) == 0
    assert (folder / "out" / "rank_stability.png").stat().st_size > 10_000
    assert "-1/2; 0" in (folder / "out" / "tables.md").read_text()


def test_a_pack_that_memory_does_not_hold_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.Study.train

    def train(self: measure.Study, pack: list[Planned]) -> None:
        real(self, pack)
        if len(pack) > 4:
            raise torch.OutOfMemoryError("after its rows were written")

    monkeypatch.setattr(measure.Study, "train", train)
    assert measure.main([*WORDS, "ranks=2,4", "seeds=0-2", f"out={folder}"]) == 0
    keys = Counter(tuple(row[name] for name in results.KEY_COLUMNS) for row in rows_of(folder))
    assert set(keys.values()) == {1}
    assert {key[5] for key in keys} == {"0", "1", "2"}


def test_a_run_that_is_no_longer_finite_has_no_losses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PackedEngine.advance

    def advance(self: PackedEngine, first: int, last: int) -> Any:
        self.alive[0] = False
        return real(self, first, last)

    monkeypatch.setattr(PackedEngine, "advance", advance)
    assert measure.main([*WORDS, "ranks=2,4", "seeds=0", f"out={folder}"]) == 0
    frame, lost = report.load(folder / "results.csv")
    assert lost == ["fixed: lora r=2 seed=0"]
    assert frame["val_loss"].notna().sum() == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variant,r\nlora,4\n", "rates.csv: has no column learning_rate"),
        ("variant,r,learning_rate\ndora,4,1e-3\n", "rates.csv: row 1 needs one of lora, rslora"),
        ("variant,r,learning_rate\nlora,4,fast\n", "rates.csv: row 1 needs a number"),
        ("variant,r,learning_rate\nlora,4,1e-3\nlora,4,3e-3\n", "rates.csv: row 2 names lora r=4 twice"),
        ("variant,r,learning_rate\n", "has no rows"),
        ("variant,r,learning_rate\nlora,4,\n", "rates.csv: row 1 has no learning_rate"),
        ("variant,r,learning_rate\nlora,4.5,1e-3\n", "rates.csv: row 1 needs a whole number"),
        ("variant,r,learning_rate\nlora,4,1e-3,8\n", "rates.csv: row 1 has 4 cells for 3 columns"),
        ("variant,r,learning_rate\nlora,4,1e-3\nlora,8,1.25e-", "rates.csv: row 2 has no end of line, so it may be cut off"),
        ("variant,r,learning_rate\nlora,4,1e-3\nlora,8,1", "rates.csv: row 2 has no end of line, so it may be cut off"),
    ],
)
def test_rates_that_say_no_rate_are_refused(folder: Path, text: str, said: str) -> None:
    Path("rates.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        measure.main(["rates=rates.csv"])


def test_rates_may_come_from_a_program_that_marks_its_encoding(folder: Path) -> None:
    Path("rates.csv").write_bytes(b"\xef\xbb\xbfvariant,r,learning_rate\r\nlora,4,1e-3\r\n")
    assert plan.read_rates(Path("rates.csv")) == {("lora", 4): 1e-3}


def test_ranges_may_overlap_where_each_adds_something() -> None:
    read = plan.numbers(0, 9)
    assert read("0-3,2-5") == [0, 1, 2, 3, 4, 5] and read("8,1-2,0") == [0, 1, 2, 8]


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words, said in (
        (measure.main, ["rates=nowhere.csv"], "nowhere.csv: cannot be read"),
        (measure.main, ["seeds=5-1"], "seeds=5-1: needs whole numbers"),
        (measure.main, ["ranks=4,8,4"], "ranks=4,8,4: needs 4 only once"),
        (measure.main, ["seeds=2,0-3"], "seeds=2,0-3: needs 2 only once"),
        (measure.main, ["logged=0-3,0-3"], "logged=0-3,0-3: needs 0-3 only once"),
        (report.main, ["folder=nowhere"], "nowhere/results.csv: cannot be read"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda command=command, words=words: command(words))  # type: ignore[misc]
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_the_committed_tables_come_from_the_committed_results(tmp_path: Path) -> None:
    shutil.copy(report.HERE / "results.csv", tmp_path)
    assert report.main([f"folder={tmp_path}"]) == 0
    assert (tmp_path / "tables.md").read_bytes() == (report.HERE / "tables.md").read_bytes()


def test_the_readmes_numbers_are_those_of_the_committed_results() -> None:
    readme = " ".join((report.HERE / "README.md").read_text().split())
    tables = (report.HERE / "tables.md").read_text()
    said_of = {
        "norm of dL/dB, step 0": "norm of dL/dB, step 0",
        "change of s B A in one update, relative to W, step 1": "change of s B A in Adam's first update, relative to W",
        "RMS of s B A x, relative to W x, step 2": "RMS of s B A x after it, relative to W x",
        "norm of dL/dB, step 300": "norm of dL/dB, step 300",
        "RMS of s B A x, relative to W x, step 300": "RMS of s B A x, step 300",
    }
    for name, said in said_of.items():
        line = next(line for line in tables.splitlines() if line.startswith(f"| {name} |"))  # the first: at one rate
        both = " | ".join(cell.strip() for cell in line.split("|")[2:4])
        assert f"| {said} | {both} |" in readme
    runs = pd.read_csv(report.HERE / "results.csv")
    runs = runs[runs["module"] == "all"]
    assert len(runs[["form", "variant", "r", "seed"]].drop_duplicates()) == 132 == runs["test_loss"].notna().sum()
    at_2, last = (runs[runs["step"] == step].set_index(["form", "variant", "r", "seed"]).sort_index() for step in (2, 300))

    def between(a: tuple[str, str, int], b: tuple[str, str, int], digits: str) -> str:
        d = (last["test_loss"].loc[a] - last["test_loss"].loc[b]).to_numpy()
        half = 2.570582 * d.std(ddof=1) / math.sqrt(6)  # t of 5 degrees
        d = d if digits[0] == "+" or d.mean() > 0 else -d
        return f"{d.mean():{digits}} [{d.mean() - half:{digits}}, {d.mean() + half:{digits}}]"

    for a, b, digits in (
        (("fixed", "rslora", 256), ("fixed", "rslora", 4), ".3f"),
        (("fixed", "lora", 256), ("fixed", "lora", 4), ".3f"),
        (("best", "rslora", 256), ("best", "rslora", 4), ".3f"),
        (("best", "lora", 256), ("best", "lora", 4), ".3f"),
        (("best", "lora", 256), ("best", "lora", 16), "+.3f"),
        (("best", "rslora", 4), ("best", "lora", 4), ".3f"),
        (("best", "rslora", 256), ("best", "lora", 256), ".3f"),
        (("best", "rslora", 256), ("fixed", "rslora", 256), ".3f"),
    ):
        assert between(a, b, digits) in readme, (a, b, between(a, b, digits))
    for frame, said in ((at_2, "is 0.67 times that of r = 4 under alpha/r, and 5.4 times"), (last, "it is 0.82 and 1.38 times")):
        logs = np.log(frame["activation"])
        ratios = [math.exp((logs.loc["fixed", v, 256] - logs.loc["fixed", v, 4]).mean()) for v in ("lora", "rslora")]
        digits = (".2f", ".1f") if frame is at_2 else (".2f", ".2f")
        assert all(f"{ratio:{each}}" in said for ratio, each in zip(ratios, digits, strict=True)) and said in readme
    for variant, said in (("rslora", "0.110, 0.053, 0.062 and 0.084"), ("lora", "0.080, 0.066, 0.060 and 0.057")):
        means = [math.exp(np.log(last["activation"].loc["best", variant, r]).mean()) for r in (4, 16, 64, 256)]
        assert said in readme and re.findall(r"[.\d]+", said) == [f"{mean:.3f}" for mean in means]
    for ranks, said in (([4, 8, 16], "-0.009 [-0.024, +0.006]"), ([64, 128, 256], "+0.169 [+0.160, +0.178]")):
        table = last["activation"].loc["fixed", "rslora"].unstack("r")[ranks]
        assert report.shown(report.mean_interval(report.slopes(table))) == said and said in readme


def test_the_committed_rates_are_those_that_were_trained() -> None:
    rates = plan.read_rates(report.HERE / "rates.csv")
    runs = pd.read_csv(report.HERE / "results.csv")
    best = runs[runs["form"] == "best"].groupby(["variant", "r"])["learning_rate"].unique()
    assert {key: list(trained) for key, trained in best.items()} == {key: [rate] for key, rate in rates.items()}


def test_slopes_are_found_for_each_seed_and_their_interval_is_students() -> None:
    """c r^p for three seeds of p -0.6, -0.5, -0.4: mean -0.5, half width 4.303 * 0.1 / sqrt 3 (t of 2 degrees, 97.5 %)."""
    ranks = [4, 16, 64]
    table = pd.DataFrame([[c * r**p for r in ranks] for c, p in ((1, -0.6), (5, -0.5), (0.1, -0.4))], columns=ranks)
    found = report.mean_interval(report.slopes(table))
    assert (found.mean, found.n) == (pytest.approx(-0.5), 3)
    assert found.high - found.mean == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    table.loc[3] = [1.0, math.nan, 1.0]
    assert len(report.slopes(table)) == 3, "a seed without all ranks has no slope"
