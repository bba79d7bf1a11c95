"""``python -m src.variants`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.command import cli
from src.config.schema import CONF_FOLDER
from src.config.values import CHOICES
from src.variants import __main__ as command

ROOT = CONF_FOLDER.parent
SEVENTY = ["model=llama_3_1_70b", "variant=lora", "lora.r=4", "lora.target_modules=[q_proj,k_proj,v_proj]"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def variants(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "src.variants", *arguments)


def table(*arguments: str) -> dict[str, str]:
    done = variants(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    pairs = [line.strip().split("  ", 1) for line in done.stdout.splitlines()]
    return {label.strip(): value.strip() for label, value in pairs}


def test_llama_70b() -> None:
    shown = table(*SEVENTY)
    assert shown["model"] == "llama_3_1_70b (meta-llama/Llama-3.1-70B-Instruct)"
    assert shown["variant"] == "lora" and shown["rank r"] == "4"
    assert shown["effective scale"] == "4 (alpha_over_r)"
    assert shown["target modules"] == "q_proj, k_proj, v_proj"
    assert shown["trainable parameters"] == "11,141,120"
    assert shown["total parameters"] == "70,553,706,496"
    assert shown["reduction"] == "6,333x"
    assert shown["adapter bytes, fp32 (as saved)"] == "44,564,480 (42.50 MiB)"
    assert shown["adapter bytes, 16-bit"] == "22,282,240 (21.25 MiB)"
    assert shown["base bytes, bf16"].startswith("141,107,412,992 ")
    bases = {label.removeprefix("base bytes, "): size for label, size in shown.items() if label.startswith("base bytes, ")}
    assert {label.split(" + ")[0] for label in bases} == set(CHOICES["variant.base_precision"])
    assert bases["fp4"] == bases["nf4"] == "42,709,041,152 (39.78 GiB)"  # one layout, two tables of values
    assert bases["fp4 + double quantization"] == bases["nf4 + double quantization"] == "39,517,112,512 (36.80 GiB)"
    assert bases["fp32"].startswith("282,214,825,984 ")  # 4 bytes of each of the 70,553,706,496
    assert {"training memory (estimate)", "FLOPs per token at length 512"} < set(shown)


def test_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['variants', *sys.argv[1:]]\n"
        "from src.variants.__main__ import main\n"
        "main(); assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = python("-c", code, *SEVENTY)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("file", sorted((CONF_FOLDER / "variant").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_variant(file: Path) -> None:
    # In this process, because starting one per variant would take most of the time.
    config = cli.compose([f"variant={file.stem}", "lora.r=8"])
    shown = dict(command.rows(config, command.shape_of(config)))
    assert shown["variant"] == file.stem
    expected = {"full": "134,515,008", "frozen": "0", "lora_frozen_a": "1,244,160"}
    magnitude = "2,597,760" if "dora" in file.stem else "2,442,240"
    assert shown["trainable parameters"] == expected.get(file.stem, magnitude)


def test_a_local_folder_is_read_for_its_shape(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert table("model=path", f"model.path={tmp_path}", "lora.r=1")["trainable parameters"] == str(4 * 64 + 3 * 112)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    done = variants("model=path", f"model.path={tmp_path}")
    assert done.returncode == 2 and done.stderr.startswith("error: model=path: no shape to count from; choose ")


def test_the_rank_that_matches_another_variant() -> None:
    assert table("variant=dora", "match=lora:16") == {
        "model": "smollm2_135m",
        "variant": "dora",
        "budget": "4,884,480 (lora at rank 16)",
        "nearest rank": "15",
        "trainable parameters": "4,734,720 (-3.07 %)",
        "at rank 14": "4,429,440 (-9.32 %)",
        "at rank 16": "5,040,000 (+3.18 %)",
        "use": "variant=dora lora.r=15",
    }


@pytest.mark.parametrize("asked", ["4884480", "4_884_480", "4,884,480", "4.88448M", "4884.48k", "0.00488448b", "4.88448e6"])
def test_a_budget_as_a_number(asked: str) -> None:
    config = cli.compose([])
    shown = dict(command.matched(config, command.shape_of(config), asked, []))
    assert (shown["budget"], shown["nearest rank"], shown["use"]) == ("4,884,480", "16", "variant=lora lora.r=16")


def test_what_to_use_is_as_it_was_asked_for() -> None:
    """On the same target modules, with the variant's axes as they were written; rank 1 has no neighbor below."""
    overrides = ["variant.magnitude=dora", "variant.scaling=alpha_over_sqrt_r", "lora.target_modules=[q_proj]"]
    config = cli.compose(overrides)
    shown = dict(command.matched(config, command.shape_of(config), "lora:2", overrides))
    assert shown["budget"] == "69,120 (lora at rank 2)"  # 30 layers of 2 x (576 + 576)
    assert (shown["nearest rank"], shown["trainable parameters"]) == ("2", "86,400 (+25.00 %)")
    assert shown["  at rank 1"] == "51,840 (-25.00 %)"  # 0.75 is further from 1 than 1.25
    shown = dict(command.matched(config, command.shape_of(config), "60k", overrides))
    assert shown["nearest rank"] == "1" and "  at rank 0" not in shown
    assert shown["use"] == "variant.magnitude=dora variant.scaling=alpha_over_sqrt_r lora.r=1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["match=lora"], "error: match=lora: needs a number of parameters, such as 4_884_480 or 4.88M, or VARIANT:RANK, "),
        (["match=12_"], "error: match=12_: needs a number"),
        (["match=1k"], "error: match=1k: 1,000 parameters cannot be matched: lora trains 305,280 parameters at its lowest rank"),
        (["match=lorra:16"], "error: variant=lorra: no such variant (did you mean lora?)"),
        (["match=lora:0"], "error: lora.r=0: needs a whole number from 1"),
        (["match=frozen:4"], "error: match=frozen:4: 0 parameters cannot be matched"),
        (["match=1M", "variant=full"], "error: match=1M: 1,000,000 parameters cannot be matched: full has no rank to choose"),
        (["match=1M", "match=2M"], "error: match: given twice"),
        (["variant=lorra"], "error: variant=lorra: no such variant (did you mean lora?); choose one of "),
        (["lora.r=0"], "error: lora.r=0: needs a whole number from 1 "),
        (["lora.target_modules=[qproj]"], "error: lora.target_modules=[qproj]: matches no linear layer of smollm2_135m; choose "),
        (["model=path"], "error: model.path: "),
        (["model=path", "model.path=/no/such/folder"], "error: model.path=/no/such/folder: no model there"),
        (["lora.rank=4"], "error: lora.rank: no such key"),
    ],
)
def test_refusals_are_one_line_with_exit_code_2(arguments: list[str], message: str) -> None:
    done = variants(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_help() -> None:
    done = variants("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m src.variants") and done.stderr == ""
