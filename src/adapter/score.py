"""``python -m src.eval score``: measure a trained adapter, or its base, on the test split of any dataset."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..command import cli, words
from ..command.words import Key
from ..config.schema import Config, EvalConfig
from ..data import datasets, sources
from ..files.durable import dump_json, seal_text, write_atomically
from ..files.errors import ConfigError
from ..files.terminal import quiet_libraries, spinner
from ..files.text import clean
from . import adapted
from .adapted import Source

USAGE = f"""\
usage: python -m src.eval score run=ID [dataset=NAME] [dataset.KEY=VALUE ...] [examples=N] [generate=false]
       python -m src.eval score adapter=FOLDER [model=NAME] [precision=nf4] dataset=NAME ...

Scores a trained adapter on the test split of a dataset (default: the run's own) and writes the metrics, and a line for each
example, to reports/scores/. Training files are not needed where the dataset has test files of its own.

{adapted.USAGE}\
  dataset=NAME     a name in conf/dataset; dataset.path= and the other keys of dataset as in python -m src.train
  examples=N       score at most N examples of the test split (default: all; on the run's own dataset as many as the run did)
  generate=BOOL    generate answers too, besides log-losses (default: true)
  max_new_tokens=N at most N tokens per answer (default: as many as the longest target has)
  batch_size=N     rows per batch (default: 64, or on a GPU as many as memory holds)
  base=BOOL        score the base without the adapter, for comparison (default: false)
"""
KEYS = adapted.KEYS | {
    "examples": Key(words.whole(1, 10**9), "200"),
    "generate": Key(words.switch, "false"),
    "max_new_tokens": Key(words.whole(1, 65536), "64"),
    "batch_size": Key(words.whole(1, 65536), "16"),
    "base": Key(words.switch, "true"),
}
FOLDER = Path("reports") / "scores"


def run(arguments: list[str]) -> None:
    """Do what the words ask for."""
    about_data = [word for word in arguments if word.startswith(("dataset=", "dataset."))]
    values, _ = words.read([word for word in arguments if word not in about_data], KEYS)
    source = adapted.find(values)
    base = values.get("base", False)
    if base and source.adapter is None:
        raise ConfigError(f"base: {source.name} has no adapter to switch off; variant=frozen is the base")
    if about_data and not any(word.startswith("dataset=") for word in about_data):
        raise ConfigError(f"{about_data[0].partition('=')[0]}: says more about a dataset, which dataset=NAME chooses")
    if not about_data and source.record is None:
        raise ConfigError("dataset: an adapter's folder does not say what it was trained on; dataset=NAME chooses one")
    config = cli.compose(about_data) if about_data else source.config
    if about_data:
        sources.refuse_idle(config.dataset)
    splits = datasets.load_test(config.dataset) if about_data else adapted.own_splits(source, "it is scored")
    limit = values.get("examples", None if about_data else config.eval.test_examples)
    if not (examples := splits.test[:limit]):
        raise ConfigError(f"dataset={config.dataset.name}: has no test examples")
    quiet_libraries()
    evaluation = EvalConfig(
        generate=values.get("generate", True),
        max_new_tokens=values.get("max_new_tokens", None if about_data else config.eval.max_new_tokens),
        batch_size=values.get("batch_size"),
    )
    with spinner(f"scoring {source.name} on {config.dataset.name}"):
        report, rows = score(source, config, examples, splits.labels, evaluation, base)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    report |= {
        "examples": len(examples),
        "test_split": len(splits.test),
        "rows_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    stem = _report_stem(source, report)
    write_atomically(stem.with_name(f"{stem.name}.jsonl"), text)
    write_atomically(stem.with_name(f"{stem.name}.json"), seal_text(dump_json(report)))
    show(report)
    print(clean(f"{stem}.json"))


def _report_stem(source: Source, report: Mapping[str, Any]) -> Path:
    """Name the files of a score, without their endings. The same question has the same name, and any other another one."""
    name = source.record.run_id if source.record else str(source.adapter and source.adapter.resolve())
    question = [name, *(report[key] for key in ("base_only", "base_precision", "dataset_config", "examples", "max_new_tokens"))]
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
    # The name of a dataset is free text, and may come from a record that someone else wrote.
    dataset = re.sub(r"[^\w.-]", "_", report["dataset"], flags=re.ASCII).lstrip(".")[:80] or "dataset"
    folder = source.record.run_id if source.record else "adapters"
    return FOLDER / folder / f"{dataset}{'_base' * report['base_only']}-{digest}"


def score(
    source: Source,
    config: Config,
    examples: Sequence[datasets.Example],
    labels: Sequence[str],
    evaluation: EvalConfig,
    base: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (what was measured and on what, a row for each example). ``base``: with the adapter switched off.

    Raises:
        ConfigError: the log-loss is not finite, or there is no base to switch to.
    """
    from contextlib import nullcontext

    from ..data import batches, ending
    from ..measure.measure import measure
    from ..measure.scorer import Scorer, Solo
    from ..model import capacity, device, models

    opened = adapted.open_source(source)
    if base and opened.replaced:
        raise ConfigError(f"base: {source.name} replaces {opened.replaced} of the base, which stay when it is switched off")
    tokenizer, dataset = opened.tokenizer, config.dataset
    items = batches.tokenize(examples, tokenizer, dataset.max_length, dataset.chat_template, dataset.turns)
    new_tokens = (evaluation.max_new_tokens or max(len(item.target) for item in items)) if evaluation.generate else 0
    capacity.refuse(opened.network, {"test": items}, tokenizer.pad_token_id, new_tokens)
    own = models.generation_config(source.config.model, tokenizer)
    stop = ending.stop_ids(tokenizer, (item.end for item in items), own)
    for item in items if evaluation.generate else ():
        ending.refuse_unreachable(item.example.id, item.target, stop, tokenizer)
    scorer = Scorer(Solo(opened.network, opened.numerics), evaluation.batch_size, tokenizer.pad_token_id)
    with opened.network.disable_adapter() if base and source.adapter else nullcontext():
        (outcome,) = measure(scorer, tokenizer, stop, items, dataset, labels, evaluation, lambda what, total: lambda rows: None)
    if "loss" not in outcome.metrics:
        raise ConfigError(f"{source.name}: its log-loss on {dataset.name} is not finite")
    return {
        "source": source.name,
        "base_only": base,
        "model": source.config.model.name,
        "variant": source.config.variant.name,
        "base_precision": source.config.variant.base_precision,
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "dataset_config": asdict(dataset),
        "cut": sum(item.cut for item in items),
        "max_new_tokens": evaluation.max_new_tokens if evaluation.generate else None,
        "device": device.describe(opened.numerics.device),
        "metrics": outcome.metrics,
    }, outcome.rows


def show(report: dict[str, Any]) -> None:
    """Print what was measured, on what, and the metrics."""
    version = f" (version {report['dataset_version']})" if report["dataset_version"] is not None else ""
    subject = f"{report['source']}, {report['variant']} over {report['base_precision']}"
    print(clean(f"{subject}{', adapter switched off' * report['base_only']}, on {report['dataset']}{version}:"))
    print(f"{report['examples']:,} of {report['test_split']:,} test examples; {report['device']}")
    for name, value in report["metrics"].items():
        print(f"  {name:<20}{value:>10.4f}")
    if report["cut"]:
        print(f"{report['cut']} rows are longer than dataset.max_length and were cut")
