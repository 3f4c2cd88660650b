"""Find the best videos of a folder or frames TSV for a text, with a checkpoint of retrieval.

    python _tools/search.py VIDEOS "a man talks to the camera" --checkpoint _snapshot/_TASK_TIME/FILE.pt
    python _tools/search.py _data/img_msrvtt.tsv "a dog runs" "a red car" --checkpoint ... --html found.html

The config is the `args.json` in the checkpoint's folder (`--config` names another, `--KEY VALUE` overrides a
key). Videos are encoded once: their features are kept in `_snapshot/search/` (`--cache` names another
folder), and only new or changed videos are encoded again. `--html` writes a page whose videos play. In under
a minute on a laptop, after `make demo`:

    python _tools/search.py _data/demo/test "a red star turns" --checkpoint CHECKPOINT
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import urllib.parse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import root  # noqa: F401
from _tools.convert.clips import Item, Sampling, read_video
from _tools.convert.sources import find_files
from engine.arguments import load_config
from engine.processes import choose_device
from lib import Config, UserError, run_script, shown
from media.files import atomic_path, parse_json, writing
from media.frames import Frames, Stored, Transform, even_frames, normalise, row_frames
from media.kinds import as_arguments
from media.tokens import Tokens
from media.tsv import BadRow, Videos
from tasks.retrieval.evaluation import encode_texts, token_rows
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.pages import TEMPLATES, render, strip, write_page
from tasks.retrieval.scoring import PairScorer, all_pairs, pairs_at_once
from weights.tensor_files import checkpoint_in

DECIDES = ("size_img", "size_frame", "img_transform")  # the features
THUMBNAIL = Sampling(frames=1, size=400, keep_damaged=True)
CACHE = Path("_snapshot/search")
Features = dict[str, Tensor]  # video tokens (V, D) by name


@dataclasses.dataclass(frozen=True)
class Source:
    """Videos to search: how each is read, and by what its change is noticed."""

    path: Path
    stamps: dict[str, str]
    """by name; a video of another stamp is another video"""
    frames: Callable[[str], Frames]
    """raises `BadRow`"""
    thumbnail: Callable[[str], Frames]
    """the same for a viewer's eyes: one frame, as large as it is shown; raises `BadRow`"""
    is_folder: bool
    cache: Path
    """folder of features"""

    @property
    def features(self) -> Path:
        """The file of its features, one for each folder or TSV."""
        place = self.path.resolve()
        digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
        return self.cache / f"{shown(place.stem)}-{digest}.safetensors"


def open_source(path: Path, config: Config, cache: Path) -> Source:
    """A folder of video files, searched through, or a frames TSV."""
    if path.is_dir():
        found = [file for file, kind in find_files(path) if kind == "video"]
        files = {str(file.relative_to(path)): file for file in found}
        for name in [name for name in files if not name.isprintable()]:  # features are kept by name, in UTF-8
            print(f"left out: {shown(name)}: its name is not printable UTF-8; rename it", file=sys.stderr)
            del files[name]
        if not files:
            raise UserError(f"{path}: no video file in it.")

        def read(sampling: Sampling, name: str) -> Frames:
            try:
                return Stored(read_video(Item(name, (), files[name], "video"), sampling).frames)
            except Exception as error:  # decoders raise many kinds, and one file does not stop the others
                raise BadRow(f"{files[name]} cannot be read as a video: {error}") from error

        stamps = {name: f"{file.stat().st_size} {file.stat().st_mtime_ns}" for name, file in files.items()}
        seen = Sampling(frames=config.size_frame, size=2 * config.size_img, keep_damaged=True)
        return Source(path, stamps, partial(read, seen), partial(read, THUMBNAIL), True, cache)
    videos = Videos(path)
    stamp = f"{path.stat().st_size} {path.stat().st_mtime_ns}"

    def row(name: str) -> Frames:
        return row_frames(videos[name], path.parent)

    return Source(path, dict.fromkeys(videos.rows, stamp), row, row, False, cache)


# ------------------------------------------------------------------------------------------------ features


def maker(config: Config, checkpoint: Path) -> str:
    """A digest, 16 digits, of the checkpoint and the settings that determine features."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([getattr(config, key) for key in DECIDES]).encode())
    return digest.hexdigest()[:16]


def load_features(source: Source, made_by: str) -> Features:
    """The features that are there and fit; none of another checkpoint's."""
    try:
        with safe_open(source.features, "pt") as file:
            about = file.metadata() or {}
            if about.get("made_by") != made_by:
                return {}
            stamps = parse_json(about["stamps"])
            fitting = [name for name, stamp in stamps.items() if source.stamps.get(name) == stamp]
            return {name: file.get_tensor(name) for name in fitting}
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}  # none yet, or a file that is damaged: it is written anew


def save_features(source: Source, made_by: str, features: Features) -> None:
    """Keep features in the cache; where nothing can be written, say so."""
    about = {"made_by": made_by, "stamps": json.dumps({name: source.stamps[name] for name in features})}
    try:
        with atomic_path(source.features) as temporary:
            save_file(features, temporary, about)
    except OSError as error:
        print(f"{source.features} cannot be written ({error}): features are not kept.", file=sys.stderr)


@torch.inference_mode()
def encode(model: RetrievalModel, config: Config, source: Source, device: torch.device) -> Features:
    """The features of every readable video; new ones are computed and cached."""
    made_by = maker(config, Path(config.path_ckpt))
    features = load_features(source, made_by)
    new = [name for name in source.stamps if name not in features]
    transform = Transform(config.img_transform, config.size_img)
    for name in tqdm(new, "encoding", unit="video", disable=None if new else True):
        try:
            frames = source.frames(name)
            picked = even_frames(len(frames), config.size_frame).tolist()
            clip = transform(frames.read(picked, transform.size), None)
        except BadRow as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        features[name] = model.enc_img(normalise(clip.to(device))[None])[0].float().cpu()
    if not features:
        raise UserError(f"{source.path}: no video in it can be read.")
    if new:
        save_features(source, made_by, features)
    return {name: features[name] for name in source.stamps if name in features}


# -------------------------------------------------------------------------------------------------- search


@torch.inference_mode()
def search(
    model: RetrievalModel, tokens: Tokens, features: Features, texts: list[str], device: torch.device
) -> list[list[tuple[str, float]]]:
    """For each text all videos with their scores, the best first. All must have as many tokens."""
    txt, mask = token_rows(tokens, texts)
    text = encode_texts(model, txt, mask, device)
    length = next(iter(features.values())).shape[0] + txt.shape[1]
    pairs = pairs_at_once(model, length, torch.float32, device)
    scorer, names, scores = PairScorer(model), list(features), []
    for start in range(0, len(names), pairs):  # few at a time on the device
        video = torch.stack([features[name] for name in names[start : start + pairs]]).to(device)
        scores.append(all_pairs(scorer, video, text, mask.to(device), pairs).cpu())
    found = torch.cat(scores).T
    return [
        [(names[i], float(row[i])) for i in row.argsort(descending=True, stable=True).tolist()]
        for row in found
    ]


def page(path: Path, source: Source, texts: list[str], found: list[list[tuple[str, float]]]) -> None:
    """A page of thumbnails; videos of a folder play."""

    def shown_as(name: str, score: float) -> dict[str, str | float]:
        picture = strip(source.thumbnail(name), count=1, height=THUMBNAIL.size * 9 // 16)
        place = os.path.relpath((source.path / name).resolve(), path.resolve().parent)
        address = urllib.parse.quote(place) if source.is_folder else ""
        return {"name": name, "score": score, "picture": picture, "source": address}

    searches = [(text, [shown_as(*video) for video in best]) for text, best in zip(texts, found, strict=True)]
    body = render(TEMPLATES / "search.html", searches=searches, plays=source.is_folder)
    write_page(path, f"Search in {source.path.resolve().name}", body)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this program, and the config's keys that are overridden."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("videos", type=Path, help="a folder of video files, or a frames TSV")
    parser.add_argument("text", nargs="+", help="one or more texts; each is a search of its own")
    parser.add_argument("--checkpoint", required=True, help="checkpoint, or run folder, of retrieval")
    parser.add_argument("--config", default="", help="config (default: args.json in the checkpoint's folder)")
    parser.add_argument("--top", type=int, default=5, help="number of videos to print (default: 5)")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of features (default: {CACHE})")
    parser.add_argument("--html", type=Path, help="page to write")
    return parser.parse_known_args(as_arguments(sys.argv[1:] if arguments is None else arguments))


def main(arguments: list[str] | None = None) -> None:
    """Encode new videos, search, print."""
    options, keys = parse(arguments)
    with writing(str(options.html or options.videos)):
        run(options, keys)


def run(options: argparse.Namespace, keys: list[str]) -> None:
    """One search of each text."""
    checkpoint = checkpoint_in(Path(options.checkpoint))
    beside = checkpoint.parent / "args.json"
    config = load_config("retrieval", ["--config", options.config or str(beside), *keys])
    config = dataclasses.replace(config, path_ckpt=str(checkpoint), size_epoch=0)
    source = open_source(options.videos, config, options.cache)
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    device = choose_device(config.device)
    model = RetrievalModel.from_config(config).to(device).eval()
    features = encode(model, config, source, device)
    found = [best[: options.top] for best in search(model, tokens, features, options.text, device)]
    for text, best in zip(options.text, found, strict=True):
        print(f"\n{text}")
        for place, (name, score) in enumerate(best, 1):
            print(f"{place:3}  {score:8.3f}  {shown(name)}")
    if options.html:
        page(options.html, source, options.text, found)
        print(f"\n{options.html}")


if __name__ == "__main__":
    run_script(main)
