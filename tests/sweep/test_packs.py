"""Group runs into packs: which share one, how many fit into memory, and what is said before the first starts."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.command.cli import compose
from src.command.messages import known_keys
from src.config.schema import Config
from src.config.values import value_at
from src.data.batches import Item
from src.data.datasets import Example
from src.engine.packed.feed import Feed
from src.engine.packed.members import member
from src.record import checkpoint
from src.record.records import RunFolder, run_id
from src.sweep import split
from src.sweep.fit import Memory, fewest_parts, length, tokens_of
from src.sweep.machine import Machine, free_memory, oom_kills
from src.sweep.outlook import outlook
from src.sweep.packs import Pack, agreement, group
from src.sweep.plan import Job
from tests.conftest import TINY

# Written out once more: what runs of one pack may differ in, each with the reason that the engine can hold both.
MAY_DIFFER = {
    *("model.name", "model.note", "dataset.name", "variant.name"),  # names only
    *("variant.scaling", "variant.magnitude", "variant.factors", "lora.r", "lora.alpha", "lora.init"),  # the adapter's own
    *("lora.dropout", "seed", "data_seed"),  # drawn for each run
    *(
        "train.lr",
        "train.schedule",
        "train.warmup",
        "train.warmup_steps",
        "train.weight_decay",
        "train.clip",
    ),  # one value per run and step
    *("tracking.mode", "tracking.project", "tracking.entity", "sweep", "keep_weights", "force"),  # not the worker's arithmetic
}


@cache
def composed(*overrides: str) -> Config:
    return compose([*TINY, *overrides])


def job(*overrides: str) -> Job:
    config = deepcopy(composed(*overrides))
    return Job(run_id(config), config)


def ranks(last: int, *overrides: str) -> list[Job]:
    """A job for each rank from 1 to ``last``."""
    jobs = []
    for r in range(1, last + 1):
        config = deepcopy(composed(*overrides))
        config.lora.r = r
        jobs.append(Job(run_id(config), config))
    return jobs


@cache
def of_rank(r: int) -> Job:
    return ranks(r)[-1]


class Roomy(Memory):
    """A machine with ``total`` bytes of which a pack needs 100, and 10 for each run."""

    def __init__(self, total: int | None = None, gpu: str | None = "a GPU") -> None:
        super().__init__()
        self.here = Machine(gpu, total)

    def machine(self, device: str) -> Machine:
        return self.here

    def need(self, jobs: Sequence[Job]) -> int | None:
        return 100 + 10 * len(jobs)


def sizes(jobs: Sequence[Job], memory: Memory, limit: int | None = None) -> list[int]:
    return [len(pack.jobs) for pack in group(jobs, memory, limit)]


def test_variants_ranks_rates_and_seeds_share_a_pack() -> None:
    jobs = [
        job(f"variant={variant}", f"lora.r={r}", f"train.lr={lr}", f"seed={seed}")
        for variant in ("dora", "lora", "rslora")
        for r in (64, 4)
        for lr in (1e-3, 1e-4)
        for seed in (0, 1)
    ]
    (pack,) = group(jobs, Roomy())
    assert [each.config.lora.r for each in pack.jobs] == [4] * 12 + [64] * 12
    assert pack.describe() == "bf16, 24 runs: dora, lora, rslora, r 4-64, 2 rates, 2 seeds"


def test_what_cannot_share_a_base_stands_apart() -> None:
    variants = ("lora", "qlora", "qdora", "lora_8bit", "frozen", "dora", "full")
    jobs = [job(f"variant={name}") for name in variants] + [job("variant=frozen", "seed=1"), job("engine=peft"), job("seed=5")]
    packs = group(jobs, Roomy())
    assert [pack.variants for pack in packs] == ["lora, dora", "qlora, qdora", "lora_8bit", "frozen", "full", "frozen", "lora"]
    assert [len(pack.jobs) for pack in packs] == [3, 2, 1, 1, 1, 1, 1]
    assert packs[3].settings == "" and packs[6].config.engine == "peft"


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another" if not value else ["another"] if isinstance(value, list) else f"{value}x"


def test_every_field_keeps_runs_apart_unless_a_pack_can_hold_both_values() -> None:
    leaves = [key for key in known_keys() if not is_dataclass(value_at(Config(), key))]
    assert set(leaves) > MAY_DIFFER
    one = agreement(job().config)
    for key in leaves:
        changed = job()
        *path, last = key.split(".")
        node = value_at(changed.config, ".".join(path)) if path else changed.config
        setattr(node, last, other(getattr(node, last)))
        assert (agreement(changed.config) == one) == (key in MAY_DIFFER), key


def parts_of(jobs: Sequence[Job], weights: Sequence[float], count: int) -> list[list[Job]]:
    return [list(jobs[start:end]) for start, end in split.equal_weights(list(itertools.accumulate(weights)), count)]


def test_the_parts_of_a_split_are_even() -> None:
    jobs, ones = ranks(24), [1.0] * 24
    assert [len(part) for part in parts_of(jobs, ones, 5)] == [5, 5, 5, 5, 4]
    assert [each for part in parts_of(jobs, ones, 5) for each in part] == jobs
    assert [len(part) for part in parts_of(jobs, [0.1] * 24, 3)] == [8, 8, 8]  # however the sums are rounded
    heavy = [1.0] * 20 + [10.0] * 4  # 60 in all
    assert [len(part) for part in parts_of(jobs, heavy, 3)] == [20, 2, 2]
    assert [len(part) for part in parts_of(jobs, heavy, 30)] == [2] * 10 + [1] * 4  # what weighs more stands alone
    packs = group(list(reversed(jobs)), Roomy(total=240))  # 85 % are 204 bytes: ten runs
    assert [len(pack.jobs) for pack in packs] == [8, 8, 8]
    assert [pack.settings for pack in packs] == ["r 1-8", "r 9-16", "r 17-24"]
    assert packs[0].memory_bytes == 180


def test_how_many_runs_share_a_pack() -> None:
    jobs = ranks(40)
    assert sizes(jobs, Roomy()) == [40]
    assert sizes(jobs, Roomy(), limit=12) == [10] * 4
    assert sizes(jobs, Roomy(gpu=None)) == [20, 20]  # a processor gains nothing from more than 32
    assert sizes(jobs, Roomy(total=10)) == [1] * 40  # what is too big even alone is tried alone
    many = ranks(40, "pack.max_runs=20")
    assert sizes(many, Roomy(gpu=None)) == [20, 20]
    assert sizes(many, Roomy(total=240), limit=30) == [10] * 4
    assert sizes(many[:1], Roomy(total=10)) == [1]


def test_a_machine_without_room_for_the_higher_ranks_gets_smaller_packs(rows: Path) -> None:
    """By hand: tiny has 98,624 weights, and 2 layers whose in and out features add up to 1,024."""
    data = ["dataset=jsonl", f"dataset.path={rows}"]
    jobs = [job(*data, f"lora.r={r}") for r in (4, 8, 16, 32)]
    memory = Memory()
    tokens = 4 * 16  # 4 rows of 23 bytes, of which no more than 16 tokens are expected
    fixed = 2 * 98_624 + 4096 * 6 * 384

    def of(r: int) -> int:
        return 18 * r * 2 * 1024 + tokens * 2 * 2 * ((4 * 64 + 2 * 64 + 2 * 32 + 3 * 128) + 7 * r)

    # Ranks up to 16 share a bucket and are padded to its largest; by themselves on a GPU, to a multiple of 8.
    three = fixed + 3 * of(16)
    memory.machine = lambda device: Machine("a GPU", round(three / 0.85) + 2)  # type: ignore[method-assign]
    assert memory.need(jobs) == three + of(32) and memory.need(jobs[:1]) == fixed + of(8)
    assert [pack.settings for pack in group(jobs, memory)] == ["r 4-16", "r 32"]
    memory.machine = lambda device: Machine("a GPU", round(three / 0.85) - 2)  # type: ignore[method-assign]
    assert [pack.settings for pack in group(jobs, memory)] == ["r 4-8", "r 16", "r 32"]
    memory.machine = lambda device: Machine(None, None)  # type: ignore[method-assign]
    assert memory.need(jobs[:1]) == fixed + of(4)


class Drawn(Memory):
    """A machine of which a pack needs a base, and a multiple of each run's rank."""

    def __init__(self, base: int, per_rank: int, gpu: str | None) -> None:
        super().__init__()
        self.base, self.per_rank, self.here = base, per_rank, Machine(gpu, 1000)

    def machine(self, device: str) -> Machine:
        return self.here

    def need(self, jobs: Sequence[Job]) -> int:
        return self.base + self.per_rank * sum(each.config.lora.r for each in jobs)


def one_by_one(jobs: Sequence[Job], memory: Drawn, most: int) -> tuple[int, list[list[Job]]]:
    """(count, parts) of the first count that memory holds, by making the parts of one after the other."""
    jobs = sorted(jobs, key=lambda each: each.config.lora.r)
    weights = [float(memory.need([each, each]) - memory.need([each])) for each in jobs]
    usable = 0.85 * 1000
    for count in itertools.count(max(1, math.floor(sum(weights) / usable))):
        parts = [
            few for part in parts_of(jobs, weights, count) for few in parts_of(part, [1.0] * len(part), -(-len(part) // most))
        ]
        if all(len(part) == 1 or memory.need(part) <= usable for part in parts):
            break
    return count, parts


@given(
    drawn=st.lists(st.sampled_from((1, 2, 3, 4, 8, 12, 40)), min_size=2, max_size=40),
    base=st.integers(0, 900),
    per_rank=st.integers(1, 300),
    gpu=st.sampled_from(("a GPU", None)),
    limit=st.one_of(st.none(), st.integers(1, 40)),
)
@settings(max_examples=300, deadline=None)
def test_the_packs_are_those_of_the_first_count_that_fits(
    drawn: list[int], base: int, per_rank: int, gpu: str | None, limit: int | None
) -> None:
    jobs, memory = [of_rank(r) for r in drawn], Drawn(base, per_rank, gpu)
    most = min(limit or len(jobs), len(jobs) if gpu else 32)
    assert fewest_parts(jobs, memory, limit) == one_by_one(jobs, memory, most)[1]


def test_where_hundreds_of_counts_are_too_few_the_parts_of_most_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, memory = [of_rank(r) for r in (1, 2, 40) for _ in range(20)], Drawn(600, 120, "a GPU")
    count, parts = one_by_one(jobs, memory, len(jobs))
    made: list[int] = []

    make = split.equal_weights

    def watched(cumulative: Sequence[float], count: int) -> list[split.Span]:
        made.append(count)
        return make(cumulative, count)

    monkeypatch.setattr(split, "equal_weights", watched)
    assert fewest_parts(jobs, memory, None) == parts
    assert made[-1] == count == 430
    assert len(made) <= len(jobs) + 1  # each failure shows a job that no earlier one has shown


def test_a_share_of_the_memory() -> None:
    """On a processor too, where it is a share of what the system can still give."""
    jobs = ranks(24, "pack.memory_share=0.5")
    for gpu in ("a GPU", None):
        assert sizes(jobs, Roomy(total=480, gpu=gpu)) == [8, 8, 8]
    text = outlook([Pack(tuple(jobs), gib(9.1))], Roomy(gib(79.1)))
    assert text.endswith("about 9.1 GiB of 39.5 GiB (0.5 of 79.1 GiB)")


def test_the_length_of_a_row_is_taken_from_its_text(rows: Path) -> None:
    config = compose(["dataset=jsonl", f"dataset.path={rows}"]).dataset
    chat = Example("2", [{"role": "user", "content": "x" * 100}], "y" * 200, "b")
    assert length(Example("1", "é" * 149, "12", "a"), config) == length(chat, config) == 300 // 3 + 8
    assert length(Example("1", "a", "b", "a"), config) == 16
    config.max_length = 50
    assert length(chat, config) == 50


def drawn(kind: str) -> list[int]:
    draw = random.Random(0)
    if kind == "mild":
        return [draw.choice([8, 12, 16, 20, 60]) for _ in range(400)]
    if kind == "tail":
        return [900 if n % 100 == 0 else draw.randint(20, 60) for n in range(1000)]
    return [min(1000, 5 + int(draw.lognormvariate(3.5, 0.8))) for _ in range(1000)]


@pytest.mark.parametrize("kind", ["mild", "tail", "lognormal"])
@pytest.mark.parametrize("rows_a_step", [1, 2, 4, 16])
def test_the_tokens_of_a_step_are_those_of_its_layout(kind: str, rows_a_step: int) -> None:
    """Against what the feed of the packed engine lays for sixteen orders of the data."""
    lengths = drawn(kind)
    items = [Item(Example(str(n), "", "", ""), [1] * (count - 2), [1, 2], False) for n, count in enumerate(lengths)]
    configs = [deepcopy(composed(f"train.batch_size={rows_a_step}")) for _ in range(16)]
    for seed, config in enumerate(configs):
        config.data_seed = seed
    feed = Feed(items, 0, [member(config) for config in configs], 100, static=True)
    laid, found = feed.sequences * feed.width, tokens_of(lengths, rows_a_step)
    assert 0.8 * laid <= found.laid <= 1.4 * laid
    assert found.padded == rows_a_step * max(lengths) and found.laid <= found.padded


def test_data_that_needs_a_download_counts_as_wide_as_it_may_be() -> None:
    hub = [job("dataset=hub", "dataset.id=a/b", f"dataset.max_length={n}") for n in (100, 101)]
    per_token = 4 * 2 * 2 * ((4 * 64 + 2 * 64 + 2 * 32 + 3 * 128) + 7 * 16)
    needs = [Memory().need([each]) for each in hub]
    assert None not in needs and needs[1] - needs[0] == per_token  # type: ignore[operator]


def test_a_model_of_unknown_shape_is_left_to_the_worker(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nosuch"}')
    jobs = [job("model=path", f"model.path={folder}", f"seed={seed}") for seed in range(3)]
    memory = Memory()
    memory.machine = lambda device: Machine("a GPU", 1000)  # type: ignore[method-assign]
    (pack,) = group(jobs, memory)
    assert len(pack.jobs) == 3 and pack.memory_bytes is None


def test_the_gpu_is_the_first_that_cuda_shows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$@" >> asked\necho "81559, NVIDIA H100 80GB HBM3"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    memory = Memory()
    assert memory.machine("auto") == memory.machine("auto") == Machine("NVIDIA H100 80GB HBM3", 81559 * 2**20)
    (asked,) = (folder / "asked").read_text().splitlines()
    assert asked.endswith("-i 3")
    assert memory.machine("cpu").gpu is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Memory().machine("auto").gpu is None
    assert len((folder / "asked").read_text().splitlines()) == 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert Memory().machine("auto").gpu is None
    tool.unlink()
    monkeypatch.setenv("PATH", str(folder))
    assert Memory().machine("auto").gpu is None


def test_free_memory_is_what_the_kernel_says_is_available() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    stated = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    assert 0.5 * stated["MemAvailable"] < free_memory() <= stated["MemTotal"]


def test_the_kernels_count_of_processes_that_it_killed_for_memory(folder: Path) -> None:
    (folder / "vmstat").write_text("oom_kill_disable 5\noom_kill 3\nswap_ra 7\n")
    assert oom_kills(folder / "vmstat") == 3
    (folder / "vmstat").write_text("swap_ra 7\n")
    assert oom_kills(folder / "vmstat") is None and oom_kills(folder / "nosuch") is None


def stand_at(step: int, each: Job) -> Job:
    each.folder.path.mkdir(parents=True)
    for at in (step - 10, step):
        checkpoint.save(each.folder.checkpoints, {"a": torch.ones(3)}, checkpoint.CheckpointState(checkpoint.Progress(step=at)))
    return each


def test_interrupted_runs_join_those_at_the_same_step() -> None:
    jobs = [stand_at(50, job("lora.r=4")), job("lora.r=8"), stand_at(50, job("seed=7")), stand_at(25, job("seed=8"))]
    jobs.append(stand_at(25, job("seed=9", "force=true")))  # will start again
    packs = group(jobs, Roomy())
    assert [[jobs.index(each) for each in pack.jobs] for pack in packs] == [[0, 2], [1, 4], [3]]


def gib(number: float) -> int:
    return round(number * 2**30)


def test_the_outlook() -> None:
    def pack(needs: float | None, *jobs: Job) -> Pack:
        return Pack(jobs, None if needs is None else gib(needs))

    bf16 = [job(f"variant={variant}", f"lora.r={r}") for variant in ("lora", "rslora") for r in (4, 256)]
    nf4 = [job("variant=qlora", f"seed={seed}") for seed in (0, 1)]
    text = outlook([pack(9.1, *bf16), pack(0.31, *nf4), pack(None, job("variant=frozen"))], Roomy(gib(79.1)))
    assert text.splitlines() == [
        "3 packs, 7 runs: tiny on cldr_names, 3 steps of 4 rows",
        "  1  bf16  4 runs  lora, rslora  r 4-256        about 9.1 GiB of 79.1 GiB",
        "  2  nf4   2 runs  qlora         r 16, 2 seeds  about 317 MiB",
        "  3  bf16  1 run   frozen",
    ]


def earlier(name: str, size: int, speed: float | None, device: str = "cuda: a GPU", precision: str = "bf16") -> None:
    """A run of 20 tokens a row, of which each step of a pack's runs has 4."""
    config = compose([*TINY, "train.steps=3"])
    folder = RunFolder(name)
    folder.write_config(config)
    values = {"run_id": name, "model": "tiny", "dataset": "cldr_names", "device": device, "base_precision": precision}
    counted = {"pack_size": size, "pack_tokens_per_second": speed, "train_tokens": 240, "steps": 3}
    folder.write_result(values | counted)


def test_the_expected_time_is_that_of_the_most_similar_earlier_packs() -> None:
    jobs = [job(f"variant={v}", f"seed={s}", "train.steps=100") for v in ("lora", "qlora") for s in range(10)]

    def last_line() -> str:
        return outlook(group(jobs, Roomy()), Roomy()).splitlines()[-1]

    assert "qlora" in last_line()  # nothing is known of time
    earlier("another", 10, 1.0, device="cuda: another GPU")
    earlier("unmeasured", 10, None)
    assert "qlora" in last_line()
    earlier("single", 1, 10.0)
    earlier("many", 8, 800.0)
    earlier("quantised", 2, 200.0, precision="nf4")
    # 10 runs, 100 steps of 4 rows of 20 tokens: 80,000 tokens at 800 and at 200 tokens a second
    assert last_line() == "  training takes about 8 min, going by earlier runs"
    (Path("runs") / "single" / "config.yaml").write_text("nosuch: 1\n")
    assert last_line().endswith("8 min, going by earlier runs")
    jobs = [stand_at(60, each) for each in jobs]
    assert last_line() == "  training takes about 3 min, going by earlier runs"
    jobs = [job("train.epochs=2", f"seed={s}") for s in range(2)]
    assert "earlier" not in last_line() and "2 epochs, 4 rows a step" in outlook(group(jobs, Roomy()), Roomy())


def test_many_packs_are_not_all_listed() -> None:
    jobs = ranks(25, "engine=peft")
    lines = outlook(group(jobs, Roomy()), Roomy()).splitlines()
    assert lines[0].startswith("25 packs, 25 runs: ") and len(lines) == 22 and lines[-1] == "  and 5 more"


def test_planning_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "peft", "wandb", "pandas")
    code = f"import sys, src.sweep.launch, src.command.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert json.loads(done.stdout) == []
