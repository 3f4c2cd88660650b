"""Files of tensors, read as data: no code in them is run, and no size in them is believed.

A file may claim anything. Tensors are mapped from it, not copied, so that memory is only used for what a
module takes; a claim that is larger than the file is refused before anything is allocated.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lib import UserError

# what torch.load and safetensors raise at files that they cannot or will not read
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, and nothing else: no code in the file is run.

    Takes a flat state dict, one under "state_dict" or "model" (such as a run's `last.pt`), a .safetensors
    file, or a folder that holds one of them (see `checkpoint_in`); strips DistributedDataParallel's
    `module.`. Raises `UserError` for a file that is missing or holds anything else.
    """
    path = checkpoint_in(Path(path))
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else load_data(path)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a checkpoint of tensors: {reason(error)}") from error
    content = content if isinstance(content, Mapping) else {}
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors: it is not a state dict.")
    for name, tensor in tensors.items():
        if wrong := oddity(tensor):
            raise UserError(f"{path}: {name} {wrong}.")
    return tensors


def checkpoint_in(path: Path) -> Path:
    """The file of weights that a path leads to.

    A file is itself. Of a run's folder it is the best epoch, else the last; else the training state. Of an
    exported folder it is model.safetensors. Raises `UserError` if there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():  # Deviation 9: published, a missing checkpoint is printed and passed over
        raise UserError(f"{path} does not exist; _snapshot/README.md says where weights are published.")
    kept = sorted(path.glob("ckpt_violet_*.pt"))
    parts = [(re.search(r"_(\d+)(?:_(\d+))?\.pt$", file.name), file) for file in kept]
    # the last part of an epoch has no number of its own
    epochs = [((int(part[1]), int(part[2] or 1 << 30)), file) for part, file in parts if part]
    ordered = [
        *(file for file in kept if file.name.endswith("_best.pt")),
        *(file for file in kept if file.name.endswith("_last.pt")),
        *(file for _, file in sorted(epochs, reverse=True)),
        *(path / name for name in ("model.safetensors", "last.pt", "last.previous.pt")),
    ]
    for file in ordered:
        if file.is_file():
            return file
    raise UserError(f"{path} holds no checkpoint: neither ckpt_violet_*.pt nor model.safetensors or last.pt.")


def load_data(path: Path) -> Any:
    """The content of a file of `torch.save`, by torch's restricted unpickler, its tensors mapped.

    Raises any of `UNREADABLE`.
    """
    if not zipfile.is_zipfile(path):  # the layout before torch 1.6
        check_legacy(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def check_archive(path: Path) -> None:
    """Raise `ValueError` where the parts of an archive claim more than the file has.

    torch stores them as they are: what is compressed may be small here and endless in memory.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("its parts are compressed, which torch does not do")
    claimed, size = sum(part.file_size for part in parts), path.stat().st_size
    if claimed > size:
        raise ValueError(f"it claims {claimed} bytes and has {size}")


def oddity(tensor: Tensor) -> str:
    """Why a tensor is not one of plain numbers that the file holds; empty if it is."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "is not a plain tensor"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims the shape {tuple(tensor.shape)}, which is more than the file holds of it"
    return ""


def reason(error: BaseException) -> str:
    """What torch's restricted unpickler has against a file, without its advice to switch it off."""
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation")
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(advice)]
    return lines[0] if lines else type(error).__name__


# ------------------------------------------------------------------------------------- before torch 1.6


class _Nothing:
    """Stands in for every class and function of a pickle: takes whatever it is given, and is nothing."""

    def __new__(cls, *given: Any, **named: Any) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *given: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


class _Claims(pickle.Unpickler):
    """Goes through a pickle of the old layout and adds up the numbers that its storages claim to hold."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.numbers: dict[Any, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Nothing is imported, whatever is asked for."""
        return _Nothing

    def persistent_load(self, key: Any) -> _Nothing:
        """("storage", type, key, location, how many numbers, view)."""
        if isinstance(key, tuple) and len(key) > 4 and key[0] == "storage":
            self.numbers[key[2]] = int(key[4])
        return _Nothing()


def check_legacy(path: Path) -> None:
    """Raise `ValueError` where the storages of a file claim more numbers than it has bytes.

    The layout is a pickle each of a magic number, a version, the system and the content, then the data.
    """
    with path.open("rb") as file:
        try:
            for _ in range(4):
                claims = _Claims(file)
                claims.load()
        except EOFError:  # it ends before its content: torch says what it is instead
            return
    claimed, size = sum(claims.numbers.values()), path.stat().st_size
    if claimed > size or min(claims.numbers.values(), default=0) < 0:
        raise ValueError(f"it claims to hold {claimed} numbers and has {size} bytes")
