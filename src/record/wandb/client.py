"""Start a W&B run and end W&B's service process, with a limit on each wait and without W&B's signals or hooks."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from ...config.schema import Config
from ...files.durable import writing

# Online, W&B may wait this long for its server before the runs are mirrored offline instead.
INIT_SECONDS = 15
# At a run's end W&B may upload for this long. Its local file holds everything that is not uploaded by then.
FINISH_SECONDS = 30


def start(config: Config, run_id: str, folder: Path, mode: str, say: Callable[[str], None]) -> Any:
    """Start a W&B run below ``folder``/wandb. Raises whatever W&B raises, after INIT_SECONDS where its server is silent."""
    # W&B reports its own errors to a server; where that does not answer, the exit of a process waits for 12 s.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.raiseExceptions = False  # W&B's debug log on a full disk would print a traceback for each of its lines
    import wandb

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # An offline run cannot be resumed, so each attempt is a W&B run of its own in the same group.
    attempt = len(list(folder.glob("wandb/*run-*-*")))
    return wandb.init(
        project=config.tracking.project,
        entity=config.tracking.entity,
        id=run_id if attempt == 0 else f"{run_id}-{attempt}",
        name=f"{config.variant.name}-r{config.lora.r}-s{config.seed}",
        group=config.sweep,
        job_type="train",
        tags=[config.variant.name],
        config={**asdict(config), "run_id": run_id},
        dir=str(folder.resolve()),  # W&B writes from a service process with a current folder of its own
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            # By default a button on the server would send us SIGINT, which stops a whole pack.
            stop_fn=lambda: say(f"a stop of {run_id} asked for in W&B is not followed; Ctrl-C stops a sweep"),
            x_transaction_log_flush_interval=1,  # seconds of lines that the death of its service can cost; 15 by default
            x_disable_stats=True,
            x_disable_meta=True,
            disable_git=True,
            save_code=False,
        ),
    )


def teardown() -> None:
    """End W&B's service process, dead or alive; unfinished W&B runs end as failed."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # raised where the service was unhealthy; the exit hook is removed by then
        wandb.teardown(exit_code=1)


def has_key() -> bool:
    """Tell whether the environment or netrc may hold a W&B key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")


def services() -> list[psutil.Process]:
    """List W&B's service processes that this process started and that are alive."""
    alive = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE:
                alive.append(child)
    return alive
