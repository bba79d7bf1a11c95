"""Build AdamW for engine peft, torch's or bitsandbytes' with 8-bit moments, and save and load its state.

8-bit AdamW quantizes both moments block by block (Dettmers et al., arXiv 2110.02861); tensors of fewer than 4,096
numbers keep theirs in fp32. Paged AdamW moves them to the CPU's memory where the GPU's is short: the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..config.schema import TrainConfig

Named = Mapping[str, nn.Parameter]


def build(train: TrainConfig, groups: Sequence[Any], device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer that ``train.optimizer`` names over groups of fp32 parameters; betas 0.9, 0.999 and eps 1e-8 in all."""
    common: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, **common, fused=device.type == "cuda")
    import bitsandbytes as bnb

    # On a CPU there is nothing to page, and bitsandbytes says so for every command.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    kinds = {"adamw_bnb_8bit": bnb.optim.AdamW8bit, "paged_adamw_8bit": bnb.optim.PagedAdamW8bit}
    optimizer: torch.optim.Optimizer = kinds[train.optimizer](groups, **common)
    return optimizer


def state(optimizer: torch.optim.Optimizer, parameters: Named) -> dict[str, torch.Tensor]:
    """Collect moments, step counts and, in 8 bits, code books and block scales: ``kind/parameter name`` -> tensor."""
    return {
        f"{kind}/{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for kind, value in optimizer.state[parameter].items()
    }


def load_state(optimizer: Any, parameters: Named, tensors: Mapping[str, torch.Tensor]) -> None:
    """Resume from what ``state`` gave; a parameter that had taken no step has no entry."""
    eight_bits = not isinstance(optimizer, torch.optim.AdamW)
    names = {parameter: name for name, parameter in parameters.items()}
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            saved = {kind: tensors[key] for kind in KINDS if (key := f"{kind}/{names[parameter]}") in tensors}
            if not saved:
                continue
            if eight_bits:
                _fill(optimizer, group, parameter, (group_index, index), saved)
            else:
                # The fused optimizer keeps its step count on the device.
                step = saved["step"].to(parameter.device) if parameter.device.type == "cuda" else saved["step"].clone()
                moments = {kind: value.to(parameter.device) for kind, value in saved.items() if kind != "step"}
                optimizer.state[parameter] = {"step": step, **moments}


# torch's, then those of bitsandbytes; "step" is in both.
KINDS = ("step", "exp_avg", "exp_avg_sq", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")


def _fill(optimizer: Any, group: Any, parameter: nn.Parameter, place: tuple[int, int], saved: Mapping[str, torch.Tensor]) -> None:
    """Copy into buffers that bitsandbytes makes itself: those of the paged optimizer are no ordinary memory."""
    optimizer.init_state(group, parameter, *place)
    buffers = optimizer.state[parameter]
    for kind, value in saved.items():
        if kind == "step":
            buffers["step"] = int(value)
        else:
            buffers[kind].copy_(value)
