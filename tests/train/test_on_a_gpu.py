"""What is trained on a GPU: engine peft for each named variant, the optimizers, and commands as a user types them."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from src.config.schema import CONF_FOLDER
from src.files.durable import unseal
from src.record.records import RunFolder
from tests.conftest import TINY, Run

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

VARIANTS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml"))
OPTIMIZERS = ("adamw", "adamw_bnb_8bit", "paged_adamw_8bit")
QUICK = ["forgetting.tokens=0", "eval.max_new_tokens=4", "lora.r=4", "train.lr=0.01", "device=cuda"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_engine_peft_trains_each_variant(run: Run, variant: str) -> None:
    """The live checks of the record say that it was this variant that trained."""
    _, result = run(*QUICK, f"variant={variant}", *(["engine=peft"] if variant not in ("full", "frozen") else []))
    assert result["status"] == "ok", result["reason"]
    assert result["engine"] == "peft" and result["device"].startswith("cuda")
    assert math.isfinite(result["metrics"]["test/loss"]) and result["peak_memory_kind"] == "cuda_allocated"


@pytest.mark.parametrize("variant", ["lora", "qdora", "lora_8bit"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_trains(run: Run, optimizer: str, variant: str) -> None:
    """Factors of more than 4,096 numbers, whose moments bitsandbytes holds in 8 bits, saved in a checkpoint on the way."""
    more = ["train.steps=6", "lora.r=64", "train.checkpoint_every=2", f"train.optimizer={optimizer}", f"variant={variant}"]
    _, result = run(*QUICK, "engine=peft", *more)
    assert result["status"] == "ok", result["reason"]
    assert result["optimizer"] == optimizer and result["device"].startswith("cuda")


@pytest.mark.timeout(600)
def test_commands_as_a_user_types_them(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A sweep of two packs, then each word, every one a process of its own."""
    done = command("src.train", "-m", *TINY, *QUICK, "variant=dora,qlora", "sweep=words", timeout=400)
    assert done.returncode == 0, done.stderr
    runs = {}
    for path in Path("runs").glob("*/result.json"):
        result = RunFolder(path.parent.name).result()
        assert result is not None and result["status"] == "ok" and result["device"].startswith("cuda")
        runs[result["variant"]] = result["run_id"]
    assert runs.keys() == {"dora", "qlora"}
    for words in (
        ["sweep=words"],
        ["score", f"run={runs['dora']}"],
        ["merge", f"run={runs['qlora']}", "out=merged", "onto=dequantised"],
    ):
        done = command("src.eval", *words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    print(done.stdout)
    assert unseal(Path("merged/merge.json").read_bytes())["latency"]["device"].startswith("cuda")
