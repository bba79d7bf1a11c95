"""Check the jobs of a command line, each run once, and prepare what they need.

Everything here is light (no torch): a refusal comes at once, and before the first job starts.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig

from ..config.schema import Config, ModelConfig
from ..config.values import resolve
from ..data import datasets, prose, renderable
from ..files.errors import ConfigError
from ..files.terminal import spinner
from ..measure import answers
from ..model import embedded, models, refusals
from ..record import checkpoint
from ..record.records import RunFolder, run_id, write_sweep
from . import bases
from .child import PRODUCT, environment


@dataclass(frozen=True)
class Job:
    run_id: str
    config: Config

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.run_id)

    def label(self) -> str:
        config = self.config
        rank = f" r={config.lora.r}" if config.variant.trains == "adapter" else ""
        rate = "" if config.variant.trains == "none" else f" lr={config.train.lr:g}"
        return f"{config.variant.name}{rank}{rate} seed={config.seed}"


def plan(nodes: Sequence[tuple[DictConfig, Any]]) -> list[Job]:
    """Resolve the jobs of a command line and admit them."""
    configs = [resolve(node) for node, _ in nodes]
    return admit(configs, nodes[-1][1].get("experiment"))


def admit(configs: Sequence[Config], experiment: str | None = None) -> list[Job]:
    """Make checked jobs of configs, each run once; writes the sweep's list of runs, and nothing if a job is refused."""
    jobs: dict[str, Job] = {}
    for config in configs:
        job = Job(run_id(config), config)
        jobs.setdefault(job.run_id, job)
    names = {config.sweep for config in configs}
    if len(names) > 1:
        raise ConfigError("sweep: needs one name for all jobs of a command")
    for group in _by_inputs(jobs.values()):
        refuse(group)
    (stated,) = names
    name = stated or _sweep_name(list(jobs), experiment)
    if name is not None:
        write_sweep(name, list(jobs), add=stated is not None)
    for job in jobs.values():
        job.config.sweep = name
    return list(jobs.values())


def _sweep_name(run_ids: list[str], experiment: str | None) -> str | None:
    """Name a sweep: by its experiment, or if it has several runs, by their ids, so that it gets the same name again."""
    if experiment:
        return experiment.replace("/", ".")
    if len(run_ids) == 1:
        return None
    return f"sweep-{hashlib.sha256(' '.join(sorted(run_ids)).encode()).hexdigest()[:8]}"


def _by_inputs(jobs: Any) -> list[list[Job]]:
    """Group jobs that share model, data and targets, so that each file is read once however long the sweep is."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        c = job.config
        key = repr((asdict(c.model), asdict(c.dataset), c.lora.target_modules, c.train.batch_size))
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def refuse(jobs: Sequence[Job]) -> None:
    """Raise ConfigError where these jobs, which share their inputs, cannot run."""
    config = jobs[0].config
    refusals.refuse_impossible(config.model)
    bases.refuse([job.config for job in jobs])
    asked = {job.config.forgetting.path: job.config.forgetting for job in jobs if job.config.forgetting.tokens}
    read = {path: prose.load(forgetting).fingerprint() for path, forgetting in asked.items() if path is not None}
    for job in jobs:
        path = job.config.forgetting.path
        _refuse_other_contents(job, "forgetting.path", "prose_fingerprint", None if path is None else read.get(path))
    splits = datasets.refuse_impossible(config.dataset, config.train.batch_size)
    if splits is None:
        return
    answers.refuse_unanswerable(config.dataset, splits.test)
    bases.refuse_rows(config, splits)
    if _has_tokenizer(config.model):
        random = config.model.weights == "random"
        renderable.refuse_unrenderable(splits, None if random else models.location(config.model), config.dataset)
    if splits.leaking:
        print(
            f"note: {splits.leaking} training rows ask questions of validation or test, as dataset.leaks={config.dataset.leaks}"
            " lets them",
            file=sys.stderr,
        )
    now = splits.fingerprint()
    for job in jobs:
        _refuse_other_contents(job, "dataset", "data_fingerprint", now)


def _has_tokenizer(model: ModelConfig) -> bool:
    """Tell whether the base's tokenizer can be read now, without a network and before the embedded model is unpacked."""
    return model.weights == "random" or model.source == "path" or (model.source == "embedded" and embedded.is_ready())


def _refuse_other_contents(job: Job, key: str, fingerprint: str, now: str | None) -> None:
    """Raise ConfigError where a record, finished or begun, is of other contents of a file than those of ``now``."""
    known = job.folder.provenance() or {}
    if job.config.force or now is None or known.get(fingerprint) in (None, now):
        return
    if job.folder.result() or checkpoint.steps(job.folder.checkpoints):
        raise ConfigError(f"{key}: run {job.run_id} has read other contents of the same files; use force=true to repeat it")


def prepare(jobs: Sequence[Job]) -> None:
    """Convert the embedded model if a job needs it, in a process of its own, so that no run's memory peak has it."""
    if not any(job.config.model.source == "embedded" and job.config.model.weights == "pretrained" for job in jobs):
        return
    if embedded.is_ready():
        return
    print("converting the embedded SmolLM2-135M once (about half a minute)", file=sys.stderr)
    with spinner("converting"):
        done = subprocess.run(
            [sys.executable, "-m", f"{PRODUCT}.model.embedded"], env=environment(), capture_output=True, text=True
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"model=smollm2_135m: the conversion failed: {last}")
