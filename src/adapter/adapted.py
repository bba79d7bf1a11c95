"""Open a trained adapter as a model: a finished run, or any LoRA folder in PEFT's format, over the base it was trained on.

Loading is strict. PEFT warns of a tensor that is missing, left over or misnamed, and answers as the base all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ..command import words
from ..command.cli import compose
from ..command.messages import suggest
from ..command.words import Key
from ..config.schema import CONF_FOLDER, Config, ModelConfig, variant_name
from ..config.values import CHOICES
from ..data import datasets, inputs
from ..files.errors import ConfigError
from ..model import embedded, models, refusals
from ..model.pretrained import load_whole
from ..record.records import RESULT, RUNS, RunFolder
from ..variants.methods.point import from_peft
from ..variants.methods.precision import QUANTIZED
from . import serving
from .settings import SETTINGS, WEIGHTS, lora_config, read_settings

if TYPE_CHECKING:
    from ..model.device import Numerics

KEYS = {
    "run": Key(words.run_id, "0eed806141"),
    "adapter": Key(str, "FOLDER"),
    "model": Key(str, "smollm2_135m"),
    "precision": Key(words.one_of(*CHOICES["variant.base_precision"]), "nf4"),
    "device": Key(words.one_of("auto", "cpu", "cuda"), "cpu"),
}
USAGE = """\
  run=ID           a finished run in runs/; its record is verified, and its base is opened in the precision of training
  adapter=FOLDER   instead of a run: any LoRA adapter in PEFT's format
  model=NAME       with adapter=: the base, a name in conf/model or a model's folder (default: the base that the adapter names)
  precision=NAME   with adapter=: the precision of the base, bf16 (default), fp32, int8, nf4 or fp4
  device=NAME      auto (default), cpu or cuda
"""


@dataclass
class Source:
    """An adapter or a control to open, checked as far as that needs no torch."""

    name: str
    config: Config
    record: RunFolder | None  # None: an adapter's folder
    adapter: Path | None  # None: a control
    settings: dict[str, Any]  # of adapter_config.json; empty without an adapter

    @property
    def quantized(self) -> bool:
        return self.config.variant.base_precision in QUANTIZED

    @property
    def advice(self) -> list[str]:
        return serving.advice(self.settings, self.quantized) if self.settings else []


@dataclass
class Adapted:
    """The opened model: PEFT's, or the plain one of a control."""

    network: Any
    tokenizer: Any
    numerics: Numerics
    # Weights of the base itself that the adapter's file replaces, in words; switching the adapter off does not bring them back.
    replaced: str = ""


def find(values: Mapping[str, Any]) -> Source:
    """Find what ``run=`` or ``adapter=`` names.

    Raises:
        ConfigError: there is none, it is damaged or did not finish, or its base cannot be had; one line.
    """
    if ("run" in values) == ("adapter" in values):
        raise ConfigError("needs one of run=ID and adapter=FOLDER")
    if "run" in values:
        for key in ("model", "precision"):
            if key in values:
                raise ConfigError(f"{key}: the run's record says it; {key}= goes with adapter=FOLDER")
        source = _from_run(values["run"])
    else:
        source = _from_folder(values["adapter"], values.get("model"), values.get("precision", "bf16"))
    source.config.device = values.get("device", "auto")
    refusals.refuse_impossible(source.config.model)
    return source


def _from_run(run: str) -> Source:
    record = RunFolder(run)
    result = record.result()
    if result is None:
        why = "result.json is damaged" if (record.path / RESULT).exists() else "it has not ended" if record.path.is_dir() else ""
        raise ConfigError(f"run={run}: no finished run in {RUNS.absolute()}" + (f" ({why})" if why else ""))
    if result["status"] != "ok":
        raise ConfigError(f"run={run}: ended as {result['status']} ({result['reason']}); only a run that is ok is used")
    if damage := record.damage(result):
        raise ConfigError(f"run={run}: its record is damaged: {damage[0]}; python -m src.train with its config makes it again")
    config = record.read_config()
    if config.variant.trains != "none" and not config.keep_weights:
        raise ConfigError(f"run={run}: no weights were kept; the same run with force=true keep_weights=true has them")
    if config.variant.trains != "adapter":
        return Source(f"run {run}", config, record, None, {})
    return Source(f"run {run}", config, record, record.adapter, read_settings(record.adapter))


def _from_folder(folder: str, model: str | None, precision: str) -> Source:
    path = inputs.expanded(folder, "adapter")
    settings = read_settings(path)
    config = Config(model=_base(settings, model, folder))
    config.variant = replace(from_peft(settings), base_precision=precision)
    config.variant.name = variant_name(config.variant)
    config.lora.r, config.lora.alpha = settings["r"], settings["lora_alpha"]
    return Source(f"adapter {folder}", config, None, path, settings)


def _base(settings: Mapping[str, Any], model: str | None, folder: str) -> ModelConfig:
    """Find the base that ``model=`` or else the adapter names: a file of conf/model, or a folder."""
    name = model or settings.get("base_model_name_or_path") or ""
    ids = {path.stem: OmegaConf.select(OmegaConf.load(path), "id") for path in sorted((CONF_FOLDER / "model").glob("*.yaml"))}
    known = [choice for choice in ids if choice != "path"]
    if name in known:
        return compose([f"model={name}"]).model
    if name == embedded.HUB_ID:
        print(f"the base is the embedded {name}, whose weights were 4-bit; model=FOLDER takes another", file=sys.stderr)
        return compose(["model=smollm2_135m"]).model
    if name and (inputs.expanded(name, "model") / "config.json").is_file():
        return ModelConfig(name=Path(name).name, source="path", path=name)
    for choice in known:
        if name and ids[choice] == name:
            return compose([f"model={choice}"]).model
    choices = f"model= takes a folder or one of {', '.join(known)}"
    if not name:
        raise ConfigError(f"adapter={folder}: {SETTINGS} names no base; {choices}")
    where = f"model={model}" if model else f"adapter={folder}: its base {name!r}"
    raise ConfigError(f"{where} is neither a folder with a model nor known{suggest(name, known)}; {choices}")


def own_splits(source: Source, used: str) -> datasets.Splits:
    """Load the data of a run, and warn where they are no longer what it was trained on. ``used``: such as ``it is scored``."""
    assert source.record is not None
    splits = datasets.load(source.config.dataset)
    known = (source.record.provenance() or {}).get("data_fingerprint")
    if known not in (None, splits.fingerprint()):
        print(f"warning: the dataset is no longer what the run was trained on; {used} on what it is now", file=sys.stderr)
    return splits


def load_base(source: Source, exact: bool = False) -> tuple[Any, Any, Numerics]:
    """Load (base model in 16 bits or more, tokenizer, formats). ``exact``: the same weights, and all products, in fp32."""
    import torch

    from ..model import device

    numerics = device.choose(source.config)
    network, tokenizer = models.load(source.config.model, numerics.base, numerics.device)
    if exact:
        network, numerics = network.float(), device.Numerics(numerics.device, torch.float32, None)
    return network, tokenizer, numerics


def open_source(source: Source, exact: bool = False) -> Adapted:
    """Load base and adapter on their device, in the precision of training, or ``exact``: with all products in fp32.

    Raises:
        ConfigError: the adapter file does not fit, or the base is not the one that the run was trained on.
    """
    from ..variants import adapters, quantization

    config = source.config
    network, tokenizer, numerics = load_base(source, exact)
    if config.variant.trains == "all":
        assert source.record is not None
        network = load_whole(source.record.model, f"{source.name}: {source.record.model}", numerics.base)
    network = quantization.place(network, config.variant, numerics.device, numerics.compute)
    replaced = ""
    if source.adapter is not None:
        try:
            network = adapters.attach_as(network, lora_config(source.settings), 0)
        except ValueError as error:  # PEFT's, where no module has one of these names
            raise ConfigError(f"{source.adapter / SETTINGS}: does not fit this base: {' '.join(str(error).split())}") from error
        replaced = load_strictly(network, source.adapter / WEIGHTS)
        if source.settings.get("bias", "none") != "none":
            replaced = "biases and embeddings" if replaced else "biases"
        if not exact:
            _refuse_other_base(source, network, numerics)
    network.requires_grad_(False)
    return Adapted(network.eval(), tokenizer, numerics, replaced)


def load_strictly(network: Any, file: Path) -> str:
    """Fill the adapter of PEFT's model from a file that has its tensors, all of them and no others, in their shapes.

    PEFT also saves the base's embeddings where the adapter is on them; they are loaded as PEFT does. Returns ``embeddings``
    where they are other ones than the base has, else nothing.

    Raises:
        ConfigError: it does not; one line with how many tensors are wrong and the first of them.
    """
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as safetensors ({error})") from error
    # Without the last word PEFT would ask the hub whether the vocabulary has grown.
    adapter = wanted = get_peft_model_state_dict(network, save_embedding_layers=False)
    if tensors.keys() - adapter.keys():
        with_embeddings = get_peft_model_state_dict(network, save_embedding_layers=True)
        if tensors.keys() <= with_embeddings.keys():
            # Of tied embeddings PEFT may name both, or one.
            wanted = {name: with_embeddings[name] for name in {*tensors, *adapter}}
    for problem, names in (
        ("lacks", sorted(wanted.keys() - tensors.keys())),
        ("has, unexpected by this base and adapter_config.json,", sorted(tensors.keys() - wanted.keys())),
    ):
        if names:
            raise ConfigError(f"{file}: {problem} {len(names)} of {len(wanted)} tensors, such as {names[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ConfigError(f"{file}: {name} has the shape {list(tensor.shape)} where {list(wanted[name].shape)} is needed")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ConfigError(f"{file}: {name} holds what is no finite number")
    others = any(not torch.equal(tensors[name].to(wanted[name]), wanted[name]) for name in wanted.keys() - adapter.keys())
    set_peft_model_state_dict(network, {name: tensor.float() for name, tensor in tensors.items()})
    return "embeddings" if others else ""


def _refuse_other_base(source: Source, network: Any, numerics: Numerics) -> None:
    """Raise ConfigError where the base is not what the run's record says; only the same kind of device can tell."""
    from ..model import device
    from ..model.fingerprint import fingerprint, frozen_tensors

    if source.record is None:
        return
    provenance = source.record.provenance() or {}
    here = device.describe(numerics.device)
    if "base_fingerprint" not in provenance or str(provenance.get("device")).rsplit(",")[0] != here.rsplit(",")[0]:
        return
    if fingerprint(frozen_tensors(network)) != provenance["base_fingerprint"]:
        raise ConfigError(f"{source.name}: the base model {source.config.model.name} holds other weights than it was trained on")
