"""From the jobs of a command line to finished records: check all, skip what is done, run the rest one by one.

Everything here is light (no torch): a refusal comes at once, and before the first job starts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src import datasets, embedded, models
from src.cli import Terminated
from src.config import Config, ConfigError, resolve
from src.progress import bar
from src.records import ENDED, RunFolder, provenance, run_id, write_sweep
from src.train.result import Outcome
from src.train.result import result as record
from src.variants.counts import linears, targets

CODE = Path(__file__).resolve().parents[2]

# For every child process. One runs at a time, so it may have all cores; CUBLAS's setting makes repeated sums alike.
CHILD_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONUNBUFFERED": "1",
}


class RunsFailed(Exception):
    """Some runs of this command did not end well. Which and why has been printed."""


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


def run_jobs(nodes: Sequence[tuple[DictConfig, Any]]) -> None:
    """Run the jobs of one command: (composed config, Hydra's group choices) each.

    Raises:
        ConfigError: some job cannot run; nothing was written and nothing started.
        RunsFailed: at least one run failed or ran out of memory.
    """
    jobs = plan(nodes)
    prepare(jobs)
    outcomes = [_run(job, at, len(jobs)) for at, job in enumerate(jobs, start=1)]
    if any(status not in ENDED for status in outcomes):
        raise RunsFailed


def plan(nodes: Sequence[tuple[DictConfig, Any]]) -> list[Job]:
    """The jobs, each checked, no run twice; writes the sweep's list of runs, and nothing if a job is refused."""
    jobs: dict[str, Job] = {}
    names: set[str | None] = set()
    experiment = None
    for node, choices in nodes:
        config = resolve(node)
        names.add(config.sweep)
        experiment = choices.get("experiment")
        job = Job(run_id(config), config)
        jobs.setdefault(job.run_id, job)
    if len(names) > 1:
        raise ConfigError("sweep: needs one name for all jobs of a command")
    for group in _by_inputs(jobs.values()):
        refuse(group)
    (given,) = names
    name = given or _sweep_name(list(jobs), experiment)
    if name is not None:
        write_sweep(name, list(jobs), add=given is not None)
    for job in jobs.values():
        job.config.sweep = name
    return list(jobs.values())


def _sweep_name(run_ids: list[str], experiment: str | None) -> str | None:
    """The experiment's name, or for several runs one that the same sweep gets again."""
    if experiment:
        return experiment.replace("/", ".")
    if len(run_ids) == 1:
        return None
    return f"sweep-{hashlib.sha256(' '.join(sorted(run_ids)).encode()).hexdigest()[:8]}"


def _by_inputs(jobs: Any) -> list[list[Job]]:
    """Jobs that share model, data and targets, so that each file is read once however long the sweep is."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        c = job.config
        key = repr((asdict(c.model), asdict(c.dataset), c.lora.target_modules, c.train.batch_size))
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def refuse(jobs: Sequence[Job]) -> None:
    """Raise ConfigError where these jobs, which share their inputs, cannot run."""
    config = jobs[0].config
    models.refuse_impossible(config.model)
    shape = models.find_shape(config.model)
    if shape is not None:
        targets(linears(shape), config.lora.target_modules, config.model.name)
    splits = datasets.refuse_impossible(config.dataset, config.train.batch_size)
    if splits is None:
        return
    now = splits.fingerprint()
    for job in jobs:
        result, known = job.folder.result(), job.folder.provenance()
        if (
            not job.config.force
            and (result or job.folder.checkpoint.exists())
            and known
            and known.get("data_fingerprint") not in (None, now)
        ):
            raise ConfigError(
                f"dataset: run {job.run_id} was trained on other contents of the same files; use force=true to repeat it"
            )


def prepare(jobs: Sequence[Job]) -> None:
    """Convert the embedded model if a job needs it, in a process of its own, so that no run's memory peak has it."""
    if not any(job.config.model.source == "embedded" and job.config.model.weights == "pretrained" for job in jobs):
        return
    if embedded.is_ready():
        return
    print("converting the embedded SmolLM2-135M once (about half a minute)", file=sys.stderr)
    with bar("converting"):
        done = subprocess.run([sys.executable, "-m", "src.embedded"], env=_environment(), capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"model=smollm2_135m: the conversion failed: {last}")


def _run(job: Job, at: int, of: int) -> str:
    """Run one job in a child process unless it has ended before; prints one line; returns its status."""
    with _claimed(job.folder) as lock:
        return _run_claimed(job, f"[{at}/{of}] {job.run_id} {job.label()}", lock)


@contextmanager
def _claimed(folder: RunFolder) -> Iterator[int]:
    """Hold a run for this process; another command that wants it waits, and then finds it done.

    The worker inherits the lock, which the system gives up when the last of both ends, however it ends.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.run_id} is being trained by another process; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _run_claimed(job: Job, head: str, lock: int) -> str:
    folder = job.folder
    before = folder.result()
    if before and before["status"] in ENDED and not job.config.force:
        print(f"{head}: already done, {describe(before)}")
        return str(before["status"])
    folder.clear_results()
    if job.config.force:
        folder.clear_progress()
    folder.write_config(job.config)
    folder.write_json("provenance.json", provenance(sys.argv))
    print(f"{head} ...", flush=True)
    started = time.perf_counter()
    code = _child(folder, lock)
    result = folder.result()
    if result is None:
        reason = (
            f"its process was killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"
        )
        result = record(job.config, job.run_id, Outcome("failed", reason))
        folder.write_json("result.json", result)
    print(f"{head}: {describe(result)}, {time.perf_counter() - started:.0f} s", flush=True)
    return str(result["status"])


def _child(folder: RunFolder, lock: int) -> int:
    """The worker's exit code. On Ctrl-C the worker gets the signal too; on SIGTERM it is passed on."""
    worker = subprocess.Popen([sys.executable, "-m", "src.train.worker", str(folder.path)], env=_environment(), pass_fds=[lock])
    try:
        return worker.wait()
    except KeyboardInterrupt as error:
        if isinstance(error, Terminated):
            worker.terminate()
        try:
            worker.wait(timeout=30)
        except subprocess.TimeoutExpired:
            worker.kill()
        raise


def describe(result: dict[str, Any]) -> str:
    """A result in a few words: its status with the reason, or its test loss."""
    if result["status"] != "ok":
        return f"{result['status']}: {result['reason']}"
    metrics = result["metrics"]
    parts = [f"{key} {metrics[key]:.3f}" for key in ("test/loss", "test/exact_match") if key in metrics]
    return ", ".join(["ok", *parts])


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **CHILD_ENVIRONMENT, "PYTHONPATH": path}
