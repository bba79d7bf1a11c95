"""A variant: a point in the product of the axes, with the parts that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .factors import FACTORS
from .magnitude import MAGNITUDES, Magnitude
from .part import Part, Proof
from .precision import PRECISIONS
from .scaling import SCALINGS, Scaling

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
# Every option of PEFT's that some value of an axis sets.
PEFT_OPTIONS = tuple(
    dict.fromkeys(
        [key for rule in SCALINGS.values() for key in rule.peft or {}] + [key for m in MAGNITUDES.values() for key in m.peft]
    )
)
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


def note_of(variant: VariantConfig) -> str | None:
    """Tell how its factors train where that is not as in LoRA."""
    return FACTORS[variant.factors].note


def tags_of(variant: VariantConfig) -> tuple[str, ...]:
    """Return the hub's tags for such an adapter, beside ``lora``."""
    return MAGNITUDES[variant.magnitude].tags


def warning_onto_original(variant: VariantConfig) -> str | None:
    """Warn of merging such an adapter onto other base weights than those it was trained over; None where there is no need."""
    return MAGNITUDES[variant.magnitude].onto_original


def from_peft(settings: Mapping[str, Any]) -> VariantConfig:
    """Tell the variant of an adapter saved with these settings, over a bf16 base. How its factors trained is not known."""

    def asked(values: Mapping[str, Scaling] | Mapping[str, Magnitude]) -> str:
        """Name the value whose options all hold; of several the one with the most, as it says more."""
        options = {name: value.peft for name, value in values.items() if value.peft is not None}
        fits = [name for name, of in options.items() if all(bool(settings.get(key)) == wanted for key, wanted in of.items())]
        return max(fits, key=lambda name: len(options[name]))

    return VariantConfig(scaling=asked(SCALINGS), magnitude=asked(MAGNITUDES))
