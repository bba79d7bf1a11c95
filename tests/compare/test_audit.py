"""The confound audit names what differs between compared rows, and leaves out what the comparison is about."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from src.compare.assay import at_fixed_rates
from src.compare.audit import CONFOUND, NOTE, Line
from src.compare.page.render import page
from src.compare.report import report
from src.files.text import few
from tests.compare import synthetic
from tests.compare.synthetic import DORA, FROZEN, QLORA, RSLORA, assayed, flagged
from tests.conftest import evaluate

CLEAN = "No confound{}: within the {} nothing differs but the variant, its rank and, where tuned, its rate."
SCALE = " In 2 of them it is another effective scale too, which another alpha would give as well."
PROVENANCE = {"commit": "a" * 40, "dirty": False, "python": "3.12.3", "packages": {"torch": "2.11.0", "peft": "0.21.0"}}


def test_a_clean_sweep_is_clean(grid, make) -> None:
    """Rates, ranks, seeds and the variants' own fields differ, and a control has no adapter at all."""
    for variant in ({}, RSLORA, DORA, QLORA, QLORA | {"double_quant": False}):
        for r, rates in ((4, {1e-3: 2.0, 1e-4: 2.1}), (16, {1e-3: 2.0})):
            grid(rates, seeds=range(2), variant=variant, r=r, trainable_parameters=1000 * r, provenance=PROVENANCE)
    make(variant=FROZEN)
    found = assayed().audit
    assert found.clean and found.lines == []
    # rsLoRA alone has another factor before B A, at each of two ranks.
    assert found.summary == CLEAN.format(" but the scale", "8 compared pairs of rows") + SCALE


@pytest.mark.parametrize(("field", "value", "text"), [
    ("train.batch_size", 32, "16 in lora r=8; 32 in rslora r=8"),
    ("train.steps", 77, "100 in lora r=8; 77 in rslora r=8"),
    ("lora.alpha", 32.0, "16 in lora r=8; 32 in rslora r=8"),
    ("lora.target_modules", ["q_proj"], "all-linear in lora r=8; ['q_proj'] in rslora r=8"),
    ("lora.init", "gaussian", "kaiming in lora r=8; gaussian in rslora r=8"),
    ("dataset.max_length", 64, "512 in lora r=8; 64 in rslora r=8"),
    ("eval.test_examples", 32, "none in lora r=8; 32 in rslora r=8"),
    ("model.revision", "abc", "none in lora r=8; abc in rslora r=8"),
    ("engine", "peft", "packed in lora r=8; peft in rslora r=8"),
])  # fmt: skip
def test_a_planted_confound_is_found(make, field, value, text) -> None:
    """Six variants of one kind, one of them with another value: it alone is named, with its reference."""
    make(steps=100)
    make(steps=100, variant=DORA)
    options = {"steps": value} if field == "train.steps" else {"steps": 100, "fields": {field: value}}
    make(variant=RSLORA, **options, **({"engine": value} if field == "engine" else {}))
    found = assayed().audit
    assert found.lines == [Line(field, text, CONFOUND)]
    assert not found.clean
    assert found.summary == f"Confounded: 2 compared pairs of rows differ in more than the variant: {field}."


def test_another_kind_of_device_is_a_confound(make) -> None:
    make()
    make(variant=RSLORA, device="cuda: NVIDIA H100 80GB HBM3")
    [kind, device] = assayed().audit.lines
    assert kind == Line("kind of device", "cpu in lora r=8; cuda in rslora r=8", CONFOUND)
    assert (device.field, device.severity) == ("device", NOTE)


def test_another_device_of_the_same_kind_is_a_note(make) -> None:
    make(device="cuda: NVIDIA H100 80GB HBM3")
    make(variant=RSLORA, device="cuda: NVIDIA H200")
    found = assayed().audit
    assert found.clean
    assert found.lines == [Line("device", "cuda: NVIDIA H100 80GB HBM3 in lora r=8; cuda: NVIDIA H200 in rslora r=8", NOTE)]


def test_versions_and_commits_are_notes(make) -> None:
    make(provenance=PROVENANCE)
    make(variant=RSLORA, provenance=PROVENANCE | {"commit": "b" * 40, "packages": {"torch": "2.12.0", "peft": "0.21.0"}})
    make(variant=DORA, provenance=PROVENANCE | {"packages": {"torch": "2.11.0"}})
    make(variant=QLORA)
    found = assayed().audit
    assert found.clean
    assert found.lines == [
        Line("commit", f"{'a' * 10} in lora r=8; {'b' * 10} in rslora r=8", NOTE),
        Line(
            "versions",
            "peft 0.21.0, torch 2.11.0 in lora r=8; peft 0.21.0, torch 2.12.0 in rslora r=8;"
            " peft absent, torch 2.11.0 in dora r=8",
            NOTE,
        ),
    ]


def test_a_held_base_is_a_note(make) -> None:
    """It gives the same numbers, and another speed."""
    make(variant=QLORA)
    make(variant=DORA | QLORA, hold=True)
    found = assayed(reference="qlora").audit
    assert found.lines == [Line("dequantised base held", "False in qlora r=8; True in qdora r=8", NOTE)]


def test_rows_that_are_compared_with_nothing_confound_nothing(make) -> None:
    make(variant=RSLORA)
    make(variant=DORA, steps=77)
    found = assayed().audit
    assert (found.pairs, found.clean) == (0, True)
    assert found.summary == "No two rows that share a seed are compared with each other, so there is nothing to confound."


def test_a_planted_scale_effect_is_named(make) -> None:
    """At one rank rsLoRA is LoRA at another alpha: alpha / sqrt(16) = 4 where LoRA has alpha / 16 = 1."""
    make(r=16)
    make(r=16, variant=RSLORA)
    make(r=16, variant=DORA)
    result = assayed()
    assert result.audit.clean, "the scaling rule is the variant's own"
    assert "scale 4 against 1: confounded with variant" in flagged(result, "rslora r=16")
    assert not [words for words in flagged(result, "dora r=16") if "scale" in words]


def test_another_scaling_rule_is_counted_at_unlike_ranks_too(make) -> None:
    """Paired for their equal number of parameters. The rank's own effect on alpha / r is named as the rank."""
    make(r=9, trainable_parameters=9000)
    make(r=8, variant=DORA, trainable_parameters=9000)
    assert (assayed().audit.pairs, assayed().audit.rescaled) == (1, 0)
    make(r=8, variant=DORA | RSLORA, trainable_parameters=9000)
    found = assayed().audit
    assert (found.pairs, found.rescaled, found.verdict) == (2, 1, "No confound but the scale")


def test_no_verdict_denies_a_flag_about_the_scale(make) -> None:
    """The page's verdict stands beside its flags, under one heading."""
    make(r=16)
    make(r=16, variant=DORA)
    for more, verdict, look, flags in ((None, "No confound", "clean", 0), (RSLORA, "No confound but the scale", "found", 1)):
        if more:
            make(r=16, variant=more)
        result = assayed()
        curves = pd.DataFrame(columns=["run_id", "step", "metric", "value"])
        shown = report(result, at_fixed_rates(result), curves, "python -m src.eval")
        assert f'<p class="verdict {look}"><strong>{verdict}</strong>' in page(shown)
        assert [flag["flag"] for flag in shown["flags"]].count("scale confounded with variant") == flags
        assert result.audit.summary.startswith(f"{verdict}: within the ")


def test_another_alpha_is_named_twice(make) -> None:
    """The axes agree with the reference's but for the magnitude: the scale is a confound, and alpha is why."""
    make()
    make(variant=DORA, fields={"lora.alpha": 64.0})
    result = assayed()
    assert [line.field for line in result.audit.confounds] == ["lora.alpha"]
    assert "scale 8 against 2: confounded with variant" in flagged(result, "dora r=8")


def test_an_alpha_that_undoes_the_rule_is_a_confound_of_its_own(make) -> None:
    """rsLoRA with alpha / sqrt(r) = 16 / 8: the same scale as LoRA's, by another alpha."""
    make(r=16, fields={"lora.alpha": 16.0})
    make(r=16, variant=RSLORA, fields={"lora.alpha": 4.0})
    result = assayed()
    assert not [words for words in flagged(result, "rslora r=16") if "scale" in words]
    assert [line.field for line in result.audit.confounds] == ["lora.alpha"]


def test_strict_refuses_in_one_line_and_writes_nothing(make, capsys) -> None:
    make(steps=100)
    make(variant=RSLORA, steps=77)
    assert evaluate(["strict=true"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not Path("reports").exists()
    assert captured.err == (
        "error: strict=true: compared rows differ in more than the variant:"
        " train.steps (100 in lora r=8; 77 in rslora r=8)\n"
    )  # fmt: skip


def test_strict_passes_a_clean_sweep(make, capsys) -> None:
    for r in (4, 8):
        make(r=r, trainable_parameters=1000 * r)
        make(r=r, trainable_parameters=1000 * r, variant=RSLORA)
    assert evaluate(["strict=true"]) == 0
    assert CLEAN.format(" but the scale", "2 compared pairs of rows") + SCALE in capsys.readouterr().out.splitlines()


def test_a_confound_is_printed_above_the_table(make, capsys) -> None:
    for r in (4, 8):
        make(r=r, steps=100, trainable_parameters=1000 * r)
    make(r=4, variant=RSLORA, steps=77, trainable_parameters=4000)
    assert evaluate([]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = lines.index("- confound: train.steps: 100 in lora r=4; 77 in rslora r=4")
    assert lines[said - 1].startswith("Confounded: 1 compared pair of rows differs in more than the variant: train.steps.")
    assert said < next(index for index, line in enumerate(lines) if line.strip().startswith("variant"))


def test_many_rows_are_counted() -> None:
    assert few(["a", "b", "a"]) == "a, b"
    assert few([str(n) for n in range(6)]) == "0, 1, 2, 3, 4, 5"
    assert few([str(n) for n in range(10)]) == "0, 1, 2, 3, 4 and 5 more"


def test_rows_of_unequal_rates_are_confounded_and_strict_refuses_them(make) -> None:
    """One rate each, and not the same one: whatever differs may be the rate's."""
    for seed in range(6):
        synthetic.run(2.0, seed, lr=3e-4)
        synthetic.run(1.5, seed, lr=1e-3, variant=RSLORA)
    found = assayed().audit
    assert [(line.field, line.text) for line in found.confounds] == [
        ("learning rates tried", "0.0003 in lora r=8; 0.001 in rslora r=8")
    ]
    assert not found.clean
