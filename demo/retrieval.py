"""Captions of the demo's videos in the published format of retrieval.

    python -m demo.retrieval

It comes after demo_questions.py, which writes the frames (img_demo.tsv). In under a minute, anywhere:

    python -m demo.retrieval --data _data/demo-small

Writes txt_demo-retrieval.json: of each training video two captions, of each other one. Every clip of val and
test differs from all others of its set in what its caption says (its objects' sizes, colours, shapes and
behaviours): one video is right for a text, and chance is one in their number.
"""

import argparse
import json
from pathlib import Path

from demo.world import CAPTIONED_SETS
from lib import UserError, run_script
from media.files import atomic_path


def pairs_of(path: Path) -> list[dict[str, str]]:
    """The pairs of a SPLIT.scenes.jsonl."""
    scenes = [json.loads(line) for line in path.read_text().splitlines()]
    return [{"video": scene["id"], "caption": text} for scene in scenes for text in scene["captions"]]


def main(arguments: list[str] | None = None) -> None:
    """Write the captions of the three sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/demo"), help="folder of the demo's files")
    options = parser.parse_args(arguments)
    files = {split: options.data / f"{split}.scenes.jsonl" for split in CAPTIONED_SETS}
    if missing := [str(path) for path in files.values() if not path.exists()]:
        raise UserError(f"{', '.join(missing)} missing: run demo.make first.")
    splits = {split: pairs_of(path) for split, path in files.items()}
    for split in ("val", "test"):
        texts = [pair["caption"] for pair in splits[split]]
        if len(set(texts)) < len(texts):
            raise UserError(f"{files[split]}: two videos have the same caption; draw the world anew.")
    path = options.data / "txt_demo-retrieval.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(splits))
    print(f"{path}:", ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items()))


if __name__ == "__main__":
    run_script(main)
