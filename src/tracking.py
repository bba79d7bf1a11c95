"""The W&B mirror: one W&B run per run, fed from the record's own lines. Training never fails because of it."""

from __future__ import annotations

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.config import Config
from src.credentials import redact

# Online, W&B may wait this long for its server before the run is mirrored offline instead.
INIT_TIMEOUT_SECONDS = 15


# One thread does all of W&B's work of a process, in the order in which it was asked for, so that training never waits.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wandb")


def flush() -> None:
    """Wait until all that was asked for is done."""
    _thread.submit(lambda: None).result()


def abandon() -> None:
    """Leave undone what has not begun: the process was told to stop."""
    _thread.shutdown(wait=False, cancel_futures=True)


class Mirror:
    """Mirrors one run. Whatever W&B raises becomes one line on stderr, and the mirror is off from then on."""

    def __init__(self, config: Config, run_id: str, folder: Path) -> None:
        self.run: Any = None
        self.off = config.tracking.mode == "disabled"
        if not self.off:
            _thread.submit(self._open, config, run_id, folder)

    def _open(self, config: Config, run_id: str, folder: Path) -> None:
        mode = config.tracking.mode
        if mode == "online" and not _has_key():
            _say("no API key (WANDB_API_KEY or wandb login); mirroring offline")
            mode = "offline"
        for attempt in dict.fromkeys([mode, "offline"]):
            try:
                self.run = _start(config, run_id, folder, attempt)
                return
            except Exception as error:  # any failure of a mirror is a failure to mirror, nothing more
                _say(f"{attempt}: {_first_line(error)}")

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, at its step."""
        values = {key: value for key, value in line.items() if value is not None and math.isfinite(value)}
        self._try(lambda: self.run.log(values, step=values["step"]))

    def finish(self, summary: dict[str, Any], ok: bool) -> None:
        """Close the mirror, after all that was logged."""

        def close() -> None:
            self.run.summary.update(summary)
            self.run.finish(exit_code=0 if ok else 1)

        self._try(close)

    def _try(self, action: Any) -> None:
        if not self.off:
            _thread.submit(self._do, action)

    def _do(self, action: Any) -> None:
        if self.run is None:
            return
        try:
            action()
        except Exception as error:  # see __init__
            _say(f"switched off: {_first_line(error)}")
            self.run = None


def _start(config: Config, run_id: str, folder: Path, mode: str) -> Any:
    import wandb

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
            init_timeout=INIT_TIMEOUT_SECONDS,
            x_disable_stats=True,
            x_disable_meta=True,
            disable_git=True,
            save_code=False,
        ),
    )


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    print(f"W&B: {redact(text)}", file=sys.stderr)
