"""Memory that runs out for real, on a GPU that another process fills while a pack trains. Simulated: tests/train."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ENVIRONMENT

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.gpu_long]

# Takes all memory of the GPU but so many GiB as soon as a pack stands there and has not trained yet, and keeps it; with
# "greedy" also what is given back later.
HOG = """
import glob, json, sys, time, torch
left = float(sys.argv[1]) * 2**30
torch.zeros(1, device="cuda")
print("ready", flush=True)
while not any("base_fingerprint" in open(path).read() for path in glob.glob("runs/*/provenance.json")):
    time.sleep(0.01)
kept = []
while True:
    while (free := torch.cuda.mem_get_info()[0]) > left + 2**26:
        kept.append(torch.empty(int(min(2**30, free - left)), dtype=torch.uint8, device="cuda"))
    if "greedy" not in sys.argv:
        time.sleep(600)
    time.sleep(0.005)
"""
SWEEP = [
    *("model=smollm2_135m", "model.weights=random", "train.steps=12", "train.batch_size=16", "dataset.train_examples=256"),
    *("eval.val_examples=16", "eval.test_examples=16", "eval.generate=false", "forgetting.tokens=0", "tracking=disabled"),
    *("train.checkpoint_every=4", "pack.compile=false"),
]


def train(*more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "src.train", *SWEEP, *more]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/result.json"))]


@pytest.fixture
def hog(folder: Path, request: pytest.FixtureRequest) -> Any:
    arguments = [sys.executable, "-c", HOG, *request.param]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()
    time.sleep(2)  # until the driver has its memory back


@pytest.mark.timeout(900)
@pytest.mark.parametrize("hog", [["10"]], ids=["10 GiB left"], indirect=True)
def test_a_pack_too_large_for_what_is_left_is_halved_until_it_fits(hog: Any, folder: Path, figure: Any) -> None:
    seeds = ",".join(map(str, range(32)))
    done = train("-m", "lora.r=16", f"seed={seeds}")
    found = results(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "out of memory with 32 runs: going on with 16 and 16 from the last checkpoints" in done.stderr
    assert [result["status"] for result in found] == ["ok"] * 32
    assert {result["halved_from"] for result in found} == {32} and max(result["pack_size"] for result in found) <= 16
    sizes = sorted({result["pack_size"] for result in found})
    figure(
        "Out of memory",
        f"{torch.cuda.get_device_name()}: 32 runs of SmolLM2-135M whose GPU another process filled up to 10 GiB once they were"
        f" placed: CUDA out of memory, then packs of {', '.join(map(str, sizes))}; 32 of 32 ended ok",
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("hog", [["0.1", "greedy"]], ids=["0.1 GiB left"], indirect=True)
def test_a_run_that_does_not_fit_alone_is_out_of_memory_and_is_done_later(hog: Any, folder: Path, figure: Any) -> None:
    done = train("-m", "lora.r=256", "seed=0,1")
    assert done.returncode == 1
    found = results(folder)
    assert [result["status"] for result in found] == ["out_of_memory"] * 2, [result["reason"] for result in found]
    hog.kill()
    hog.wait()
    time.sleep(2)
    again = train("-m", "lora.r=256", "seed=0,1")
    assert again.returncode == 0 and [result["status"] for result in results(folder)] == ["ok"] * 2, again.stderr[-3000:]
    figure(
        "Out of memory",
        "two runs with 0.1 GiB left ended as `out_of_memory`; with the memory back the same command ended both ok",
    )
