"""Find the best videos of a folder, a frames TSV or a corpus YAML for a text.

    python _tools/search.py VIDEOS "a man talks to the camera" --checkpoint _snapshot/_msrvtt-retrieval_TIME
    python _tools/search.py _data/img_msrvtt.tsv "a dog runs" "a red car" --checkpoint ... --html found.html

With a checkpoint that has embeddings (trained with `--vtc`), videos are embedded once into an index in
`_snapshot/search/` (`--cache` names another folder), which is brought up to date when videos are added or
removed or have changed; the 50 most similar to a text (`--rerank`) are then scored by the cross-modal
transformer. With another checkpoint of retrieval or pre-training, the transformer scores every video.
`--config` names another config than that in the checkpoint's folder, `--KEY VALUE` overrides a key. `--html`
writes a page whose videos play. In under a minute on a laptop, after `make demo`:

    python _tools/search.py _data/demo/test "a red star turns" --checkpoint CHECKPOINT
"""

import argparse
import os
import sys
import urllib.parse
from pathlib import Path

import root  # noqa: F401
from engine.arguments import parse_with_keys
from lib import run_script, shown
from media.files import writing
from tasks.retrieval.library import CACHE, RERANKED, Found, Library
from tasks.retrieval.pages import TEMPLATES, render, strip, write_page
from tasks.retrieval.sources import THUMBNAIL, Source, open_source
from violet import load


def page(path: Path, source: Source, texts: list[str], found: list[Found]) -> None:
    """A page of thumbnails; videos of a folder play."""

    def shown_as(name: str, score: float) -> dict[str, str | float]:
        picture = strip(source.frames(name, THUMBNAIL), count=1, height=THUMBNAIL * 9 // 16)
        file = source.file(name)
        place = os.path.relpath(file.resolve(), path.resolve().parent) if file else ""
        return {"name": name, "score": score, "picture": picture, "source": urllib.parse.quote(place)}

    searches = [(text, [shown_as(*video) for video in best]) for text, best in zip(texts, found, strict=True)]
    body = render(TEMPLATES / "search.html", searches=searches, plays=source.path.is_dir())
    write_page(path, f"Search in {source.path.resolve().name}", body)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options of this program, and the config's keys that are overridden."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("videos", type=Path, help="a folder of video files, a frames TSV, or a YAML")
    parser.add_argument("text", nargs="+", help="one or more texts; each is a search of its own")
    parser.add_argument("--checkpoint", required=True, help="checkpoint, or run folder, of retrieval")
    parser.add_argument("--config", default="", help="config (default: args.json in the checkpoint's folder)")
    parser.add_argument("--top", type=int, default=5, help="number of videos to print (default: 5)")
    help_ = f"most similar videos that the transformer scores (default: {RERANKED}; 0: embeddings alone)"
    parser.add_argument("--rerank", dest="reranked", type=int, default=RERANKED, help=help_)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of indices (default: {CACHE})")
    parser.add_argument("--html", type=Path, help="page to write")
    return parse_with_keys(parser, arguments, own=["rerank"])


def main(arguments: list[str] | None = None) -> None:
    """Bring the index up to date, search, print."""
    options, changes = parse(arguments)
    with writing(str(options.html or options.videos)):
        run(options, changes)


def run(options: argparse.Namespace, changes: dict[str, str]) -> None:
    """One search of each text."""
    source = open_source(options.videos)
    library = Library(load(options.checkpoint, options.config, **changes), source, options.cache)
    for fault in library.update():
        print(f"left out: {shown(fault)}", file=sys.stderr)
    found = library.search(options.text, options.top, options.reranked)
    for text, best in zip(options.text, found, strict=True):
        print(f"\n{text}")
        for place, (name, score) in enumerate(best, 1):
            print(f"{place:3}  {score:8.3f}  {shown(name)}")
    if options.html:
        page(options.html, source, options.text, found)
        print(f"\n{options.html}")


if __name__ == "__main__":
    run_script(main)
