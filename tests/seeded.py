"""Deterministic weights and inputs for parity checks, so that a fixture stores outputs only.

A parameter's values depend on its state-dict key and shape alone: a model whose keys or shapes
differ from the published checkpoints' cannot reproduce the expected outputs.
"""

import zlib

import numpy as np
import torch


def seeded_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 values determined by `name` and `shape`."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape).astype(np.float32)


def seeded_tensor(name: str, *shape: int) -> torch.Tensor:
    """`seeded_array` as a torch tensor, for inputs: `seeded_tensor("img", 2, 4, 3, 64, 64)`."""
    return torch.from_numpy(seeded_array(name, shape))


def seeded_ids(name: str, shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
    """Integers in [low, high) determined by `name`."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(rng.integers(low, high, shape))


@torch.no_grad()
def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Overwrite every parameter of `model`, in place, from its key; buffers are left as built."""
    for key, parameter in model.named_parameters():
        values = seeded_array(key, tuple(parameter.shape))
        if parameter.ndim == 1:
            values = 0.1 * values + (1.0 if key.endswith("weight") else 0.0)
        elif "relative_position_bias_table" in key:
            values = 0.5 * values
        else:
            values = values / np.sqrt(np.prod(parameter.shape[1:]))
        parameter.copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))
    return model
