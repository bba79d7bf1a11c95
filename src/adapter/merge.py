"""``python -m src.eval merge``: fold an adapter into its base, save the model, and measure what that cost in fidelity."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import words
from ..command.words import Key
from ..data import datasets, inputs, prose
from ..files.durable import dump_json, replacing, seal_text
from ..files.errors import ConfigError
from ..files.terminal import quiet_libraries
from ..model import models
from ..model.pretrained import load_whole
from ..variants.methods.point import warning_onto_original
from ..variants.methods.precision import QUANTIZED
from . import adapted, serving
from .adapted import Adapted, Source

if TYPE_CHECKING:
    import torch

USAGE = f"""\
usage: python -m src.eval merge run=ID out=DIR [onto=original|dequantised] [dtype=bf16] [examples=64] [latency=true]
       python -m src.eval merge adapter=FOLDER [model=NAME] [precision=nf4] out=DIR ...

Folds an adapter into its base in fp32, rounds once, saves model and tokenizer to DIR for AutoModelForCausalLM.from_pretrained,
reads them back, compares them with the unmerged adapter, prints the table and writes it to DIR/merge.json.

{adapted.USAGE}\
  out=DIR          the folder to write the model to; it must not exist
  onto=NAME        needed for a quantized base, where no merge is exact: original (the 16-bit base) or dequantised (the weights
                   that the quantized base multiplies with)
  dtype=NAME       the format of the saved weights: bf16 (default) or fp32
  examples=N       measure fidelity on N examples of the run's test split, or of held-out prose with adapter= (default: 64)
  control=BOOL     merge once more in fp32 throughout, to tell rounding from the rest (default: up to 1e9 parameters)
  latency=BOOL     time base, adapter and merged model (default: true)
"""
KEYS = adapted.KEYS | {
    "out": Key(str, "merged"),
    "onto": Key(str, "original"),
    "dtype": Key(words.one_of("bf16", "fp32"), "bf16"),
    "examples": Key(words.whole(1, 10**6), "64"),
    "control": Key(words.switch, "true"),
    "latency": Key(words.switch, "true"),
}
SMALL = 10**9  # parameters up to which the control is made unasked: it holds two models in fp32
REPORT = "merge.json"
REQUANTIZED = (
    "a merge is not requantized: rounded to 4 or 8 bits again, W + s B A loses much of what training added;"
    " serve the adapter over the quantized base, or choose original or dequantised"
)
INT8 = "LLM.int8() also rounds its inputs to 8 bits, which no merged weight reproduces"


def run(arguments: list[str]) -> None:
    """Do what the words ask for."""
    values, _ = words.read(arguments, KEYS)
    if "out" not in values:
        raise ConfigError("out: needs the folder to write, such as out=merged")
    source = adapted.find(values)
    onto = choose_base(source, values.get("onto"))
    out = inputs.expanded(values["out"], "out")
    if out.exists() or out.is_symlink():
        raise ConfigError(f"out={values['out']}: is there already; a merge overwrites nothing")
    examples = _test_split(source, values.get("examples", 64))
    quiet_libraries()
    with replacing(out) as folder:
        report = merge(source, onto, folder, values, examples)
        (folder / REPORT).write_text(seal_text(dump_json(report)), encoding="utf-8")
    show(report)
    print(out)


def choose_base(source: Source, onto: str | None) -> str:
    """Name the weights the adapter is added to: ``base``, or of a quantized base ``original`` or ``dequantised``.

    Raises:
        ConfigError: there is no adapter, or ``onto`` is needed, superfluous or unknown.
    """
    precision = source.config.variant.base_precision
    if source.adapter is None:
        model = source.record.path / "model" if source.record and source.config.variant.trains == "all" else None
        hint = f"; {model} is a model already" if model else ""
        raise ConfigError(f"{source.name}: variant={source.config.variant.name} has no adapter to merge{hint}")
    if onto is not None and onto not in ("original", "dequantised"):
        why = REQUANTIZED if onto in ("quantised", "requantised", *QUANTIZED) else "choose one of original, dequantised"
        raise ConfigError(f"onto={onto}: {why}")
    if not source.quantized:
        if onto is not None:
            raise ConfigError(f"onto={onto}: the base is {precision}, not quantized, so there is one merge; leave onto= out")
        return "base"
    if onto is None:
        raise ConfigError(
            f"onto: the adapter was trained over {precision} weights, from which no merge is exact; choose onto=dequantised (what"
            " it was trained over, in 16 bits: the answers of training) or onto=original (the 16-bit base: without the errors of"
            " quantizing, which the adapter has learned to make up for)"
        )
    return onto


def _test_split(source: Source, examples: int) -> list[datasets.Example] | None:
    """Return the examples of a run that fidelity is measured on; None for an adapter of unknown data."""
    if source.record is None:
        return None
    splits = adapted.own_splits(source, "fidelity is measured")
    return splits.test[: source.config.eval.test_examples][:examples]


def merge(
    source: Source, onto: str, folder: Path, values: dict[str, Any], examples: list[datasets.Example] | None
) -> dict[str, Any]:
    """Write the merged model to ``folder``, measure it, and return the content of merge.json."""
    import torch

    from ..data import batches
    from ..model import device
    from . import fold

    dtype = torch.float32 if values.get("dtype") == "fp32" else torch.bfloat16
    opened = adapted.open_source(source)
    if "embeddings" in opened.replaced:
        raise ConfigError(
            f"{source.name}: holds other embeddings than its base; only linear layers of the decoder are merged here"
        )
    if examples is None:
        text = prose.load(source.config.forgetting)
        items = prose.windows(text, opened.tokenizer, source.config.forgetting.tokens, prose.WINDOW)[: values.get("examples", 64)]
    else:
        dataset = source.config.dataset
        items = batches.tokenize(examples, opened.tokenizer, dataset.max_length, dataset.chat_template, dataset.turns)
    plain, _, numerics = adapted.load_base(source)
    parameters = sum(p.numel() for p in plain.parameters())
    fold.merge(opened.network, plain, source.config.variant, onto == "dequantised", dtype)
    _save(plain, opened.tokenizer, source, folder)
    del plain
    report: dict[str, Any] = {
        "source": source.name, "base": models.public_name(source.config.model) or source.config.model.name,
        "variant": source.config.variant.name, "base_precision": source.config.variant.base_precision,
        "onto": onto, "saved_as": "fp32" if dtype == torch.float32 else "bf16",
        "device": device.describe(numerics.device), "products": "bf16" if numerics.compute else "fp32",
        "measured_on": "held-out prose" if examples is None else "the test split",
        **_measure(opened, folder, torch.promote_types(numerics.base, dtype), items, values.get("latency", True)),
        "fp32_control": None, "notes": notes(source, onto),
    }  # fmt: skip
    del opened
    if values.get("control", parameters <= SMALL):
        report["fp32_control"] = _control(source, onto, items)
    return report


def _measure(opened: Adapted, folder: Path, dtype: torch.dtype, items: list[Any], timed: bool) -> dict[str, Any]:
    """Read the merged model back, and return its fidelity to the adapter and, where ``timed``, the times of both and the base.

    ``dtype`` is the adapter's own format of products, so that the gap is the merge's and not theirs. The model that is read back
    leaves the device with this call.
    """
    from ..measure.scorer import Solo
    from . import fidelity, latency

    numerics = opened.numerics
    read_back: Any = load_whole(folder, f"the merged model {folder}", dtype)
    read_back = read_back.to(numerics.device)
    unmerged, merged = Solo(opened.network, numerics), Solo(read_back, numerics)
    gap = fidelity.gap(unmerged, merged, items, opened.tokenizer.pad_token_id)
    times = None
    if timed:
        base = (unmerged, opened.network.disable_adapter)
        timing: dict[str, Any] = {"base": base, "unmerged": (unmerged, None), "merged": (merged, None)}
        times = latency.compare(timing, _prompt(opened.tokenizer, numerics.device))
    return {"fidelity": asdict(gap) | {"loss_difference": gap.loss_difference}, "latency": times}


def _control(source: Source, onto: str, items: list[Any]) -> dict[str, Any]:
    """Measure the same merge where nothing is rounded: the gap that is left comes from the base chosen by ``onto``."""
    from ..measure.scorer import Solo
    from . import fidelity, fold

    opened = adapted.open_source(source, exact=True)
    plain, _, numerics = adapted.load_base(source, exact=True)
    fold.merge(opened.network, plain, source.config.variant, onto == "dequantised")
    plain.to(numerics.device)
    gap = fidelity.gap(Solo(opened.network, numerics), Solo(plain, numerics), items, opened.tokenizer.pad_token_id)
    return asdict(gap) | {"loss_difference": gap.loss_difference}


def _save(plain: Any, tokenizer: Any, source: Source, folder: Path) -> None:
    plain.config.use_cache = True
    plain.generation_config = models.generation_config(source.config.model, tokenizer)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _prompt(tokenizer: Any, device: Any) -> Any:
    """Return a prompt of ``PROMPT_TOKENS`` tokens for any tokenizer; its time does not depend on its content."""
    import torch

    from .latency import PROMPT_TOKENS

    ids = tokenizer("The quick brown fox jumps over the lazy dog. " * PROMPT_TOKENS, add_special_tokens=False).input_ids
    return torch.tensor([ids[:PROMPT_TOKENS]], device=device)


def notes(source: Source, onto: str) -> list[str]:
    """List what the reader of a merge has to know about its base and its serving."""
    lines = []
    if onto == "original" and (warning := warning_onto_original(source.config.variant)):
        lines.append(warning)
    if source.config.variant.base_precision == "int8":
        lines.append(INT8)
    if onto != "base" and source.config.model.source == "embedded":
        lines.append(f"{source.config.model.name} in 16 bits: {source.config.model.note}")
    if serving.refusals(source.settings):
        lines.append(
            f"vLLM refuses the adapter itself ({' '.join(serving.refusals(source.settings))}); this folder is what it serves"
        )
    return lines


def show(report: dict[str, Any]) -> None:
    """Print fidelity and, where it was made, the fp32 control; then times."""
    gap, base = report["fidelity"], ONTO[report["onto"]]
    lines = [
        f"{report['source']}, {report['variant']} over {report['base_precision']}: merged onto {base}, saved in"
        f" {report['saved_as']}; measured on {gap['examples']} examples of {report['measured_on']},"
        f" {gap['tokens']} target tokens",
        "",
        f"{'':<44}{report['products'] + ' products':>16}{'fp32, unrounded':>18}" if report["fp32_control"] else "",
    ]
    for label, key, form in ROWS:
        numbers = [form.format(part[key]) for part in (report["fidelity"], report["fp32_control"]) if part]
        lines.append(f"{label:<44}{numbers[0]:>16}" + (f"{numbers[1]:>18}" if len(numbers) > 1 else ""))
    if times := report["latency"]:
        lines += [
            "",
            f"{times['device']}; {times['prompt_tokens']} tokens of prompt, {times['new_tokens']} new, medians of"
            f" {times['repetitions']}",
            f"{'ms':<24}{'base':>12}{'unmerged':>12}{'merged':>12}",
        ]
        for label, key in (("prompt", "prefill_ms"), ("each new token", "ms_per_token")):
            lines.append(f"{label:<24}" + "".join(f"{times[name][key]:>12.1f}" for name in ("base", "unmerged", "merged")))
        if times["device"].startswith("cpu"):
            lines.append("Times of a CPU: they say nothing about a GPU.")
    print("\n".join([*lines, "", *(f"- {note}" for note in report["notes"])]).rstrip())


ONTO = {"base": "its base", "original": "the 16-bit base", "dequantised": "the dequantized base"}
ROWS = (
    ("logit gap, largest", "logit_max", "{:.3g}"),
    ("logit gap, mean absolute", "logit_mean", "{:.3g}"),
    ("KL(unmerged || merged), nats per token", "kl", "{:.3g}"),
    ("log-loss per target token, unmerged, nats", "loss_unmerged", "{:.4f}"),
    ("log-loss per target token, merged, nats", "loss_merged", "{:.4f}"),
    ("difference", "loss_difference", "{:+.6f}"),
    ("greedy next tokens that changed", "changed", "{:.2%}"),
)
