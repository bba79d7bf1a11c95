"""A variant: a point in the product of the axes, with the parts that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .factors import FACTORS
from .magnitude import MAGNITUDES
from .part import Part, Proof
from .precision import PRECISIONS
from .scaling import SCALINGS

if TYPE_CHECKING:
    import torch


@dataclass
class VariantConfig:
    """The axes of a variant, and which weights train. The file's name in conf/variant is the point's name."""

    trains: str = "adapter"  # adapter | all | none
    scaling: str = "alpha_over_r"  # scaling.py
    magnitude: str = "none"  # magnitude.py
    base_precision: str = "bf16"  # precision.py
    double_quant: bool = True  # nf4, fp4: quantize the block scales too (QLoRA, arXiv 2305.14314, section 3)
    name: str = ""  # derived from the axes by resolve(); not to be set
    factors: str = "both"  # factors.py


# The legal values of each axis. The order is that of a point's coordinates.
AXES: dict[str, Iterable[str]] = {
    "trains": ("adapter", "all", "none"),
    "scaling": SCALINGS,
    "magnitude": MAGNITUDES,
    "factors": FACTORS,
    "base_precision": PRECISIONS,
}
ADAPTERS = ("scaling", "magnitude", "factors")  # the axes that say what an adapter is
OF_THE_BASE = ("trains", "base_precision")  # and those that runs over one base agree on
DETAILS = ("double_quant", "name")  # fields of a variant that are no axis
# Axes that records have had from the first; where a later one is at its default it is left out of a run's id.
FIRST = ("trains", "scaling", "magnitude", "base_precision")
LATER = tuple(axis for axis in AXES if axis not in FIRST)

Point = tuple[str, ...]


def axes(variant: VariantConfig) -> Point:
    """Return the coordinates of a variant, in the order of ``AXES``."""
    return tuple(getattr(variant, axis) for axis in AXES)


def default(axis: str) -> str:
    """Return LoRA's value of an axis."""
    return str(getattr(VariantConfig(), axis))


def parts_of(variant: VariantConfig) -> tuple[Part, ...]:
    """List the tensors that each adapted layer has; none for a control."""
    if variant.trains != "adapter":
        return ()
    return FACTORS[variant.factors].parts + MAGNITUDES[variant.magnitude].parts


def all_parts() -> dict[str, Part]:
    """Collect every part that some variant has, by name."""
    parts = [part for factors in FACTORS.values() for part in factors.parts]
    parts += [part for magnitude in MAGNITUDES.values() for part in magnitude.parts]
    return {part.name: part for part in parts}


def proofs_of(variant: VariantConfig) -> dict[str, Proof]:
    """Return the proofs that an adapter of this variant was live, by the name of the check in a record."""
    return {
        "effective_scale": SCALINGS[variant.scaling].proof,
        "adapter_moved": FACTORS[variant.factors].proof,
        "magnitude": MAGNITUDES[variant.magnitude].proof,
    }


def merged(variant: VariantConfig, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Finish the merged weight [out, in], fp32: ``weight`` holds ``s B A`` already; ``parts`` are the adapter's, by name."""
    return MAGNITUDES[variant.magnitude].merged(weight, parts)


def peft_options(variant: VariantConfig) -> dict[str, bool]:
    """Return the options of PEFT's LoraConfig that make this variant; a scaling rule that PEFT lacks has none."""
    return {**(SCALINGS[variant.scaling].peft or {}), **MAGNITUDES[variant.magnitude].peft}


def tags_of(variant: VariantConfig) -> tuple[str, ...]:
    """Return the hub's tags for such an adapter, beside ``lora``."""
    return MAGNITUDES[variant.magnitude].tags


def warning_onto_original(variant: VariantConfig) -> str | None:
    """Warn of merging such an adapter onto other base weights than those it was trained over; None where there is no need."""
    return MAGNITUDES[variant.magnitude].onto_original


def from_peft(settings: Mapping[str, Any]) -> VariantConfig:
    """Tell the variant of an adapter saved with these settings, over a bf16 base. How its factors trained is not known."""

    def asked(options: Mapping[str, bool] | None) -> bool:
        return options is not None and all(bool(settings.get(name)) == value for name, value in options.items())

    return VariantConfig(
        scaling=next(name for name, rule in SCALINGS.items() if asked(rule.peft)),
        magnitude=next(name for name, magnitude in MAGNITUDES.items() if asked(magnitude.peft)),
    )
