"""Formats against hand-computed blocks and normal-distribution theory; bits, tables and selection against small known cases."""

from __future__ import annotations

import csv
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

from benchmarks.step import Case, config_of
from experiments.cost_on_a_gpu.measure import SINGLE
from experiments.four_bits import formats, measure, report
from experiments.four_bits import runs as runs_of
from src.command.cli import compose
from src.files.errors import ConfigError
from src.model import models
from src.record.records import RunFolder, identity, run_id, write_sweep
from src.variants import counts, quantization
from src.variants.methods.point import VariantConfig

CPU = torch.device("cpu")
SMALL, OUT = "small=true", "out=/dev/null/nowhere"


def form(name: str) -> formats.Format:
    return next(each for each in formats.FORMATS if each.name == name)


def test_integers_by_hand() -> None:
    block = torch.cat([torch.arange(-7.0, 8.0), torch.zeros(49)])[None] * 0.03
    torch.testing.assert_close(formats.int4_absmax(block), block)  # -7 to 7 over 7 are its own levels
    block[0, 3] = -4.4 * 0.03
    assert formats.int4_absmax(block)[0, 3] == pytest.approx(-4 * 0.03)
    levels = 0.25 + 0.5 * torch.arange(16.0).repeat(2)[None]  # step and lowest are exact in fp16
    assert torch.equal(formats.int4_affine(levels), levels)
    moved = levels.clone()
    moved[0, 5] += 0.2  # less than half a step
    assert torch.equal(formats.int4_affine(moved), levels)
    assert torch.equal(formats.int4_affine(torch.zeros(1, 32)), torch.zeros(1, 32))


def test_e2m1_by_hand() -> None:
    values = torch.tensor([*formats.E2M1, *(-value for value in formats.E2M1)]).repeat(4)[None] * 2
    torch.testing.assert_close(formats.e2m1(values), values)
    values[0, 1], values[0, 2] = 2 * 2.4, 2 * 5.1  # between 2 and 3, and between 4 and 6
    assert formats.e2m1(values)[0, 1:3].tolist() == pytest.approx([4, 12])


def test_int8_is_absmax_of_each_row() -> None:
    weight = torch.tensor([[127.0, -64.0, 0.4, 0.6], [-1.27, 0.5, 0.126, 0.0]])
    wanted = torch.tensor([[127.0, -64.0, 0.0, 1.0], [-1.27, 0.5, 0.13, 0.0]])
    torch.testing.assert_close(form("int8").stored(weight), wanted, rtol=1e-3, atol=0)


def gaussian_error(levels: list[float], block: int = 64) -> float:
    """Expected relative RMS error of N(0, 1) in blocks over their largest magnitude M, which itself is stored exactly.

    The other block - 1 values are those of a normal distribution cut at M, whose density is that of the largest of ``block``.
    """
    middles = [-1.0, *((a + b) / 2 for a, b in pairwise(levels)), 1.0]

    def given(largest: float) -> float:
        total = 0.0
        for level, low, high in zip(levels, middles, middles[1:], strict=False):
            a, b, c = low * largest, high * largest, level * largest
            mass = stats.norm.cdf(b) - stats.norm.cdf(a)
            first = stats.norm.pdf(a) - stats.norm.pdf(b)
            second = mass + a * stats.norm.pdf(a) - b * stats.norm.pdf(b)
            total += second - 2 * c * first + c * c * mass
        return float(total / (2 * stats.norm.cdf(largest) - 1))

    def density(m: float) -> float:
        return float(block * (2 * stats.norm.cdf(m) - 1) ** (block - 1) * 2 * stats.norm.pdf(m))

    found, _ = integrate.quad(lambda m: given(m) * density(m), 0.5, 7, limit=200)
    return math.sqrt((block - 1) / block * found)


@pytest.mark.parametrize("name", ["nf4", "fp4", "e2m1, block 64", "int4 absmax, block 64"])
def test_errors_on_gaussian_weights_are_what_theory_says(name: str) -> None:
    from bitsandbytes.functional import get_4bit_type

    levels = {
        "nf4": lambda: sorted(get_4bit_type("nf4", device="cpu").tolist()),
        "fp4": lambda: sorted({abs(v) * s for v in get_4bit_type("fp4", device="cpu").tolist() for s in (1, -1)}),
        "e2m1, block 64": lambda: sorted({s * v / 6 for v in formats.E2M1 for s in (1, -1)}),
        "int4 absmax, block 64": lambda: [level / 7 for level in range(-7, 8)],
    }[name]()
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    rms, largest = formats.error(weight, form(name).stored(weight))
    assert rms == pytest.approx(gaussian_error(levels), rel=0.01)
    assert rms < largest < 1


def test_the_error_is_relative() -> None:
    weight = torch.tensor([[3.0, -4.0]])
    assert formats.error(weight, weight + torch.tensor([[0.0, 1.0]])) == pytest.approx((1 / 5, 1 / math.sqrt(12.5)))


def test_pooled_is_the_error_of_all_weights_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(64, 64, generator=generator) * scale for scale in (1, 7)]
    stored = [parts[0] + 0.5, parts[1] + 0.1]
    rows = [{"rms": formats.error(a, b)[0], "norm": float(a.double().norm())} for a, b in zip(parts, stored, strict=True)]
    whole, _ = formats.error(torch.cat(parts), torch.cat(stored))
    assert report.pooled(pd.DataFrame(rows)) == pytest.approx(whole)


@pytest.mark.parametrize(("precision", "double"), measure.PRECISIONS)
def test_what_is_held_is_the_closed_form(precision: str, double: bool) -> None:
    model = compose(["model=tiny"]).model
    assert model.shape is not None
    network, _ = models.load(model, torch.bfloat16, CPU)
    variant = VariantConfig(base_precision=precision, double_quant=double)
    network = quantization.place(network, variant, CPU, torch.bfloat16)
    found = measure.held(layer for _, layer in quantization.linear_layers(network))
    wanted = sum(each.count * counts.linear_bytes(each, precision, double) for each in counts.linears(model.shape))
    assert found["weights"] + found["scales"] == wanted


def runs(label: tuple[str, bool], lr: float, losses: dict[int, float], val: float, status: str = "ok") -> list[dict[str, Any]]:
    return [
        {
            "variant": "lora", "precision": label[0], "double_quant": label[1], "lr": lr, "seed": seed, "status": status,
            "val/loss": val, "test/loss": loss, "test/exact_match": 0.5,
        }
        for seed, loss in losses.items()
    ]  # fmt: skip


def test_the_rate_is_chosen_by_validation_on_the_tuning_seeds_and_pairs_are_by_seed() -> None:
    losses = {seed: 1.0 + seed / 10 for seed in range(9)}
    rows = [
        *runs(("bf16", True), 1e-3, losses, val=1.0),
        *runs(("bf16", True), 1e-2, {seed: 0.1 for seed in losses}, val=1.1),  # better only on the test split
        *runs(("nf4", False), 1e-3, {seed: loss + 0.02 for seed, loss in losses.items()}, val=1.0),
        *runs(("nf4", False), 1e-2, losses, val=0.5)[:8],
        *runs(("nf4", False), 1e-2, {8: math.nan}, val=math.nan, status="diverged"),
    ]
    frame = pd.DataFrame(rows)
    best, reported = report.chosen(frame.assign(label=report.labels(frame)))
    assert best == {"bf16": 1e-3, "nf4": 1e-3}
    assert list(reported["nf4"].index) == [3, 4, 5, 6, 7, 8]
    text = "\n".join(report.training(frame))
    assert "+0.0200 [+0.0200, +0.0200], n = 6" in text and "1 diverged of 36" in text


def test_labels_tell_double_quantization_of_four_bits_only() -> None:
    frame = pd.DataFrame({"precision": ["bf16", "int8", "nf4", "nf4", "fp4"], "double_quant": [True, True, True, False, "False"]})
    assert list(report.labels(frame)) == ["bf16", "int8", "nf4, double", "nf4", "fp4"]


def test_errors_are_kept_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(small: bool) -> Any:
        yield "gaussian", "64 x 64", "seed 0", torch.from_numpy(np.eye(64, dtype=np.float32))
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "matrices", few)
    with pytest.raises(KeyboardInterrupt):
        measure.errors(tmp_path / "errors.csv", 100, True)
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["format"] for row in rows] == [each.name for each in formats.FORMATS]
    assert all(float(row["rms"]) < 1e-3 for row in rows if row["format"] != "int4 affine, block 32")  # zeros and ones are levels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one of errors, bits, memory, training"),
        (["bits", "sweep=x"], "bits has no such key"),
        (["memory", "reuse=nowhere.csv"], "no such file"),
        (["training", "sweep=nowhere"], "no such sweep"),
        *((words, "out=/dev/null/nowhere: no folder to write to") for words in (["errors", OUT], ["bits", SMALL, OUT])),
        (["memory", SMALL, OUT], "out=/dev/null/nowhere: no folder to write to"),
        (["errors", "out=/proc"], "out=/proc: no folder to write to"),  # it is there, and nothing can be written to it
    ],
)
def test_bad_input(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["measure", *arguments])
    with pytest.raises(ConfigError, match=said):
        measure.main()
    assert not list(tmp_path.iterdir())


def recorded(*words: str) -> str:
    """A finished run of the sweep, as src.train leaves it; its id."""
    config = compose(["variant=lora", *runs_of.SETTINGS, *words])
    name, (variant, model, data) = run_id(config), (config.variant, config.model.name, config.dataset.name)
    known = {"model": model, "dataset": data, "variant": variant.name, "metrics": {"test/loss": 1.0}, "checks": {}}
    folder = RunFolder(name)
    folder.path.mkdir(parents=True)
    folder.write_result({"run_id": name, "status": "ok", "identity": identity(config), **known})
    return name


@pytest.mark.parametrize(
    ("foreign", "said"),
    [
        (["lora.r=8"], "lora.r is 8, and 16 in this study"),
        (["train.steps=30"], "train.steps is 30, and 300 in this study"),
        (["variant=dora"], "variant.magnitude is dora, and none in this study"),
        (["variant=full"], "variant.trains is all, and adapter in this study"),
        (["variant=frozen", "eval.test_examples=9"], "eval.test_examples is 9, and none in this study"),
        (["forgetting.tokens=0"], "forgetting.tokens is 0, and 4096 in this study"),
        (["variant.base_precision=fp32"], "variant.base_precision is fp32, none of bf16, int8, nf4, fp4"),
        (["seed=1", "data_seed=2"], "data_seed is 2, not its seed, 1"),
    ],
)
def test_a_run_of_another_study_is_refused(
    foreign: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [recorded(), recorded("variant.base_precision=nf4", "train.lr=0.02", "seed=77"), recorded("variant=frozen")]
    write_sweep("any", ids)
    monkeypatch.setattr("sys.argv", [measure.__file__, "training", "sweep=any", "out=good"])
    assert measure.main() == 0 and list(pd.read_csv("good/training.csv")["run_id"]) == ids
    strange = recorded(*foreign)
    write_sweep("any", [*ids, strange])
    monkeypatch.setattr("sys.argv", [measure.__file__, "training", "sweep=any", "out=bad"])
    with pytest.raises(ConfigError) as caught:
        measure.main()
    assert str(caught.value).startswith(f"runs/{strange}: {said}") and not (tmp_path / "bad").exists()


def test_the_committed_runs_are_those_of_the_studys_settings() -> None:
    for row in pd.read_csv(report.HERE / "training.csv").to_dict("records"):
        words = [f"variant={'frozen' if row['variant'].startswith('frozen') else 'lora'}", *runs_of.SETTINGS]
        words += [f"variant.base_precision={row['precision']}", f"variant.double_quant={str(row['double_quant']).lower()}"]
        words += [f"seed={row['seed']}", *([f"train.lr={row['lr']}"] if row["lr"] == row["lr"] else [])]
        assert run_id(compose(words)) == row["run_id"] and row["precision"] in runs_of.BASES


TRAINING = "variant,precision,double_quant,lr,seed,status,val/loss,test/loss\n"
BITS = "precision,double_quant,part,bits\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("errors", "", "errors.csv: cannot be read (No columns to parse from file)"),
        ("errors", "weights,matrix\n", "errors.csv: has no column format, bits, norm, rms, largest"),
        ("errors", "weights,matrix,format,bits,norm,rms,largest\n", "errors.csv: has no rows"),
        ("errors", "weights,matrix,format,bits,norm,rms,largest\nsmollm2_135m,q,nf4,4,1,1,1\n", "has no Gaussian weights"),
        ("errors", "weights,matrix,format,bits,norm,rms,largest\ngaussian,4 x 4,nf4,4,1,inf,1\n", "not all errors are finite"),
        ("bits", f"{BITS}nf4,True,weights\n", "bits.csv: row 1 has 3 cells for 4 columns"),
        ("bits", f"{BITS}nf4,True,weights,many\n", "bits.csv: bits of row 1 is many, not a number"),
        ("bits", f"{BITS}nf4,True,weights,4.0\n", "bits.csv: nf4, double: needs a row for each of weights, scales, tables"),
        (
            "memory",
            f"model,rows\n{'x,' * 9}\n",
            "memory.csv: has no column variant, length, ms/step, spread ms, tokens/s and 6 more",
        ),
        ("training", f"{TRAINING}lora,bf16,True,1e-3,0,ok,1.0,\n", "training.csv: a run that ended well has no test loss"),
        (
            "training",
            f"{TRAINING}lora,bf16,True,1e-3,0,ok,1.0,2.0,3.0,4.0\nlora,1,1,1,1,1,1,1,1,1,1,1\n",
            "cannot be read (Error",
        ),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(
    name: str, text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.csv").write_text(text)
    monkeypatch.setattr("sys.argv", ["report", f"folder={tmp_path}"])
    with pytest.raises(ConfigError) as caught:
        report.main()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.csv"]


def test_the_committed_tables_come_from_the_committed_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("errors", "bits", "memory", "training"):
        shutil.copy(report.HERE / f"{name}.csv", tmp_path)
    monkeypatch.setattr("sys.argv", ["report", f"folder={tmp_path}"])
    assert report.main() == 0
    assert (tmp_path / "tables.md").read_text() == (report.HERE / "tables.md").read_text()


def test_differences_by_hand() -> None:
    frozen = pd.Series({"bf16": 5.0, "nf4": 5.5, "nf4, double": 5.4})
    seeds = pd.RangeIndex(3, 9)
    base = pd.Series([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], seeds)
    losses = {"bf16": base, "nf4": base + 0.1, "nf4, double": base[:4].add([0.1, 0.0, 0.2, 0.1])}
    single, double, pair = report.differences(frozen, losses)
    assert [row["difference"] for row in (single, double, pair)] == ["nf4 - bf16", "nf4, double - bf16", "nf4, double - nf4"]
    assert single["before training"] == "+0.5000" and single["closed"] == "80.0%"  # 0.1 of 0.5 are left
    assert single["p (sign flips)"] == "0.0312" and single["p (Holm)"] == "0.0938"  # 2 / 64, of three
    assert double["after training"].endswith("n = 4") and double["closed"] == "75.0%"  # 0.1 of 0.4
    assert pair["before training"] == "-0.1000" and pair["closed"] == "-" and pair["p (sign flips)"] == "1.0000"


def test_the_readme_says_what_the_committed_measurements_say() -> None:
    """Each number of the readme on training, computed here from training.csv."""
    frame = pd.read_csv(report.HERE / "training.csv")
    readme = " ".join((report.HERE / "README.md").read_text().split())
    assert (
        len(frame) == 185 and set(frame["status"]) == {"ok"} and frame["run_id"].is_unique and "185 runs, none failed" in readme
    )
    bases = {"bf16": ("bf16", True), "int8": ("int8", True), "NF4": ("nf4", False), "NF4, double quantised": ("nf4", True)}
    bases["FP4, double quantised"] = ("fp4", True)
    frozen, grids = {}, {}
    for name, (precision, double) in bases.items():
        of = frame[(frame["precision"] == precision) & (frame["double_quant"] == double)]
        trained = of[of["lr"].notna()]
        frozen[name] = of.loc[of["lr"].isna(), "test/loss"].item()
        assert trained[trained["seed"] < 3].groupby("lr")["val/loss"].mean().idxmin() == 3e-3
        grids[name] = trained.pivot(index="seed", columns="lr", values="test/loss")
        assert grids[name].shape == (9, 4)
    after = pd.DataFrame({name: grid[3e-3] for name, grid in grids.items()})
    gaps = after.sub(after["bf16"], axis=0)
    said = [f"| bf16 | {frozen['bf16']:.3f} | - | {after['bf16'][3:].mean():.3f} | - | - |"]
    for name in list(bases)[1:]:
        start, gap = frozen[name] - frozen["bf16"], gaps[name][3:]
        reach = stats.t.ppf(0.975, 5) * gap.std() / math.sqrt(6)
        interval = f"{gap.mean():.3f} [{gap.mean() - reach:.3f}, {gap.mean() + reach:.3f}]"
        share = f"{1 - gap.mean() / start:.0%}".replace("%", " %")
        said.append(f"| {name} | {frozen[name]:.3f} | {start:.3f} | {after[name][3:].mean():.3f} | {interval} | {share} |")
        assert (gaps[name] > 0).all()
    nine = gaps.mean()
    said.append(f"(int8 {nine['int8']:.3f}, NF4 {nine['NF4, double quantised']:.3f}, FP4 {nine['FP4, double quantised']:.3f})")
    low, high = (grids["NF4, double quantised"][lr].mean() - grids["bf16"][lr].mean() for lr in (3e-4, 1e-2))
    said.append(f"NF4's 0.039 is {low:.3f} at 3e-4 and {high:.3f} at 1e-2")
    said.append(f"{1 - after['bf16'][3:].mean() / frozen['bf16']:.0%} is what a gap in proportion".replace("%", " %"))
    for name, begins in (("NF4, double quantised", "-0.002 ["), ("FP4, double quantised", "0.036 [")):
        pair = (after[name] - after["NF4" if name.startswith("NF4") else "NF4, double quantised"])[3:]
        reach = stats.t.ppf(0.975, 5) * pair.std() / math.sqrt(6)
        said.append(f"{pair.mean():.3f} [{pair.mean() - reach:.3f}, {pair.mean() + reach:.3f}]")
        assert said[-1].startswith(begins)
    less = [1 - (at["NF4, double quantised"] - at["bf16"]) / (at["FP4, double quantised"] - at["bf16"])
            for at in (frozen, after[3:].mean())]  # fmt: skip
    said.append(f"before training {less[0]:.0%} (0.484 and 0.526 nats), after training {less[1]:.0%}".replace("%", " %"))
    assert [one for one in said if one not in readme] == []
    tables = (report.HERE / "tables.md").read_text()
    meant_by = {
        "TOST p = 0.40": "| 0.3978 |",
        "TOST p = 0.005": "| 0.0047 |",
        "2/64 = 0.031 and after Holm over the six contrasts none below 0.19": "| 0.0312 | 0.1875 |",
        "p = 0.004, 0.023 after Holm": "| 0.0039 | 0.0234 |",
    }
    for shown, meant in meant_by.items():
        assert shown in readme and meant in tables


MEMORY = {("lora", ""): "bf16", ("lora_8bit", ""): "int8", ("qlora", SINGLE[0]): "NF4", ("qlora", ""): "NF4, double quantised"}


def test_the_readmes_memory_and_time_are_the_committed_ones() -> None:
    """The table and each number of its text, computed here from memory.csv; what is saved also by hand from Llama's widths."""
    frame = pd.read_csv(report.HERE / "memory.csv").fillna({"options": ""})
    assert frame["note"].isna().all() and set(frame["gpu"]) == {"NVIDIA H100 80GB HBM3"} and set(frame["engine"]) == {"ours"}
    frame["base"] = [MEMORY[key] for key in zip(frame["variant"], frame["options"], strict=True)]
    cases = frame.set_index(["model", "base"])
    small, large = "llama_3_1_8b", "llama_3_1_70b"
    lines = (report.HERE / "README.md").read_text().splitlines()
    shown = []
    for model, shape in ((small, "8B, 2 x 1024"), (large, "70B, 1 x 512")):
        names = [name for name in MEMORY.values() if (model, name) in cases.index]
        for at, name in enumerate(names):
            row = cases.loc[(model, name)]
            assert f"{row['rows']} x {row['length']}" == shape.split(", ")[1]
            first = f" {shape}" if at == 0 else ""
            numbers = f"{row['held GiB']:.2f} | {row['peak GiB']:.2f} | {row['ms/step']:.1f} (± {row['spread ms']:.1f})"
            shown.append(f"|{first} | {name} | {numbers} | {row['tokens/s']:,.0f} |")
    start = lines.index("| shape, rows | base | held GiB | peak GiB | ms a step | tokens/s |")
    assert lines[start + 2 : start + 2 + len(frame)] == shown and len(frame) == 6

    held, peak, ms, spread = (cases[name] for name in ("held GiB", "peak GiB", "ms/step", "spread ms"))
    double, single = MEMORY["qlora", ""], "NF4"
    # q and o, k and v, then gate, up and down: by hand.
    weights = {
        small: 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336),
        large: 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672),
    }
    hand = {model: count * 0.373 / 8 / 2**30 for model, count in weights.items()}
    saved = {model: held[model, single] - held[model, double] for model in weights}
    for model in weights:
        assert abs(peak[model, single] - peak[model, double] - saved[model]) < 0.005 and abs(saved[model] - hand[model]) < 0.1
        assert abs(ms[model, single] - ms[model, double]) < spread[model, single]
    above = (peak - held)[small]
    assert {f"{value:.2f}" for value in above} == {"9.25"}
    study = pd.read_csv(report.HERE.parent / "cost_on_a_gpu" / "results.csv").set_index(["model", "variant", "engine"])
    same = study["ms/step"][small, "rslora", "ours"]
    assert f"{ms[small, 'int8'] / same:.1f}" == "2.2"
    excess, packs = {}, {}
    for (model, base), row in cases.iterrows():
        config = config_of(Case(model, row["variant"], 1, row["rows"], row["length"], overrides=tuple(row["options"].split())))
        layers = config.model.shape
        assert layers is not None
        targets = counts.targets(counts.linears(layers), config.lora.target_modules, model)
        trained = counts.trainable_parameters(config.variant, config.lora, targets, counts.total_parameters(layers))
        stored = counts.base_bytes(layers, config.variant.base_precision, config.variant.double_quant)
        excess[model, base] = row["held GiB"] - (stored + 16 * trained) / 2**30
        if (model, base) == (large, double):
            members, moments = [(config.variant, config.lora)], 8 * trained / 2**30
            packs = {n: counts.pack_bytes(layers, members, targets, 512 * n).total / 2**30 for n in (1, 3, 4)}
    most, kept = peak[large, double], held[large, double]
    said = [
        f"NF4 takes {peak[small, 'bf16'] - peak[small, double]:.1f} GiB off 8B's {peak[small, 'bf16']:.1f}",
        f"saves {saved[small]:.2f} GiB at 8B and {saved[large]:.2f} at 70B",
        f"are {hand[small]:.2f} of {weights[small] / 1e9:.2f}e9 and {hand[large]:.2f} of {weights[large] / 1e9:.2f}e9 weights",
        f"{min(excess.values()):.2f} to {max(excess.values()):.2f} GiB more than their closed form",
        "{:.1f} ms at 8B, {:.1f} at 70B".format(*(abs(ms[model, double] - ms[model, single]) for model in weights)),
        f"takes {ms[small, double] / ms[small, 'bf16'] - 1:.0%} of the step of bf16".replace("%", " %"),
        f"and {ms[small, double] / same - 1:.0%} of that of rsLoRA".replace("%", " %"),
        f"one row of 512 tokens, {most:.1f} GiB, and through PEFT as well ({study['peak GiB'][large, 'qlora', 'peft']:.1f})",
        f"{packs[1]:.1f} GiB there, 3 x 512 would fit ({packs[3]:.1f}) and 4 x 512 would not ({packs[4]:.1f})",
        f"{most:.1f} GiB, {most * 2**30 / 1e9:.1f} GB, are too much",
        f"What is held, {kept * 2**30 / 1e9:.1f} GB,",
        f"most of the {most - kept:.1f} GiB above it",
        f"Adam's moments, which paging is for, are {moments:.1f} GiB here",
        f"8B trains at a peak of {peak[small, double]:.1f} GiB in place of {peak[small, 'bf16']:.1f} for 8 % more time, "
        f"70B on one GPU in {most:.1f}",
    ]
    readme = " ".join(" ".join(lines).split())
    assert [one for one in said if one not in readme] == []


def test_what_training_starts_from_may_have_been_measured_under_several_seeds() -> None:
    rows = [
        {
            "variant": "frozen",
            "precision": "bf16",
            "double_quant": True,
            "lr": math.nan,
            "seed": seed,
            "status": "ok",
            "val/loss": 5.0,
            "test/loss": 5.5,
        }
        for seed in (0, 1)
    ]
    frame = pd.DataFrame([*rows, *runs(("bf16", True), 1e-3, {seed: 1.0 for seed in range(6)}, val=1.0)])
    assert "| bf16 | 5.5000 | 0.001 |" in "\n".join(report.training(frame))
