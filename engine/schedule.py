"""Groups of parameters with their learning rates and decay, and the rate's way through a run."""

from collections.abc import Mapping
from typing import Any

from torch import nn

MIN_LR = 1e-8


def parameter_groups(
    model: nn.Module,
    lr: float,
    decay: float,
    swin_lr_mul: float,
    multiples: Mapping[tuple[str, ...], float] | None = None,
) -> list[dict[str, Any]]:
    """The published groups: (swin, decay), (other, decay), (swin, no decay), (other, no decay).

    No decay for names with "bias" (the bias tables among them) or "LayerNorm.weight"; Swin's norms decay.
    `multiples` {beginnings of names: multiple of lr}: two more groups, (decay), (no decay), for each multiple
    that is not 1.
    """
    special = {starts: multiple for starts, multiple in (multiples or {}).items() if multiple != 1}
    rates = [(mul, weight_decay) for weight_decay in (decay, 0.0) for mul in (swin_lr_mul, 1.0)]
    rates += [(mul, weight_decay) for mul in special.values() for weight_decay in (decay, 0.0)]
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "peak": lr * mul, "weight_decay": weight_decay}
        for mul, weight_decay in rates
    ]
    for name, parameter in model.named_parameters():
        free = "bias" in name or "LayerNorm.weight" in name
        place = 2 * free + ("swin" not in name)
        for number, starts in enumerate(special):
            place = 4 + 2 * number + free if name.startswith(starts) else place
        groups[place]["params"].append(parameter)
        groups[place]["names"].append(name)
    return groups


def warmup_linear(step: int, total: int, warmup_ratio: float) -> float:
    """Factor of the learning rate: from 0 up over the warm-up, then in a line to 0 at `total`."""
    warmup = total * warmup_ratio
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1e-9, total - warmup))
