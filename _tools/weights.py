"""List, verify and download published weights, and export trained ones.

    python _tools/weights.py list
    python _tools/weights.py check
    python _tools/weights.py fetch raft_large_C_T_SKHT_V2-ff5fadd5.pth
    python _tools/weights.py export _snapshot/_TASK_TIME --output mine

`check` reads every file of weights in `_snapshot/` as the scripts do, and lists the configs of `_args/` that
can run; it exits with 1 if a file is damaged. `fetch` gives a file its name only when it is complete and
verified; a model of the Hugging Face hub goes into the hub's own cache, where a run finds it. `export` writes
model.safetensors and config.json, which violet.py loads, and the state dict in the layout of the published
code (`--KEY VALUE` overrides a key of the config).
Each takes seconds on a laptop.
"""

import argparse
import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, equal

import root  # noqa: F401
from _tools.convert.download import fetch
from engine.arguments import load_config
from engine.resume import write_tensors
from lib import Config, UserError, lookup, run_script
from media.files import atomic_path, read_json, writing
from teachers.dalle_encoder import load_dalle
from violet import load
from weights.checkpoint import is_ignored
from weights.needs import WEIGHTS, lacking, offered
from weights.published import ABLATION, HUB, PUBLISHED, Published, download, published
from weights.tensor_files import checkpoint_in, read_tensors

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".pt", ".pth", ".pkl", ".safetensors")


def list_published(options: argparse.Namespace) -> None:
    """Print the published files."""
    for name, entry in PUBLISHED.items():
        size = f"{entry.bytes} bytes" if entry.bytes else entry.size
        digest = f"sha256 {entry.sha256}..." if entry.sha256 else ""
        print(f"{name}\n    {'; '.join(filter(None, [entry.what, size, digest]))}")
        print(f"    for {entry.purpose}; {'fetch' if entry.direct else 'see'} {entry.page}")
    print(f"the checkpoints of the paper's Tables 1 and 6\n    for path_ckpt; see {ABLATION}")


# ----------------------------------------------------------------------------------------------- check


def check(options: argparse.Namespace) -> None:
    """Verify the files in the folder, and list the configs that can run."""
    folder: Path = options.folder
    files = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    damaged = 0
    for path in files:
        wrong = fault(path)
        damaged += bool(wrong)
        print(f"{'ERROR' if wrong else 'ok':<6} {path}: {wrong or contents(path)}")
    if not files:
        print(f"{options.folder} has no weights yet; `list` prints the published ones.")
    print()
    for path in sorted([*ROOT.glob("_args/*.json"), *ROOT.glob("_args/_best/*.json")]):
        try:
            missing = [need.name for need in lacking(read_args(path))]
            state = f"lacks {', '.join(dict.fromkeys(missing))}" if missing else "can run"
        except UserError as error:
            state = f"needs options: {error}"
        print(f"{path.relative_to(ROOT)}: {state}")
    if damaged:
        raise SystemExit(1)


def read_args(path: Path) -> Config:
    """A config of whichever type it says it is."""
    content = read_json(path, most=1 << 20)
    kind = content.get("type", "pretrain") if isinstance(content, dict) else ""
    return load_config(kind, ["--config", str(path)])


def fault(path: Path) -> str:
    """The fault of a file of weights; empty if the file is complete and readable."""
    entry = published(path)
    size = path.stat().st_size
    if entry and entry.bytes and size != entry.bytes:
        return f"it has {size} bytes, not the published {entry.bytes}"
    if entry and entry.sha256:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(entry.sha256):
            return f"its sha256 is {digest}, not {entry.sha256}..."
    return unreadable(path, path.name)


def unreadable(path: Path, name: str) -> str:
    """Why a file that is to be called `name` cannot be read as weights; its checksums are checked too."""
    try:
        if name.endswith(".pkl"):
            load_dalle(path)
        else:
            read_tensors(path)
    except UserError as error:
        return str(error)
    return ""


def contents(path: Path) -> str:
    """How much is in a file that can be read."""
    if path.suffix == ".pkl":
        return "DALL-E's encoder"
    tensors = read_tensors(path)
    return f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()) / 1e6:.1f} million numbers"


# ----------------------------------------------------------------------------------------------- fetch


def fetch_all(options: argparse.Namespace) -> None:
    """Download files with a direct address, or the named ones; report the pages of the others."""
    names = options.name or [name for name, entry in PUBLISHED.items() if entry.direct]
    failed = []
    for name in names:
        entry = PUBLISHED[lookup(PUBLISHED, name, "published weights")]
        try:
            print(fetch_one(name, entry, options.folder))
        except UserError as error:
            failed.append(str(error))
    if failed:
        raise UserError("\n".join(failed))


def fetch_one(name: str, entry: Published, folder: Path) -> str:
    """Download one file; returns a line about it."""
    if entry.page.startswith(HUB):
        if not offered(name):
            raise UserError(f"{name}: no connection to {entry.page}.")
        return f"{name}: {download(name, entry.purpose, ('*.json', '*.txt', *WEIGHTS))}"
    path = folder / name
    if not entry.direct:
        raise UserError(f"{name} has no direct address: see {entry.page}.")
    if path.is_file() and not fault(path):
        return f"{path} exists and is complete"
    print(f"{name}: from {entry.page}", flush=True)
    fetch(entry.page, path, entry.sha256, verify=lambda part: unreadable(part, name))
    return f"{path}: {contents(path)}"


# ---------------------------------------------------------------------------------------------- export


def export(options: argparse.Namespace) -> None:
    """Write a checkpoint in both layouts, and read both back."""
    checkpoint = checkpoint_in(options.checkpoint)
    violet = load(checkpoint, options.config, **options.changes)  # whatever does not fit, says so here
    print(violet.report)
    config, folder = violet.config, options.output
    tensors = own_tensors(read_tensors(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "model.safetensors", folder / f"ckpt_violet_{config.task}.pt"]
    with atomic_path(files[0]) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with atomic_path(files[1]) as temporary:
        write_tensors(tensors, temporary)
    here = {"path_ckpt": files[0], "txt_backbone": folder / "text", "fusion_encoder": folder / "fusion"}
    places: dict[str, Any] = {key: str(path) for key, path in here.items()}
    (folder / "config.json").write_text(
        dataclasses.replace(config, **places, tokenizer="").to_json()
    )  # --config takes it too
    violet.tokens.tokenizer.save_pretrained(folder / "text")
    for key, place in (("txt_backbone", "text"), ("fusion_encoder", "fusion")):
        copy_sizes(getattr(config, key), folder / place)
    for path in files:
        again = read_tensors(path)
        if again.keys() != tensors.keys() or not all(equal(again[key], tensors[key]) for key in tensors):
            raise UserError(f"{path} does not hold what was written: check the disk.")
        print(f"{path}: {len(tensors)} tensors")


def own_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's own tensors, each with its own memory, without teachers and derived indices.

    The published code reads a flat state dict with the indices of relative positions in it.
    """
    kept = {k: t for k, t in tensors.items() if not is_ignored(k) or k.endswith("relative_position_index")}
    return {key: tensor.detach().clone().contiguous() for key, tensor in sorted(kept.items())}


def copy_sizes(bert: str, folder: Path) -> None:
    """A BERT's config.json, without its weights: a checkpoint holds those."""
    from weights.bert import bert_config

    folder.mkdir(parents=True, exist_ok=True)
    if Path(bert).is_dir():
        shutil.copyfile(Path(bert) / "config.json", folder / "config.json")
    else:
        bert_config(bert).save_pretrained(folder)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("list", help="print the published files, with their addresses").set_defaults(
        run=list_published
    )
    for name, run in (("check", check), ("fetch", fetch_all)):
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        command.add_argument("--folder", type=Path, default=Path("_snapshot"))
        command.set_defaults(run=run)
    command.add_argument("name", nargs="*", help="file, as in `list` (default: all with a direct address)")
    command = commands.add_parser("export", help="write a checkpoint for others")
    command.add_argument("checkpoint", type=Path, help="checkpoint or run folder")
    command.add_argument("--output", type=Path, required=True, help="folder to write to")
    command.add_argument(
        "--config", default="", help="config (default: args.json in the checkpoint's folder)"
    )
    command.set_defaults(run=export)
    options, others = parser.parse_known_args(arguments)
    keys, values = others[::2], others[1::2]
    pairs = len(keys) == len(values) and all(key.startswith("--") for key in keys)
    if others and not (pairs and options.run is export):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.changes = dict(zip((key[2:] for key in keys), values, strict=True))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    options = parse(arguments)
    with writing(str(getattr(options, "output", getattr(options, "folder", "")))):
        options.run(options)


if __name__ == "__main__":
    run_script(main)
