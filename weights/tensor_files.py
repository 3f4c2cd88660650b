"""Files of tensors, read as data: no code is executed, and declared sizes are checked before memory is used.

Three layouts are known by their first bytes: safetensors, the zip archive of `torch.save`, and its layout
before torch 1.6. The checksums of an archive are verified (700 MB take about a second). Tensors are mapped
from the file, not copied, so that memory is used for what a module takes alone.
"""

import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lib import UserError, log, shown
from media.files import check_file, reading
from media.pickles import Foreign, Machine, Name, Refused

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file of torch.save began before 1.6
ENDIAN = b"little"
STORAGES = {
    "Double": torch.double,
    "Float": torch.float,
    "Half": torch.half,
    "BFloat16": torch.bfloat16,
    "Long": torch.long,
    "Int": torch.int,
    "Short": torch.short,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
}
# where a state dict may be within a file, in this order; the first that holds tensors is taken
NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "ema")
PREFIXES = (
    "module.",
    "model.",
    "_orig_mod.",
)  # which DistributedDataParallel, trainers and torch.compile add
DEEPSPEED = "mp_rank_00_model_states.pt"
TODO = "fetch or save it again"


def read_tensors(path: str | Path, what: str = "a checkpoint of tensors") -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, and nothing else: no code in the file is executed.

    Takes a file of `torch.save` or safetensors, or a folder that holds one (see `checkpoint_in`): a flat
    state dict, one under a key of `NESTED` (such as a run's `last.pt`), or a pickled module. Prefixes that
    all names have (`PREFIXES`) are left out. The log names what else was in the file. Raises `UserError`.
    """
    path = checkpoint_in(Path(path))
    with reading(path, what, TODO):
        content, foreign = load_file_of_tensors(path)
        place, state = state_dict_in(content)
        for name, value in state.items():
            if isinstance(value, Foreign) and "_rebuild_" in value.name:
                raise Refused(f"{name} is not a plain tensor ({value.name})")
        tensors = without_prefixes({str(k): v for k, v in state.items() if isinstance(v, Tensor)})
        if not tensors:
            keys = ", ".join(shown(str(key)) for key in list(state)[:5])
            raise Refused(f"it holds no tensors (its keys: {keys or 'none'}): it is not a state dict")
    if place:
        log.info("%s: using the tensors under %s", path, place)
    if foreign:
        log.info("%s: ignored, not tensors: %s", path, ", ".join(sorted(foreign)))
    return tensors


def state_dict_in(content: Any, depth: int = 3) -> tuple[str, Mapping[Any, Any]]:
    """The state dict within the content of a file, and the keys that lead there ("module.ema")."""
    if isinstance(content, Foreign):
        return "", dict(module_tensors(content))
    if not isinstance(content, Mapping):
        return "", {}
    for key in NESTED if depth else ():
        place, found = state_dict_in(content.get(key), depth - 1)
        if any(isinstance(value, Tensor | Foreign) for value in found.values()):
            return f"{key}.{place}".rstrip("."), found
    return "", content


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without `_orig_mod.`, and without each prefix that all of them have."""
    named = {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items()}
    for prefix in PREFIXES * 2:
        if named and all(key.startswith(prefix) for key in named):
            named = {key.removeprefix(prefix): tensor for key, tensor in named.items()}
    return {key.removeprefix("module."): tensor for key, tensor in named.items()}


def module_tensors(
    module: Foreign, prefix: str = "", outer: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers of a pickled module and its submodules, by their names in a state dict."""
    if id(module) in outer or len(outer) > 50:
        raise Refused(f"the module {prefix}{module.name} contains itself, or is nested too deep")
    content = module.state if isinstance(module.state, dict) else {}
    for part in ("_parameters", "_buffers"):
        for name, value in dict(content.get(part) or {}).items():
            if value is not None:
                yield f"{prefix}{name}", value
    for name, inner in dict(content.get("_modules") or {}).items():
        if isinstance(inner, Foreign):
            yield from module_tensors(inner, f"{prefix}{name}.", (*outer, id(module)))


# ------------------------------------------------------------------------------------------- which file


def checkpoint_in(path: Path) -> Path:
    """The file of weights that a path leads to.

    A file is itself. Of a run's folder it is the best epoch, else the last; else the training state. Of an
    exported folder it is model.safetensors; of a DeepSpeed folder the model states of the step that `latest`
    names. Raises `UserError` if there is none.
    """
    if path.exists() and not path.is_dir():
        return path
    if not path.is_dir():  # Deviation 9: published, a missing checkpoint is printed and passed over
        raise UserError(f"{path} does not exist; _snapshot/README.md says where weights are published.")
    kept = sorted(path.glob("ckpt_violet_*.pt"))
    parts = [(re.search(r"_(\d{1,18})(?:_(\d{1,18}))?\.pt$", file.name), file) for file in kept]
    # the last part of an epoch has no number of its own
    epochs = [((int(part[1]), int(part[2] or 1 << 30)), file) for part, file in parts if part]
    ordered = [
        *(file for file in kept if file.name.endswith("_best.pt")),
        *(file for file in kept if file.name.endswith("_last.pt")),
        *(file for _, file in sorted(epochs, reverse=True)),
        *(path / name for name in ("model.safetensors", "last.pt", "last.previous.pt")),
        *deepspeed_states(path),
    ]
    for file in ordered:
        if file.is_file():
            return file
    raise UserError(
        f"{path} holds no checkpoint: neither ckpt_violet_*.pt nor model.safetensors, last.pt or DeepSpeed's "
        f"global_step*/{DEEPSPEED}."
    )


def deepspeed_states(path: Path) -> list[Path]:
    """Where the model states of a DeepSpeed folder, or of one step in it, would be."""
    step = path
    if (path / "latest").is_file():
        with reading(path / "latest", "the name of DeepSpeed's latest step", "name the step's folder"):
            check_file(path / "latest", most=1000)
            step = path / Path((path / "latest").read_text().strip()).name
    if (step / DEEPSPEED.replace("00", "01", 1)).exists():
        raise UserError(f"{step} holds a model that is split over processes: join it by its zero_to_fp32.py.")
    return [step / DEEPSPEED]


# ------------------------------------------------------------------------------------------- three layouts


def load_data(path: Path) -> Any:
    """The content of a file of tensors: plain values, tensors (mapped), and `Foreign` for all else.

    Raises whatever the damage leads to: `lib.reading` makes one line of that.
    """
    return load_file_of_tensors(path)[0]


def load_file_of_tensors(path: Path) -> tuple[Any, dict[str, int]]:
    """The content of a file, and what in it was not built: {name: how often}."""
    check_file(path, most=1 << 50)
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        return load_archive(path)
    if start.startswith(LEGACY):
        return load_legacy(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return load_safetensors(path), {}
    if start.startswith(b"\x80"):
        check_file(path, most=1 << 26)
        Machine().load(path.read_bytes())  # which says if it asks for more than data
        raise Refused("it is a pickle that torch.save did not write")
    raise Refused(other_format(start, path.stat().st_size))


def other_format(start: bytes, size: int) -> str:
    """Which other file it seems to be, by its first bytes."""
    known = {b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"\x1f\x8b": "a gzip archive"}
    for first, what in known.items():
        if start.startswith(first):
            return f"it is {what}"
    if start.isascii() and start.decode().replace("\n", " ").replace("\t", " ").isprintable():
        return f"it is a text file ({size} bytes)"
    return f"it ({size} bytes) begins like no file of torch.save or safetensors"


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped."""
    try:
        return load_file(path)
    except SafetensorError as error:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, size))
        ends = [
            int(end) for end in re.findall(rb'"data_offsets"\s*:\s*\[\s*\d{1,18}\s*,\s*(\d{1,18})', header)
        ]
        if 8 + length + max(ends, default=0) > size:
            raise Refused(f"it is cut off ({size} bytes), or its header claims too much") from error
        raise Refused("its header is damaged") from error


def load_archive(path: Path) -> tuple[Any, dict[str, int]]:
    """The content of a zip archive of `torch.save`, every part's checksum verified."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {info.filename: info for info in archive.infolist()}
            content = next((name for name in parts if name.split("/")[-1] == "data.pkl"), None)
    except zipfile.BadZipFile as error:
        raise Refused(f"it is cut off ({path.stat().st_size} bytes), or its end is damaged") from error
    check_parts(list(parts.values()), path.stat().st_size)
    if content is None:
        raise Refused("it is a zip archive that torch.save did not write")
    data = np.memmap(path, np.uint8, "c")
    places = {name: place_of(info, data) for name, info in parts.items()}
    folder = content.removesuffix("data.pkl")
    if (order := places.get(f"{folder}byteorder")) and data[slice(*order)].tobytes() != ENDIAN:
        raise Refused("its numbers are stored in the byte order of another kind of machine")
    if f"{folder}constants.pkl" in parts:
        raise Refused("it is a TorchScript program: save its state_dict() instead")
    storages = Storages(data, lambda key: places[f"{folder}data/{key}"])
    machine = Machine(BUILT, storages.find)
    return machine.load(data[slice(*places[content])].tobytes()), machine.foreign


def check_parts(parts: list[zipfile.ZipInfo], size: int) -> None:
    """Raise `Refused` where parts are packed or claim more than the file has.

    torch stores them as they are: a packed part may be small here and endless in memory.
    """
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise Refused("its parts are compressed, which torch does not do")
    claimed = sum(part.file_size for part in parts)
    if claimed > size:
        raise Refused(f"it claims {claimed} bytes and has {size}")


def place_of(part: zipfile.ZipInfo, data: np.ndarray) -> tuple[int, int]:
    """First byte of a part's content, and that after its last; raises `Refused` if its checksum differs."""
    head = data[part.header_offset : part.header_offset + 30].tobytes()
    name = part.filename.encode()
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise Refused(f"it is damaged: {part.filename} is not where it should be")
    lengths = struct.unpack("<HH", head[26:])
    start = part.header_offset + 30 + sum(lengths)
    end = start + part.file_size
    stored = data[part.header_offset + 30 : part.header_offset + 30 + lengths[0]].tobytes()
    if stored != name or end > len(data) or zlib.crc32(data[start:end].data) != part.CRC:
        raise Refused(f"it is damaged: the checksum of {part.filename} is another")
    return start, end


def load_legacy(path: Path) -> tuple[Any, dict[str, int]]:
    """The content of the layout before torch 1.6.

    That is a pickle each of a magic number, a version, the system, the content, and the storages' keys; then
    of each storage how many numbers it has (8 bytes) and the numbers. The content is read twice: its
    storages' places are only known after it.
    """
    data = np.memmap(path, np.uint8, "c")
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        try:
            for _ in range(3):
                Machine().load(stream)
            begin, claims = stream.tell(), Claims()
            Machine({name: lambda *_: None for name in BUILT}, claims.find).load(stream)
            places = claims.places(Machine().load(stream), stream.tell(), size)
        except Refused as error:
            if str(error) == "its pickle is cut off":
                raise Refused(f"it is cut off ({size} bytes)") from error
            raise
        stream.seek(begin)
        storages = Storages(data, places.__getitem__)
        machine = Machine(BUILT, storages.find)
        return machine.load(stream), machine.foreign


# -------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class Storage:
    """Numbers of a file that tensors are views of."""

    dtype: torch.dtype
    content: torch.UntypedStorage


def storage_key(key: Any) -> tuple[torch.dtype, str, int, int, int] | None:
    """A storage's id in a pickle -> type, key, numbers, and a view's start and numbers.

    The id is ("storage", type, key, location, numbers[, view]). None for a type that is not known. Raises
    `Refused` for anything else.
    """
    if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage":
        raise Refused("it refers to data that are no storage")
    name = key[1].name if isinstance(key[1], Name) else ""
    kind = re.fullmatch(r"torch\.(?:storage\.|cuda\.)?(\w+?)(?:Typed)?Storage", name)
    if not kind or kind[1] not in STORAGES:
        return None
    _, start, view = key[5] if len(key) > 5 and key[5] is not None else (None, 0, key[4])
    if not all(isinstance(number, int) and number >= 0 for number in (key[4], start, view)):
        raise Refused(f"the storage {shown(str(key[2]))[:40]} has no size")
    if start + view > key[4]:
        raise Refused(f"a view of the storage {shown(str(key[2]))[:40]} is larger than it is")
    return STORAGES[kind[1]], str(key[2]), key[4], start, view


class Claims:
    """How many bytes the storages of a file of the old layout claim to have."""

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int]] = {}  # numbers, bytes of one

    def find(self, key: Any) -> Any:
        """Take note of a storage; of a module stored with its source, the name of its class."""
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module":
            return key[1]
        if found := storage_key(key):
            self.sizes[found[1]] = (found[2], found[0].itemsize)
        return None

    def places(self, keys: Any, start: int, size: int) -> dict[str, tuple[int, int]]:
        """{key: first byte, byte after the last}; raises `Refused` where the file has less."""
        claimed = sum(numbers * each for numbers, each in self.sizes.values())
        if claimed > size:
            raise Refused(f"it claims to hold {claimed} bytes and has {size}: it is cut off or damaged")
        found = {}
        for key in map(str, keys if isinstance(keys, list) else []):
            if key not in self.sizes:
                raise Refused("it holds numbers of a kind that is not known")
            start += 8  # which say the number of numbers once more
            found[key] = (start, start + math.prod(self.sizes[key]))
            start = found[key][1]
        if start > size:
            raise Refused(f"it is cut off ({size} bytes)")
        return found


class Storages:
    """Tensors as views of a mapped file.

    `place(key)` gives the first byte of a storage, and the byte after its last.
    """

    def __init__(self, data: np.ndarray, place: Callable[[str], tuple[int, int]]) -> None:
        self.data, self.place = data, place
        self.file = torch.from_numpy(data).untyped_storage()
        self.known: dict[tuple[str, int, int], torch.UntypedStorage] = {}

    def find(self, key: Any) -> Any:
        """A storage; of a module stored with its source, the name of its class."""
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module":
            return key[1]
        if (found := storage_key(key)) is None:
            return None
        dtype, name, numbers, start, view = found
        first, last = self.place(name)
        if numbers * dtype.itemsize > last - first:
            raise Refused(f"the storage {name} claims {numbers} numbers in {last - first} bytes")
        begin, end = first + start * dtype.itemsize, first + (start + view) * dtype.itemsize
        if (name, begin, end) not in self.known:
            aligned = begin % dtype.itemsize == 0
            self.known[name, begin, end] = (
                self.file[begin:end]
                if aligned
                else torch.from_numpy(np.array(self.data[begin:end])).untyped_storage()
            )
        return Storage(dtype, self.known[name, begin, end])


def rebuild(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
    """A tensor, a view of a storage; raises `Refused` where it claims more than that has."""
    if not isinstance(storage, Storage):
        return Foreign("torch._utils._rebuild_tensor")
    metadata = rest[2] if len(rest) > 2 and isinstance(rest[2], dict) else {}
    if any(metadata.values()):  # a bit that turns the numbers into others
        return Foreign("torch._utils._rebuild_tensor")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise Refused("a tensor has no size")
    have, count = storage.content.nbytes() // storage.dtype.itemsize, math.prod(size)
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else 0
    if count > have or reach > have:
        raise Refused(f"a tensor claims the shape {tuple(size)}, which is more than the file holds of it")
    return torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, tuple(size), tuple(stride))


def rebuild_other(
    storage: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    """A tensor of a type that has no storage of its own, such as float8."""
    kind = getattr(torch, dtype.name.removeprefix("torch."), None) if isinstance(dtype, Name) else None
    if not isinstance(kind, torch.dtype) or not isinstance(storage, Storage):
        return Foreign("torch._utils._rebuild_tensor_v3")
    return rebuild(Storage(kind, storage.content), offset, size, stride, grad, hooks, metadata)


def rebuild_parameter(data: Any, *rest: Any) -> Any:
    """A parameter is its tensor."""
    return data


def rebuild_subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes of Python is a tensor."""
    plain = isinstance(kind, Name) and kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter")
    builder = BUILT.get(function.name) if plain and isinstance(function, Name) else None
    return builder(*arguments) if builder else Foreign("torch._tensor._rebuild_from_type_v2")


BUILT: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild,
    "torch._utils._rebuild_tensor_v2": rebuild,
    "torch._utils._rebuild_tensor_v3": rebuild_other,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": rebuild_subclass,
    "torch.Size": tuple,
}
