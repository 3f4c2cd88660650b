"""Videos to embed or to search: a folder of files, a frames TSV or a corpus YAML.

A video has a name, a stamp by which its change is noticed, frames, and a picture for a viewer's eyes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from engine.signals import leave_signals
from lib import Config, UserError, log, shown
from media.corpus_files import named_files
from media.decoding import is_picture
from media.files import read_yaml
from media.folders import find_files
from media.frames import Frames, Linked, Transform, even_frames, row_frames
from media.tsv import BadRow, Videos

BATCH = 16  # clips that are encoded at a time
THUMBNAIL = 400  # longest side in pixels


class Clip(NamedTuple):
    """A video as the model sees it: its frames (T, 3, size, size) uint8, and their times in seconds."""

    name: str
    frames: Tensor | None
    times: list[float]
    fault: str = ""
    """why it cannot be read; empty: it can"""


class Source(ABC):
    """Videos by name; `stamps` tell a changed video from the one that was there before."""

    path: Path
    stamps: dict[str, str]

    @abstractmethod
    def frames(self, name: str, size: int | None = None) -> Frames:
        """All frames of a video, of a file at most `size` pixels a side; raises `BadRow`."""

    def file(self, name: str) -> Path | None:
        """The file that plays; None: there is none."""
        return None

    def is_still(self, name: str) -> bool:
        """Whether it is a picture."""
        return False

    def clip(self, name: str, config: Config) -> Clip:
        """The frames of a video that the model looks at."""
        transform = Transform(config.img_transform, config.size_img)
        try:
            frames = self.frames(name)
            picked = even_frames(len(frames), 1 if self.is_still(name) else config.size_frame).tolist()
            times = [frames.times[number] for number in picked] if isinstance(frames, Linked) else []
            return Clip(name, transform(frames.read(picked, transform.size), None), times)
        except BadRow as error:
            return Clip(name, None, [], str(error))


class Folder(Source):
    """The video files below a folder, with `pictures` those too, named by their paths in it."""

    def __init__(self, path: Path, pictures: bool) -> None:
        self.path = path
        kinds = ("video", "image") if pictures else ("video",)
        found = [file for file, kind in find_files(path) if kind in kinds]
        self.files = {str(file.relative_to(path)): file for file in found}
        for name in [name for name in self.files if not name.isprintable()]:  # names are kept in UTF-8
            log.warning("left out: %s: its name is not printable UTF-8; rename it", shown(name))
            del self.files[name]
        if not self.files:
            raise UserError(f"{path}: no video file in it.")
        stats = {name: file.stat() for name, file in self.files.items()}
        self.stamps = {name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items()}

    def frames(self, name: str, size: int | None = None) -> Frames:
        """See `Source`."""
        frames = Linked(self.files[name], size=size)
        if not len(frames):
            raise BadRow(f"{self.files[name]}: it has no frames")
        return frames

    def file(self, name: str) -> Path | None:
        """See `Source`."""
        return self.files[name]

    def is_still(self, name: str) -> bool:
        """See `Source`."""
        return is_picture(self.files[name])


class Rows(Source):
    """The rows of frames TSVs, named by their ids; an id that several have gets the name of its file."""

    def __init__(self, path: Path, tsvs: Sequence[Path]) -> None:
        self.path, self.stamps = path, {}
        self.places: dict[str, tuple[Videos, str]] = {}
        for videos in (Videos(tsv) for tsv in tsvs):
            stat = videos.tsv.path.stat()
            for row in videos.rows:
                name = row if row not in self.places else f"{videos.tsv.path.stem}/{row}"
                self.places[name] = (videos, row)
                self.stamps[name] = f"{stat.st_size} {stat.st_mtime_ns}"
        if not self.places:
            raise UserError(f"{path}: no video in it.")

    def frames(self, name: str, size: int | None = None) -> Frames:
        """See `Source`."""
        videos, row = self.places[name]
        return row_frames(videos[row], videos.tsv.path.parent)


def open_source(path: Path, pictures: bool = False) -> Source:
    """A folder, whose pictures are taken too if asked for; a TSV; a YAML. Raises `UserError`."""
    if path.is_dir():
        return Folder(path, pictures)
    if path.suffix not in (".yaml", ".yml"):
        return Rows(path, [path])
    content = read_yaml(path)
    if not isinstance(content, dict) or not content.get("img"):
        raise UserError(f"{path} is no corpus: it has no key img; see _data/README.md.")
    return Rows(path, named_files(path, content, "img"))


# ------------------------------------------------------------------------------------------- embeddings


class Embedder(Protocol):
    """A checkpoint in use, `violet.Pretrained`."""

    config: Config

    def embed_clips(self, clips: Sequence[Tensor], features: str) -> np.ndarray:
        """Clips -> a row of features for each."""
        ...


class _Clips(Dataset[Clip]):
    def __init__(self, source: Source, names: Sequence[str], config: Config) -> None:
        self.source, self.names, self.config = source, names, config

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Clip:
        return self.source.clip(self.names[index], self.config)


def embed_all(
    embedder: Embedder, source: Source, names: Sequence[str], features: str = "embedding"
) -> Iterator[list[tuple[Clip, np.ndarray | None]]]:
    """Batches of the videos of these names, each with its features; None where it cannot be read.

    Work that was interrupted at the end of a batch continues with the same batches, so that the features are
    the same to the last bit.
    """
    config = embedder.config
    workers = min(config.n_workers, len(names) // BATCH)  # a few videos are read before a worker starts
    clips = _Clips(source, names, config)
    loader = DataLoader(clips, BATCH, num_workers=workers, collate_fn=list, worker_init_fn=leave_signals)
    with tqdm(total=len(names), desc="embedding", unit="video", disable=None if names else True) as bar:
        for batch in loader:
            read = [clip.frames for clip in batch if clip.frames is not None]
            rows = iter(embedder.embed_clips(read, features) if read else [])
            yield [(clip, None if clip.frames is None else next(rows)) for clip in batch]
            bar.update(len(batch))
