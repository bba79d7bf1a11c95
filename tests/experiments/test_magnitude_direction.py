"""dM and dD against fp64, PEFT's merge and hand-computed rows; the correlations against their definitions."""

from __future__ import annotations

import copy
import gzip
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.magnitude_direction import correlation, measure, report
from experiments.magnitude_direction.decomposition import direction_change, magnitude_change, of_pack, of_weights
from experiments.magnitude_direction.runs import Plan, train_full
from src.command.cli import compose
from src.data.batches import Item
from src.data.datasets import Example
from src.engine.packed.engine import PackedEngine
from src.engine.peft import PeftEngine
from src.files.errors import ConfigError
from src.model import models
from src.model.device import Numerics
from src.variants import quantization
from tests.conftest import ENVIRONMENT, TINY

FP32 = Numerics(torch.device("cpu"), torch.float32, None)
COMMAND = [sys.executable, "-m", "experiments.magnitude_direction.measure"]
SMALL = ["model=tiny", "steps=4", "batch=2", "at=2,3,4", "seeds=0", "ranks=2", "val=4", "test=4"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=250)


def items(count: int = 16) -> list[Item]:
    rows = torch.randint(3, 259, (count, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return [Item(Example(str(at), "", "", str(at)), row[:5], [*row[5:], 1], False) for at, row in enumerate(rows)]


def test_rows_by_hand() -> None:
    w = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    v = torch.tensor([[4.0, 3.0], [0.0, 3.0], [0.0, -2.0]])
    # 1 - cos: 1 - 24/25, 1 - 0, 1 + 1. Norms: 5 to 5, 1 to 3, 2 to 2.
    assert direction_change(v, w).item() == pytest.approx((0.04 + 1 + 2) / 3)
    assert magnitude_change(w, v - w).item() == pytest.approx(2 / 3)


def test_no_digits_are_lost_where_hardly_anything_moved() -> None:
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(8, 64, 576, generator=draw) * 0.1
    delta = torch.randn(8, 64, 576, generator=draw) * 1e-5
    exact_w, exact_v = w.double(), w.double() + delta.double()
    dD = (1 - torch.cosine_similarity(exact_v, exact_w, dim=-1)).mean(-1)
    dM = (exact_v.norm(dim=-1) - exact_w.norm(dim=-1)).abs().mean(-1)
    assert 1e-9 < dD.max() < 1e-8  # below what fp32 can tell from 1
    torch.testing.assert_close(direction_change(w + delta, w).double(), dD, rtol=1e-3, atol=0)
    torch.testing.assert_close(magnitude_change(w, delta).double(), dM, rtol=1e-4, atol=0)


def test_a_row_of_zeros_gives_numbers() -> None:
    w = torch.zeros(1, 2)
    assert magnitude_change(w, torch.tensor([[3.0, 4.0]])).item() == pytest.approx(5)
    assert math.isfinite(direction_change(torch.tensor([[3.0, 4.0]]), w).item())


def test_a_pack_moved_as_what_peft_merges(tmp_path: Path) -> None:
    """Norms and cosines of the merged weights in fp64: the definition of the paper, by another way to W'."""
    from peft import PeftModel

    configs = [
        compose(["model=tiny", "tracking=disabled", f"variant={variant}", f"lora.r={r}", "train.lr=0.01", "train.steps=6"])
        for variant, r in (("lora", 4), ("lora", 3), ("dora", 4), ("dora", 2))
    ]
    plain, _ = models.load(configs[0].model, torch.float32, FP32.device)
    engine = PackedEngine(copy.deepcopy(plain), configs, items(), 0, 6, FP32)
    assert all(dM == dD == 0 for _, _, _, dM, dD, _ in of_pack(engine)[0]), "a fresh adapter moves nothing"
    engine.advance(0, 6)
    before = {name: layer.weight.double() for name, layer in quantization.linear_layers(plain)}
    for place, (config, found) in enumerate(zip(configs, of_pack(engine), strict=True)):
        folder = tmp_path / str(place)
        engine.save_adapter(place, config, folder)
        merged = PeftModel.from_pretrained(copy.deepcopy(plain).double(), str(folder)).merge_and_unload()
        after = {name: layer.weight.double() for name, layer in quantization.linear_layers(merged)}
        assert len(found) == len(before)
        for (module, layer, d_in, dM, dD, norm), (name, w) in zip(found, before.items(), strict=True):
            v = after[name]
            assert name.endswith(module) and f".{layer}." in name and d_in == w.shape[1]
            assert dD == pytest.approx((1 - torch.cosine_similarity(v, w, dim=1)).mean().item(), rel=1e-4)
            assert dM == pytest.approx((v.norm(dim=1) - w.norm(dim=1)).abs().mean().item(), rel=1e-3)
            assert norm == pytest.approx(w.norm(dim=1).mean().item(), rel=1e-6)


def test_reading_a_pack_changes_nothing() -> None:
    config = compose(["model=tiny", "tracking=disabled", "variant=dora", "lora.r=4", "train.steps=6"])
    ends = []
    for reads in (True, False):
        network, _ = models.load(config.model, torch.float32, FP32.device)
        engine = PackedEngine(network, [config], items(), 0, 6, FP32)
        for step in range(6):
            engine.advance(step, step + 1)
            if reads:
                of_pack(engine)
        ends.append(engine.model.buckets[0].values.clone())
    assert torch.equal(*ends)


def test_full_is_compared_with_where_it_started() -> None:
    config = compose(["model=tiny", "tracking=disabled", "variant=full", "train.lr=1e-3", "train.steps=4"])
    network, _ = models.load(config.model, torch.float32, FP32.device)
    start = copy.deepcopy(network)
    linears = quantization.linear_layers(network)
    before = {name: layer.weight.detach().clone() for name, layer in linears}
    network.requires_grad_(True)
    PeftEngine(network, config, items(), 0, 4, FP32).advance(0, 4)
    found = of_weights(before, {name: layer.weight for name, layer in linears})
    name, old = quantization.linear_layers(start)[3]
    v, w = network.get_submodule(name).weight.double(), old.weight.double()
    assert found[3][0] == "o_proj" and found[3][1] == 0
    assert found[3][4] == pytest.approx((1 - torch.cosine_similarity(v, w, dim=1)).mean().item(), rel=1e-4)
    assert found[3][3] == pytest.approx((v.norm(dim=1) - w.norm(dim=1)).abs().mean().item(), rel=1e-3)


@pytest.mark.parametrize("size", [1e-3, 3e-2, 0.1, 0.3])
@pytest.mark.parametrize("d_in", [64, 576])
def test_random_updates_lie_on_their_line(size: float, d_in: int) -> None:
    draw = torch.Generator().manual_seed(0)
    w, delta = torch.randn(4000, d_in, generator=draw).double(), torch.randn(4000, d_in, generator=draw).double()
    w /= w.norm(dim=1, keepdim=True)
    delta *= size / delta.norm(dim=1, keepdim=True)
    line = correlation.random_direction(np.array(direction_change(w + delta, w).item()), d_in)
    assert magnitude_change(w, delta).item() == pytest.approx(float(line), rel=0.04)


def test_nothing_moved_is_on_the_line_too() -> None:
    assert correlation.random_direction(np.array([0.0, 1e-9]), 576) == pytest.approx(
        [0.0, (4e-9 / (np.pi * 576)) ** 0.5], rel=1e-2
    )


def test_coefficients_are_scipys() -> None:
    from scipy import stats

    x, y = np.random.default_rng(0).normal(size=(2, 20))
    y = np.round(y + x, 1)  # with ties
    assert correlation.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert correlation.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_pooling_can_turn_the_sign() -> None:
    """Three checkpoints, each later one further along both axes, within which layers lie on a falling line (Simpson)."""
    layers, steps = np.arange(4.0), np.arange(3.0)
    x = (10 * steps[:, None] + layers)[None, :, :, None]
    y = (10 * steps[:, None] - layers)[None, :, :, None]
    assert correlation.per_seed(x, y, "L") == pytest.approx([-1])
    assert correlation.per_seed(x, y, "T") == pytest.approx([1])
    # By hand: both have variance 100 * 2/3 + 1.25, their covariance is 100 * 2/3 - 1.25.
    assert correlation.per_seed(x, y, "TL") == pytest.approx([(200 / 3 - 1.25) / (200 / 3 + 1.25)])


def test_an_axis_is_not_taken_for_another() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2))
    by_hand = [np.mean([np.corrcoef(x[s, :, n, k], y[s, :, n, k])[0, 1] for n in range(5) for k in range(2)]) for s in range(3)]
    assert correlation.per_seed(x, y, "T") == pytest.approx(by_hand)
    pooled = [np.corrcoef(x[s].ravel(), y[s].ravel())[0, 1] for s in range(3)]
    assert correlation.per_seed(x, y, "TLK") == pytest.approx(pooled)


def test_interval_over_seeds_by_hand() -> None:
    # z of 0.5, 0.6, 0.7: 0.549306, 0.693147, 0.867301; mean 0.703251, sd 0.159238; t(2) = 4.302653.
    mean, low, high = correlation.over_seeds([0.5, 0.6, 0.7])
    half = 4.302653 * 0.159238 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((math.tanh(0.703251), math.tanh(0.703251 - half), math.tanh(0.703251 + half)), 1e-4)


def test_interval_over_layers_is_that_of_fishers_z_where_points_are_independent() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(1, 1, 400, 1))
    y = 0.5 * x + draw.normal(size=x.shape)
    r = float(correlation.per_seed(x, y, "L")[0])
    low, high = correlation.over_layers(x, y, "L", draws=1000)
    half = 1.96 / math.sqrt(400 - 3)
    assert (low, high) == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)), abs=0.03)


def test_a_constant_has_no_correlation() -> None:
    x = np.random.default_rng(0).normal(size=(2, 1, 5, 1))
    found = correlation.correlate(x, np.ones_like(x), "L", draws=20)
    assert math.isnan(found.r) and math.isnan(found.low) and math.isnan(found.layers_low)


def synthetic(folder: Path, signs: dict[str, int], seeds: int = 4) -> None:
    """Results in which dM rises or falls with dD over layers within each checkpoint, and losses that fall."""
    draw = np.random.default_rng(0)
    rows, losses = [], []
    for variant, sign in signs.items():
        r = 0 if variant == "full" else 16
        for seed in range(seeds):
            for step in (2, 75, 150, 225, 300):
                losses.append((variant, r, seed, 1e-3, step, 2.0, 2.5 - step / 300, 1.5 if step == 300 else None))
                for module in ("q_proj", "v_proj"):
                    for layer in range(12):
                        dD = 10 + layer + draw.normal() + 0.001 * step
                        dM = 20 + sign * layer + draw.normal()
                        rows.append((variant, r, seed, 1e-3, step, int(step > 2), module, layer, 64, dM, dD, dM / 10))
    names = ["variant", "r", "seed", "lr", "step", "paper", "module", "layer", "d_in", "dM", "dD", "relative_dM"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "results.csv", index=False)
    names = ["variant", "r", "seed", "lr", "step", "train", "val", "test"]
    pd.DataFrame(losses, columns=names).to_csv(folder / "losses.csv", index=False)


def test_report_tells_the_sign(folder: Path) -> None:
    synthetic(folder, {"full": -1, "dora": 1, "lora": 1})
    text = report.report(folder, draws=100)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()[:12] if line.startswith("|")}
    assert "as published" in lines["full"] and "as published" in lines["LoRA r=16"]
    assert "the opposite" in lines["DoRA r=16"]
    assert {path.name for path in folder.iterdir()} >= {"tables.md", "directions.png", "pooling.png"}


def test_report_names_the_layer_that_carries_the_sign(folder: Path) -> None:
    """Eleven layers in which dM rises with dD, and one that turns little and changes its lengths a lot."""
    synthetic(folder, {"lora": 1})
    frame = pd.read_csv(folder / "results.csv")
    frame.loc[frame["layer"] == 3, ["dM", "dD"]] = [200.0, 1.0]
    frame.to_csv(folder / "results.csv", index=False)
    section = report.report(folder, draws=20).split("## Without the layer")[1].split("##")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| as") or line.startswith("| query")]
    assert len(rows) == 2 and all(row.strip().startswith("+0.9") and row.endswith("without layer 3 ") for row in rows)


def test_chance_has_the_magnitudes_that_the_line_says(folder: Path) -> None:
    """Results that lie on the line of random updates, matrices of magnitude 10: the coefficient by chance is their own."""
    synthetic(folder, {"lora": 1})
    frame = pd.read_csv(folder / "results.csv")
    frame["dD"] /= 1e4
    frame["relative_dM"] = np.sqrt(4 * frame["dD"] / (np.pi * frame["d_in"])) * 1.05  # nearly, as dD is not that small
    frame["dM"] = 10 * frame["relative_dM"]
    frame.to_csv(folder / "results.csv", index=False)
    data = report.read(folder)[0]["lora", 16]
    of_data = correlation.per_seed(data.of(report.VIEWS[0], "dD"), data.of(report.VIEWS[0], "dM"), "TL")
    assert report._by_chance(data) == pytest.approx(of_data, abs=2e-3)


def test_the_committed_tables_and_numbers_come_from_the_committed_results(tmp_path: Path) -> None:
    for name in ("results.csv.gz", "losses.csv"):
        shutil.copy(report.HERE / name, tmp_path)
    text = report.report(tmp_path)
    assert (report.HERE / "tables.md").read_text() == text
    readme = " ".join((report.HERE / "README.md").read_text().split())
    for line in text.splitlines()[4:9]:  # the paper's pooling: all of its cells but the number of seeds
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[4] == "6" and f"| {' | '.join([*cells[:4], cells[5]])} |" in readme
    numbers = {  # what the README says, and the cell that it is from
        "-0.11 [-0.19, -0.02] over seeds, but [-0.36, +0.46] over layers": "-0.11 [-0.19, -0.02] [-0.36, +0.46]",
        "0.66 [0.51, 0.81] at r=16": "+0.66 [+0.51, +0.81]",
        "0.71 [0.58, 0.84] at r=64": "+0.71 [+0.58, +0.84]",
        "at r=64 (0.20 [0.04, 0.36])": "+0.20 [+0.04, +0.36]",
        "not shown (0.14 [-0.03, 0.31])": "+0.14 [-0.03, +0.31]",
        "it is +0.25 [0.06, 0.42]": "+0.25 [+0.06, +0.42] without layer 0",
        "+0.45 [0.36, 0.54]": "+0.45 [+0.36, +0.54] without layer 0",
        "(LoRA +0.79 and +0.82)": "+0.82 [+0.77, +0.85] without layer 0",
        "full +0.69, LoRA +0.87 and +0.89, DoRA +0.66 and +0.65": "| Pearson, relative dM | +0.69 ",
        "r = 0.89 to 0.93": "same dD | +0.89 [+0.88, +0.91] | +0.93 ",
        "(full -0.14, LoRA +0.17, DoRA -0.22 and -0.14": "| o_proj | -0.14 [-0.15, -0.12] | +0.17 ",
        "test 1.314 for full, 1.413 to 1.418": "1.314 [1.308, 1.320]",
    }
    for said, meant in numbers.items():
        assert said in readme and meant in text, said
    arms, _ = report.read(report.HERE)
    views = {name: report.View(name, module, True, "L") for name, module in (("q", "q_proj"), ("o", "o_proj"))}
    spread = {}
    for arm, data in arms.items():
        for view in report.VIEWS:
            found = correlation.per_seed(data.of(view, "dD"), data.of(view, "dM"), view.over).mean()
            assert found > 0 or (arm[0], view) == ("full", report.VIEWS[2])
        at_end = data.of(views["q"], "dM")[:, -1, :, 0].mean(0)
        spread[report.label(arm)] = round(100 * at_end.std(ddof=1) / at_end.mean())
        over_layers = correlation.over_layers(data.of(views["o"], "dD"), data.of(views["o"], "dM"), "L")
        assert (over_layers[0] < 0 < over_layers[1]) == (arm[0] != "full")  # of o_proj
    assert spread == {"full": 18, "LoRA r=16": 30, "DoRA r=16": 6, "LoRA r=64": 36, "DoRA r=64": 6}
    assert "6 % of its mean at step 300, LoRA's 30 and 36 %, full's 18 %" in readme


def test_report_leaves_out_a_seed_that_is_not_whole_and_says_so(folder: Path) -> None:
    synthetic(folder, {"lora": 1})
    frame = pd.read_csv(folder / "results.csv")
    frame = frame[(frame["seed"] != 1) | (frame["step"] < 300)]  # a run that was cut off
    frame.loc[(frame["seed"] == 2) & (frame["step"] == 150), "dD"] = np.nan  # one that diverged
    frame.to_csv(folder / "results.csv", index=False)
    arms, _ = report.read(folder)
    assert (arms["lora", 16].seeds, arms["lora", 16].left_out) == ([0, 3], [1, 2])
    assert "2 ([1, 2] left out)" in report.report(folder, draws=20)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("results.csv", lambda text: text.rstrip()[:-3], "row 240 has no end of line, so it may be cut off"),
        ("losses.csv", lambda text: text.rstrip()[:-1], "row 10 has no end of line, so it may be cut off"),
        ("losses.csv", lambda text: text.replace("1.5\n", "1.5,7\n", 1), "cannot be read (Error tokenizing"),
        ("losses.csv", lambda text: text.replace("lora,16,1", "lora,16,1.5", 1), "seed of row 6 is 1.5, not a whole number"),
        ("results.csv", lambda text: text.replace("dM,dD", "dM,D"), "has no column dD"),
        ("results.csv", lambda text: text + text.splitlines()[9] + "\n", "row 241 is of a matrix, step and seed that an earlier"),
        ("results.csv", lambda text: text.replace("lora,", "ia3,", 1), "ia3: no variant of this study"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(folder: Path, name: str, damage: Any, said: str) -> None:
    synthetic(folder, {"lora": 1}, seeds=2)
    (folder / name).write_text(damage((folder / name).read_text()))
    with pytest.raises(ConfigError) as caught:
        report.read(folder)
    assert str(caught.value).startswith(f"{folder / name}: {said}") and "\n" not in str(caught.value)


def test_half_a_compressed_table_is_refused_in_one_line(folder: Path) -> None:
    synthetic(folder, {"lora": 1})
    data = gzip.compress((folder / "results.csv").read_bytes())
    for broken in (data[: len(data) // 2], data[:40] + b"broken" + data[46:], b"variant,r"):
        (folder / "results.csv.gz").write_bytes(broken)
        with pytest.raises(ConfigError, match=r"results.csv.gz: cannot be read \(") as caught:
            report.read(folder)
        assert "\n" not in str(caught.value)


def test_arrays_hold_what_the_table_says(folder: Path) -> None:
    synthetic(folder, {"lora": 1, "full": 1}, seeds=2)
    frame = pd.read_csv(folder / "results.csv").sample(frac=1, random_state=0)  # whatever the order of the rows
    frame.to_csv(folder / "results.csv", index=False)
    arms, _ = report.read(folder)
    row = frame.query("variant == 'lora' and seed == 1 and step == 150 and layer == 7 and module == 'v_proj'").iloc[0]
    assert arms["lora", 16].select("dD", [150], "v_proj")[1, 0, 7, 0] == row["dD"]
    assert arms["lora", 16].of(report.VIEWS[0], "dM").shape == (2, 4, 12, 1)


def test_the_whole_study_on_the_tiny_model(folder: Path) -> None:
    """Every path of the command, with the runs of full in processes and in this one: the same numbers both ways."""
    frames = []
    done = command(*SMALL, "out=beside", "full_processes=1")
    assert done.returncode == 0, done.stderr
    assert measure.main([*SMALL, "out=after"]) == 0
    for out in ("beside", "after"):
        frames.append(pd.read_csv(folder / out / "results.csv.gz").sort_values(["variant", "step", "layer", "module"]))
        about = json.loads((folder / out / "provenance.json").read_text())
        assert about["failed"] == [] and str(folder) not in json.dumps(about) and not any("out=" in w for w in about["command"])
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in frames), rtol=1e-3)
    frame = frames[0]
    assert len(frame) == 3 * 3 * 14 and set(frame["variant"]) == {"lora", "dora", "full"}
    assert set(frame.loc[frame["paper"] == 1, "step"]) == {2, 3, 4}  # 1, 2, 3 and 4 are the quarters of 4 steps
    assert (frame["dM"] > 0).all() and (frame["dD"] > 0).all()
    losses = pd.read_csv(folder / "beside" / "losses.csv")
    assert len(losses) == 9 and losses["test"].notna().sum() == 3
    with pytest.raises(ConfigError, match=r"out=beside: holds results.csv.gz already"):
        measure.main([*SMALL, "out=beside"])


def test_full_ends_where_the_tool_ends(folder: Path, run: Any) -> None:
    """The losses that ``variant=full`` records for the same config."""
    words = [*TINY, "forgetting.tokens=0", "variant=full", "train.lr=1e-3", "eval.generate=false"]
    _, result = run(*words[len(TINY) :])
    train_full(Plan(folder, (2, 3)), compose(words))
    last = pd.read_csv(folder / "losses.csv").iloc[-1]
    assert last["val"] == pytest.approx(result["metrics"]["val/loss"], rel=1e-4)
    assert last["test"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-4)


def test_what_was_measured_stays_where_a_run_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PackedEngine.advance

    def advance(self: PackedEngine, first: int, last: int) -> Any:
        if first >= 3:
            raise RuntimeError("the device is gone")
        return whole(self, first, last)

    monkeypatch.setattr(PackedEngine, "advance", advance)
    asked = measure.DEFAULTS | {"model": "tiny", "variants": ["lora"], "ranks": [2], "seeds": [0], "steps": 4, "batch": 2}
    asked |= {"at": [2, 3, 4], "val": 4, "test": 4, "out": folder}
    assert measure.measure(asked) == {"failed": ["pack: RuntimeError: the device is gone"]}
    assert sorted(set(pd.read_csv(folder / "results.csv")["step"])) == [2, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sedes=1"], "did you mean seeds?"),
        (["steps=300", "at=75,150"], "the last checkpoint is 150"),
        (["seeds=3,3"], "different values"),
        (["variants=lora,rslora"], "one of lora, dora, full"),
        (["lora=1e-3,3e-3,1e-2"], "3 rates for 2 ranks"),
        (["full=fast"], "a number from"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        measure.main([*words, f"out={folder / 'new'}"])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "new").exists()


def test_bad_input_ends_with_code_2(folder: Path) -> None:
    done = command("rank=4")
    assert done.returncode == 2 and done.stderr.startswith("error: 'rank': no such key") and done.stderr.count("\n") == 1


def test_report_without_results_is_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match="holds no results"):
        report.main([f"folder={folder}"])


def test_seeds_differ_in_data_and_adapter() -> None:
    adapters, full = measure.configs_of(measure.DEFAULTS | {"lora": [3e-3, 1e-3]})
    assert len(adapters) == 24 and len(full) == 6
    assert {(c.seed, c.data_seed) for c in adapters} == {(seed, seed) for seed in range(3, 9)}
    assert {(c.variant.name, c.lora.r, c.train.lr) for c in adapters} == {
        *(("lora", 16, 3e-3), ("lora", 64, 1e-3), ("dora", 16, 3e-3), ("dora", 64, 3e-3))
    }
    assert measure.plan_of(measure.DEFAULTS).read_steps == (2, 10, 38, 75, 150, 225, 262, 300)
    assert replace(full[0], seed=0).variant.trains == "all"
