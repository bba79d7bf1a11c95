"""Conclude the runs that trained to the end: check that each variant was live, save, score, write the result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ..adapter import card
from ..engine.protocol import Engine
from ..files.durable import replacing
from . import final
from .checks import LiveChecks
from .final import Forgetting
from .pack import Pack
from .run import Run
from .session import Session


def conclude(pack: Pack, session: Session, live: LiveChecks, forgetting: Forgetting) -> None:
    """Bring every run that did not diverge to its result; one whose checks fail is ``failed``, scores and all."""
    engine, rows = session.engine, session.loaded.rows
    runs = pack.sound()
    for place, run in runs.items():
        run.outcome.checks = live.judge(place) | ({} if session.proof is None else {"equals_peft": session.proof})
    # Writing is work for the disk, so it goes on beside the scoring; what has not begun is dropped where that fails.
    writing = ThreadPoolExecutor(max_workers=1)
    try:
        saved = [writing.submit(_save, engine, place, run) for place, run in runs.items() if run.config.keep_weights]
        if runs:
            final.test(runs, session.scorer, rows.tokenizer, rows.stop, rows.items["test"], pack.events, rows.splits.labels)
            forgetting.after({place: run for place, run in runs.items() if run.outcome.status == "ok"})
        for future in saved:
            future.result()
    finally:
        writing.shutdown(cancel_futures=True)
    for run in runs.values():
        failed = [name for name, check in run.outcome.checks.items() if not check["ok"]]
        if failed:
            details = "; ".join(f"{name}: {run.outcome.checks[name]['detail']}" for name in failed)
            run.outcome.status, run.outcome.reason = "failed", f"live check failed: {details}"
        if run.config.variant.trains == "adapter" and run.config.keep_weights:
            card.write(run.folder.adapter, run.config, run.values(), {name: len(items) for name, items in rows.items.items()})
        pack.finish(run)


def _save(engine: Engine, place: int, run: Run) -> None:
    """Write the adapter, or the whole model where all of it trained."""
    if run.config.variant.trains == "adapter":
        with replacing(run.folder.adapter) as folder:
            engine.save_adapter(place, run.config, folder)
            card.name_base(folder, run.config)
        run.outcome.measured["adapter_bytes"] = (run.folder.adapter / "adapter_model.safetensors").stat().st_size
    elif run.config.variant.trains == "all":
        with replacing(run.folder.model) as folder:
            engine.network.save_pretrained(folder)
