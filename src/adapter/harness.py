"""``python -m src.eval harness``: run tasks of EleutherAI's lm-evaluation-harness on one trained adapter."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from ..command import words
from ..command.messages import suggest
from ..command.words import Key
from ..files.durable import dump_json, write_atomically
from ..files.errors import ConfigError
from ..files.terminal import quiet_libraries
from ..files.text import clean
from ..model import models
from . import adapted
from .adapted import Source

USAGE = f"""\
usage: python -m src.eval harness run=ID tasks=NAME,NAME [limit=N] [include=FOLDER] [batch_size=8]

Runs tasks of lm-evaluation-harness (pip install 'lm-eval>=0.4.9', the extra harness) on base and adapter, in the precision of
training, and writes the results to reports/harness/<id>/results.json. Most tasks download their data.

{adapted.USAGE}\
  tasks=NAMES      tasks of the harness, or of the YAML files in include=
  limit=N          at most N examples per task
  include=FOLDER   a folder with tasks of your own; their YAML can name Python code, which the harness runs
  batch_size=N     rows per batch (default: 8)
"""
KEYS = adapted.KEYS | {
    "tasks": Key(words.matching(r"[\w.-]+(,[\w.-]+)*", "names of tasks"), "arc_easy,hellaswag"),
    "limit": Key(words.whole(1, 10**9), "100"),
    "include": Key(str, "tasks"),
    "batch_size": Key(words.whole(1, 65536), "8"),
}
FOLDER = Path("reports") / "harness"
PACKAGE = "lm_eval"
KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


def run(arguments: list[str]) -> None:
    """Do what the words ask for."""
    values, _ = words.read(arguments, KEYS)
    if "tasks" not in values:
        raise ConfigError(f"tasks: is needed, such as tasks={KEYS['tasks'].example}")
    source = adapted.find(values)
    if "include" in values and not Path(values["include"]).is_dir():
        raise ConfigError(f"include={values['include']}: no such folder")
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError("harness: lm-evaluation-harness is not installed; pip install 'lm-eval>=0.4.9', the extra harness")
    quiet_libraries()
    results = evaluate(source, values)
    path = FOLDER / (values.get("run") or Path(values["adapter"]).name) / "results.json"
    kept = {key: results[key] for key in KEPT if key in results}
    text = dump_json(json.loads(json.dumps({"source": source.name, "limit": values.get("limit"), **kept}, default=str)))
    write_atomically(path, text)
    for task, metrics in results["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float) and "_stderr" not in name:
                error = metrics.get(name.replace(",", "_stderr,", 1))
                spread = f" +- {error:.4f}" if isinstance(error, float) else ""
                print(clean(f"{task}  {name.partition(',')[0]}  {value:.4f}{spread}"))
    print(path)


def evaluate(source: Source, values: dict[str, Any]) -> dict[str, Any]:
    """Run the tasks and return what ``lm_eval.simple_evaluate`` returns.

    Raises:
        ConfigError: the harness knows no such task, or cannot load its data.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = values["tasks"].split(",")
    manager = TaskManager(include_path=values.get("include"))
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise ConfigError(
            f"tasks={values['tasks']}: the harness has no {', '.join(unknown)}{suggest(unknown[0], manager.all_tasks)}"
        )
    arguments, place = model_arguments(source)
    try:
        results = lm_eval.simple_evaluate(
            model="hf", model_args=arguments, tasks=tasks, limit=values.get("limit"), batch_size=values.get("batch_size", 8),
            device=place, task_manager=manager, log_samples=False,
        )  # fmt: skip
    except (OSError, ValueError) as error:  # data that cannot be had, a task's YAML that is wrong
        raise ConfigError(f"tasks={values['tasks']}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    return dict(results or {"results": {}})


def model_arguments(source: Source) -> tuple[dict[str, Any], str]:
    """Return (``model_args`` of the harness's model ``hf``, its device).

    A 16-bit base goes by name, and its adapter by the harness's own ``peft=``. A quantized base goes as a model: since version 5
    transformers takes no ``load_in_4bit``, which the harness would pass on.
    """
    from ..model import device

    config, model = source.config, source.config.model
    if model.weights == "random":
        raise ConfigError(f"{source.name}: the harness reads a model's folder or hub id, and random weights have none")
    numerics = device.choose(config)
    if source.quantized:
        opened = adapted.open_source(source)
        return {"pretrained": opened.network, "tokenizer": opened.tokenizer}, str(numerics.device)
    base = models.location(model)
    arguments: dict[str, Any] = {"pretrained": base, "dtype": str(numerics.base).removeprefix("torch.")}
    if model.source == "hub" and model.revision:
        arguments["revision"] = model.revision
    if config.variant.trains == "all":
        assert source.record is not None
        arguments |= {"pretrained": str(source.record.model), "tokenizer": base}
    elif source.adapter is not None:
        arguments["peft"] = str(source.adapter)
    return arguments, str(numerics.device)
