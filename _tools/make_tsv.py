"""Videos or pictures with captions -> the TSV files and the YAML that pre-training reads.

    python _tools/make_tsv.py _data/webvid --captions _data/webvid.csv --output _data --name webvid

In under a minute (a CSV with the columns `video` and `caption`, ten short clips beside it):

    python _tools/make_tsv.py clips/captions.csv --output _data --name clips --frames 4

Writes NAME.yaml, NAME.img.tsv and NAME.caption.tsv (each with its .lineidx), NAME.linelist.tsv,
NAME.settings.json (what they were made from) and NAME.failures.tsv (id, path, reason of what was left out);
_data/README.md defines the formats. They grow in the folder NAME.part: after a kill, the same command goes
on where it was, to the same bytes.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml
from clips import Item, Row, Sampling, make_row
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `finish`, which imports from there

VIDEOS = ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
IMAGES = ".bmp .jpeg .jpg .png .tif .tiff .webp"
KINDS = dict.fromkeys(VIDEOS.split(), "video") | dict.fromkeys(IMAGES.split(), "image")
AHEAD = 4  # rows per worker that may wait in memory for a slow one before them

Settings = dict[str, Any]
Done = tuple[int, int, str]  # what the journal says of an item: bytes of all rows so far, frames, failure


# ------------------------------------------------------------------------------------ sources and captions


def read_items(source: Path, captions_path: Path | None) -> list[Item]:
    """The items of a folder, CSV or TSV in the order of their rows-to-be."""
    if captions_path is None and source.suffix != ".csv":
        raise SystemExit(f"{source}: pre-training needs captions; give --captions FILE")
    captions = read_captions(captions_path or source)
    if source.suffix == ".tsv":
        return [Item(id_, captions.get(id_, ()), source, "row", offset) for id_, offset in read_ids(source)]
    if source.suffix == ".csv":
        files = [(source.parent / name, kind) for name, kind, _ in read_csv(source)]
    else:
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in KINDS)
        files = [(path, KINDS[path.suffix.lower()]) for path in paths]
    items: dict[str, Item] = {}
    for path, kind in files:
        known = items.setdefault(path.stem, Item(path.stem, captions.get(path.stem, ()), path, kind))
        if known.path != path:
            raise SystemExit(f"{source}: {known.path} and {path} would have the same id; rename one of them")
    return list(items.values())


def read_ids(tsv: Path) -> Iterator[tuple[str, int]]:
    """The id of each row of a frames TSV, and the row's offset in bytes."""
    offset = 0
    with tsv.open("rb") as file:
        for line in file:
            yield line.split(b"\t", 1)[0].decode(errors="replace"), offset
            offset += len(line)


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Captions by id, from a JSON {id: [captions]} or from a CSV, whose files' stems are the ids."""
    captions: dict[str, list[str]] = {}
    try:
        if path.suffix == ".csv":
            for name, _, text in read_csv(path):
                captions.setdefault(Path(name).stem, []).append(text)
        else:
            entries = json.loads(path.read_bytes())
            captions = {id_: [texts] if isinstance(texts, str) else texts for id_, texts in entries.items()}
        return {id_: tuple(text.strip() for text in texts if text.strip()) for id_, texts in captions.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: not a JSON of {{id: [captions]}} ({error}); correct it") from error


def read_csv(path: Path) -> Iterator[tuple[str, str, str]]:
    """(file, "video" or "image", caption) of each row: a file is in the column of its kind."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # strict, as a forgotten quote would swallow the rows after it
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            for row in reader:
                kind = "image" if row.get("image") else "video"
                if not row.get(kind) or row.get("caption") is None or None in row:
                    need = "`video` or `image`, and `caption`, which is in double quotes if it has commas"
                    raise SystemExit(f"{path} line {reader.line_num}: {row}; it needs {need}")
                yield row[kind], kind, row["caption"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path}: not readable as UTF-8 CSV ({error}); correct the file") from error


# ------------------------------------------------------------------------------------- many items, in order


def make_rows(items: list[Item], sampling: Sampling, workers: int) -> Iterator[Row]:
    """`make_row` of each item, in the order of the items, by so many processes (0: by this one)."""
    if not workers:
        yield from (make_row(item, sampling) for item in items)
        return
    threads = ThreadPoolExecutor(workers)
    waiting: list[Future[Row]] = []
    try:
        for item in items:
            waiting.append(threads.submit(make_row_apart, item, sampling))
            if len(waiting) == AHEAD * workers:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)
    finally:
        threads.shutdown(cancel_futures=True)


thread = threading.local()


def make_row_apart(item: Item, sampling: Sampling) -> Row:
    """`make_row` in a process that this thread has for itself: a decoder's crash costs one item only."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    for _ in range(2):  # the kernel, short of memory, may have killed it for another's greed
        if not hasattr(thread, "pipe"):
            thread.pipe, other_end = spawn.Pipe()
            spawn.Process(target=serve, args=[other_end], daemon=True).start()
            other_end.close()
        try:
            thread.pipe.send((item, sampling))
            return thread.pipe.recv()
        except (EOFError, OSError):
            del thread.pipe
    return Row([], "reading it ended the process: the decoder crashed, or memory ran out")


def serve(pipe: Connection) -> None:
    """In a process: make the rows that are asked for, until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(make_row(*pipe.recv()))


# ---------------------------------------------------------------------------------------------------- files


def settings_of(items: list[Item], sampling: Sampling) -> Settings:
    """All that the output depends on: the same settings, the same bytes. Files count by path and size."""
    digest = hashlib.sha256()
    for item in items:
        size = item.path.stat().st_size if item.path.exists() else None
        digest.update(repr((item, size)).encode())
    return {**asdict(sampling), "content": digest.hexdigest()[:16]}


def is_finished(part: Path, settings: Settings) -> bool:
    """Whether the files are there, made with these settings; files made otherwise are an error."""
    rows, record = part.with_suffix(".img.tsv"), part.with_suffix(".settings.json")
    before = json.loads(record.read_text()) if record.exists() else "settings that are not known"
    if rows.exists() and before != settings:
        raise SystemExit(f"{rows}: made with {before}, not {settings}; give another --name or --overwrite")
    return rows.exists()


def write_rows(
    part: Path, items: list[Item], sampling: Sampling, workers: int, settings: Settings
) -> list[Done]:
    """Write the rows of the items that no earlier run has done, and a line of the journal after each item."""
    part.mkdir(parents=True, exist_ok=True)
    done = resume(part, settings)
    left = items[len(done) :]
    made = tqdm(make_rows(left, sampling, workers), initial=len(done), total=len(items), unit="row")
    with (part / "img.tsv").open("ab") as rows, (part / "journal.jsonl").open("a") as journal:
        for item, row in zip(left, made, strict=True):
            if not row.failure:
                rows.write(b"\t".join([item.id.encode(), *row.frames]) + b"\n")
                rows.flush()
            done.append((rows.tell(), len(row.frames), row.failure))
            journal.write(json.dumps(done[-1]) + "\n")
            journal.flush()
    return done


def resume(part: Path, settings: Settings) -> list[Done]:
    """What runs with the same settings have done, as far as both files have it; both are cut to that."""
    rows, journal = part / "img.tsv", part / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    before, *entries = [json.loads(line) for line in lines if line.endswith("\n")] or [settings]
    if before != settings:
        print(f"{part}: begun with {before}, not {settings}; starting over")
        entries = []
    rows.touch()
    size = rows.stat().st_size
    done: list[Done] = [(end, frames, failure) for end, frames, failure in entries if end <= size]
    os.truncate(rows, done[-1][0] if done else 0)
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in [settings, *done]))
    return done


def finish(part: Path, items: list[Item], done: list[Done], settings: Settings) -> None:
    """Write what goes with the rows, then move all of it to its place."""
    from tsv import write_lineidx  # imports torch: not for the processes that decode

    images = True
    texts: dict[str, list[str]] = {"failures.tsv": [], "caption.tsv": [], "linelist.tsv": []}
    failures, captions, linelist = texts.values()
    for item, (_, frames, failure) in zip(items, done, strict=True):
        if failure:
            failures.append(f"{item.id}\t{item.path}\t{failure}\n")
        else:
            linelist += [f"{len(captions)}\t{number}\n" for number in range(len(item.captions))]
            captions.append(f"{item.id}\t{json.dumps([{'caption': text} for text in item.captions])}\n")
            images &= item.kind != "video" and frames == 1
    names = {"img": "img.tsv", "caption": "caption.tsv", "caption_linelist": "linelist.tsv"}
    corpus = {key: part.with_suffix(f".{ending}").name for key, ending in names.items()}
    texts["yaml"] = [yaml.safe_dump(corpus | ({"image": True} if images else {}), sort_keys=False)]
    texts["settings.json"] = [json.dumps(settings) + "\n"]
    for ending, lines in texts.items():
        (part / ending).write_text("".join(lines), "utf-8", "backslashreplace")
    write_lineidx(part / "img.tsv")
    write_lineidx(part / "caption.tsv")
    # rows and settings last: with the rows still there, a run that is killed here can finish again
    order = ["failures.tsv", "caption.tsv", "caption.lineidx", "linelist.tsv", "yaml", "img.lineidx"]
    for ending in [*order, "img.tsv", "settings.json"] if captions else order[:1]:
        (part / ending).replace(part.with_suffix(f".{ending}"))
    shutil.rmtree(part)
    print(f"{len(captions)} rows, {len(linelist)} captions, {len(failures)} in {part.stem}.failures.tsv")
    if not captions:
        raise SystemExit("nothing written: not one row could be made")


# -------------------------------------------------------------------------------------------------- program


def main(arguments: list[str] | None = None) -> None:
    """Make the files; exits with 1 when there is not one row."""
    args = parse_arguments(arguments)
    sampling = Sampling(args.frames or (None if args.fps else 32), args.fps, args.size, args.quality)
    items = read_items(args.source, args.captions)
    if not items:
        raise SystemExit(f"{args.source}: no video, image or row in it; check the path")
    settings = settings_of(items, sampling)
    part = args.output / f"{args.name}.part"
    if not args.overwrite and is_finished(part, settings):
        print(f"{part.with_suffix('.yaml')}: finished before with these settings (--overwrite: once more)")
        return
    done = write_rows(part, items, sampling, args.workers, settings)
    finish(part, items, done, settings)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("source", type=Path, help="a folder; a CSV of `video` or `image`, and `caption`; or a frames TSV")
    add("--captions", type=Path, help="for a folder or TSV: a JSON {id: [captions]}, or a CSV as above")
    add("--output", type=Path, required=True, help="folder to write to, made when missing")
    add("--name", required=True, help="what the names of the written files begin with")
    add("--frames", type=int, help="per video at most, evenly, first and last included (default: 32)")
    add("--fps", type=float, help="frames per second of video (then, by default, --frames is unbounded)")
    add("--size", type=int, default=320, help="longest side, pixels (default: 320); only shrinks")
    add("--quality", type=int, default=90, help="of the JPEGs, 1 to 100 (default: 90)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core; 0: no other)")
    add("--overwrite", action="store_true", help="replace finished files of this name")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
