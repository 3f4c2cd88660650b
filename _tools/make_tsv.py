"""Convert videos or pictures to the TSV files that the scripts read, and a YAML for pre-training.

    python _tools/make_tsv.py _data/webvid --captions _data/webvid.csv --output _data --name webvid
    python _tools/make_tsv.py MSRVTT/videos --frames_only --output _data --name msrvtt

In under a minute (a CSV with the columns `video` and `caption`, ten short clips beside it):

    python _tools/make_tsv.py clips/captions.csv --output _data --name clips --frames 4

Writes NAME.yaml, NAME.img.tsv and NAME.caption.tsv (each with its indices), NAME.linelist.tsv,
NAME.manifest.jsonl (the settings, then a line per item: source, frames, seconds, SHA-256) and
NAME.failures.tsv (id, path, reason of what was left out). With --frames_only (text comes later, from
annotations.py) it writes img_NAME.tsv, its indices, manifest and failures; with --shard_gb NAME.img.0.tsv,
NAME.img.1.tsv ... and a composite YAML; with --link rows that name the files instead of holding frames; with
--proxy rows that name small copies of the videos, in the folder NAME.proxies.
_data/README.md defines the formats. Unfinished files are kept in the folder NAME.part: after a kill, the same
command continues where it stopped and gives the same bytes.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

import root  # noqa: F401
from _tools.convert.clips import Item, Row, Sampling, make_row
from _tools.convert.sources import read_items
from lib import UserError, run_script
from media.files import writing
from media.kinds import as_arguments

AHEAD = 4  # rows per worker that may wait in memory for a slow one before them
TIMEOUT = 600.0  # seconds that an item may take
PROXY_RATE, PROXY_SIDE = 2.0, 224  # frames per second and shorter side in pixels, unless given
TEMPORARY = ".violet-"  # as in lib.py
COMPLETE = "complete"  # a file in the growing folder that says that all others there are whole

Settings = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Which files are written, by the endings of their names."""

    frames_only: bool = False
    shard_bytes: int = 0
    """of a frames file at most (one row may be more); 0: all rows in one file"""

    def rows(self, shard: int) -> str:
        """Name, in the growing folder, of a frames file."""
        return f"img{self._number(shard)}.tsv"

    def captions(self, shard: int) -> str:
        """Name of its captions file."""
        return f"caption{self._number(shard)}.tsv"

    def _number(self, shard: int) -> str:
        return f".{shard}" if self.shard_bytes else ""

    def place(self, part: Path, name: str) -> Path:
        """Where a file of the growing folder ends up."""
        if not self.frames_only:
            return part.with_suffix(f".{name}")
        return part.with_name(f"img_{part.stem}.{name.removeprefix('img.')}")


@dataclass(frozen=True)
class Done:
    """The record of an item in the journal, later in the manifest."""

    id: str
    source: str
    frames: int
    seconds: float
    sha256: str
    failure: str
    shard: int
    end: int
    """bytes of the shard up to the end of this row"""


# ------------------------------------------------------------------------------------- many items, in order


def make_rows(items: list[Item], sampling: Sampling, workers: int) -> Iterator[Row]:
    """`make_row` of each item, in order, by `workers` processes (0: in this process)."""
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
            thread.process = spawn.Process(target=serve, args=[other_end], daemon=True)
            thread.process.start()
            other_end.close()
        try:
            thread.pipe.send((item, sampling))
            if thread.pipe.poll(TIMEOUT):
                return thread.pipe.recv()
            thread.process.kill()
            del thread.pipe
            return Row([], f"reading it took more than {TIMEOUT:.0f} seconds")
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


def settings_of(items: list[Item], sampling: Sampling, layout: Layout) -> Settings:
    """All that the output depends on: the same settings, the same bytes. Files count by path and size."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr((item, sizes(item.path))).encode())
    made = (
        asdict(sampling) | {"link": bool(sampling.link), "proxies": bool(sampling.proxies)} | asdict(layout)
    )
    return made | {"content": digest.hexdigest()[:16]}


def sizes(path: Path) -> Any:
    """Bytes of a file, or of each file of a folder by name; None where there is nothing."""
    if path.is_dir():
        return sorted((file.name, file.stat().st_size) for file in path.iterdir())
    return path.stat().st_size if path.exists() else None


def first_line(journal: Path) -> Settings | str:
    """The settings that files were made with."""
    try:
        with journal.open() as file:
            return json.loads(file.readline())
    except (OSError, ValueError):
        return "settings that are not known"


def is_finished(part: Path, settings: Settings, layout: Layout) -> bool:
    """Whether the files are there, made with these settings; files made otherwise are an error."""
    rows, manifest = layout.place(part, layout.rows(0)), layout.place(part, "manifest.jsonl")
    before = first_line(manifest)
    others = [layout.place(part, name) for name in ("yaml", layout.captions(0), "linelist.tsv")]
    if taken := [path for path in others if path.exists() and not manifest.exists()]:
        raise UserError(f"{taken[0]} was written by another program; give another --name or --overwrite")
    if rows.exists() and before != settings:
        raise UserError(f"{rows}: made with {before}, not {settings}; give another --name or --overwrite")
    return rows.exists()


def write_rows(
    part: Path, items: list[Item], sampling: Sampling, layout: Layout, workers: int, settings: Settings
) -> list[Done]:
    """Write the rows of the items that no earlier run has done, and a line of the journal after each item."""
    done = resume(part, layout, settings)
    left = items[len(done) :]
    shard = done[-1].shard if done else 0
    made = tqdm(make_rows(left, sampling, workers), initial=len(done), total=len(items), unit="row")
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context((part / "journal.jsonl").open("a"))
        rows = stack.enter_context((part / layout.rows(shard)).open("ab"))
        for item, row in zip(left, made, strict=True):
            line = b"" if row.failure else b"\t".join([item.id.encode(), *row.fields]) + b"\n"
            if layout.shard_bytes and rows.tell() and line and rows.tell() + len(line) > layout.shard_bytes:
                shard += 1
                rows = stack.enter_context((part / layout.rows(shard)).open("ab"))
            rows.write(line)
            rows.flush()
            what = (item.id, str(item.path), row.frames, row.duration, row.sha256, row.failure)
            done.append(Done(*what, shard, rows.tell()))
            journal.write(json.dumps(asdict(done[-1])) + "\n")
            journal.flush()
    return done


def resume(part: Path, layout: Layout, settings: Settings) -> list[Done]:
    """Records of earlier runs with the same settings; files are truncated to the rows that all have."""
    journal = part / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    lines = [line for line in lines if line.endswith(b"\n")]
    if not lines or first_line(journal) != settings:
        if lines:
            print(f"{part}: begun with {first_line(journal)}, not {settings}; starting over")
        discard(part)
        journal.write_text(json.dumps(settings) + "\n")
        return []
    done: list[Done] = []
    for line in lines[1:]:
        try:
            entry = Done(**json.loads(line))
        except (ValueError, TypeError):  # a damaged line: what follows is done again
            break
        rows = part / layout.rows(entry.shard)
        if not rows.exists() or rows.stat().st_size < entry.end:
            break
        done.append(entry)
    last, end = (done[-1].shard, done[-1].end) if done else (0, 0)
    (part / layout.rows(last)).touch()
    os.truncate(part / layout.rows(last), end)
    if layout.shard_bytes:  # one that was begun after that
        (part / layout.rows(last + 1)).unlink(missing_ok=True)
    os.truncate(journal, sum(map(len, lines[: 1 + len(done)])))
    return done


def discard(part: Path) -> None:
    """Empty the growing folder; one that holds anything else is an error, and stays."""
    ours = re.compile(
        r"(img|caption)(\.\d+)?\.(tsv|lineidx|fieldidx\.npy|id2lineidx\.pkl)|linelist\.tsv|failures\.tsv|yaml"
    )
    names = {"journal.jsonl", "manifest.jsonl", COMPLETE}
    for path in list(part.iterdir()):
        known = path.name in names or ours.fullmatch(path.name) or TEMPORARY in path.name
        if not known or not path.is_file():
            raise UserError(f"{path} was not written by this program: move it, or give another --name.")
    for path in list(part.iterdir()):
        path.unlink()


def finish(part: Path, items: list[Item], done: list[Done], layout: Layout) -> None:
    """Write what goes with the rows, then move all of it to its place."""
    texts = {"failures.tsv": [f"{d.id}\t{d.source}\t{d.failure}\n" for d in done if d.failure]}
    made = [(item, entry) for item, entry in zip(items, done, strict=True) if not entry.failure]
    listed = layout.place(part, "failures.tsv")
    if not made:
        (part / "failures.tsv").write_text("".join(texts["failures.tsv"]), "utf-8", "backslashreplace")
        (part / "failures.tsv").replace(listed)
        discard(part)
        raise UserError(f"nothing written: no row could be made; see {listed}")
    if not layout.frames_only:
        texts |= caption_texts(part, made, layout)
    for ending, lines in texts.items():
        (part / ending).write_text("".join(lines), "utf-8", "backslashreplace")
    write_indices(part, range(made[-1][1].shard + 1), layout)
    (part / COMPLETE).touch()
    move(part, layout)
    captions = "" if layout.frames_only else f", {len(texts['linelist.tsv'])} captions"
    print(f"{len(made)} rows{captions}, {len(texts['failures.tsv'])} in {listed.name}")


def caption_texts(part: Path, made: Iterable[tuple[Item, Done]], layout: Layout) -> dict[str, list[str]]:
    """The lines of the captions, the pairs and the YAML, by the endings of their files."""
    texts: dict[str, list[str]] = {"linelist.tsv": []}
    images, shards = True, range(0)
    for item, entry in made:
        lines = texts.setdefault(layout.captions(entry.shard), [])
        place = f"{entry.shard}\t{len(lines)}" if layout.shard_bytes else f"{len(lines)}"
        texts["linelist.tsv"] += [f"{place}\t{number}\n" for number in range(len(item.captions))]
        lines.append(f"{item.id}\t{json.dumps([{'caption': text} for text in item.captions])}\n")
        images &= item.kind != "video" and entry.frames == 1
        shards = range(entry.shard + 1)
    files = {
        "img": [layout.place(part, layout.rows(shard)).name for shard in shards],
        "caption": [layout.place(part, layout.captions(shard)).name for shard in shards],
    }
    corpus: dict[str, Any] = (
        dict(files) if layout.shard_bytes else {k: names[0] for k, names in files.items()}
    )
    corpus["caption_linelist"] = layout.place(part, "linelist.tsv").name
    corpus |= {"composite": True} if layout.shard_bytes else {}
    corpus |= {"image": True} if images else {}
    texts["yaml"] = [yaml.safe_dump(corpus, sort_keys=False)]
    return texts


def write_indices(part: Path, shards: Iterable[int], layout: Layout) -> None:
    """Write the .lineidx of each TSV, and of frames the index by field and, for questions, that by id."""
    # imports torch: not for those that decode
    from media.tsv import find_ids, id2lineidx_path, write_fieldidx, write_lineidx

    for shard in shards:
        rows = part / layout.rows(shard)
        write_lineidx(rows)
        write_fieldidx(rows)
        if layout.frames_only:
            id2lineidx_path(rows).write_bytes(pickle.dumps(find_ids(rows)))
        else:
            write_lineidx(part / layout.captions(shard))


def move(part: Path, layout: Layout) -> None:
    """Move the files of a complete folder to their places; after a kill the move continues."""
    with contextlib.suppress(FileNotFoundError):  # moved before a kill
        (part / "journal.jsonl").replace(part / "manifest.jsonl")
    for path in sorted(part.iterdir()):
        if path.name != COMPLETE and not path.name.startswith("."):  # what a kill left unfinished
            path.replace(layout.place(part, path.name))
    discard(part)


def is_complete(part: Path, settings: Settings, layout: Layout) -> bool:
    """Whether a run with these settings was killed while it moved its files."""
    places = (part / "journal.jsonl", part / "manifest.jsonl", layout.place(part, "manifest.jsonl"))
    journal = next((path for path in places if path.exists()), places[0])
    return (part / COMPLETE).exists() and first_line(journal) == settings


# -------------------------------------------------------------------------------------------------- program


def main(arguments: list[str] | None = None) -> None:
    """Make the files; exits with 1 when there is not one row."""
    args = parse_arguments(arguments)
    layout = Layout(args.frames_only, round(args.shard_gb * 1e9))
    if not args.name.isprintable() or Path(args.name).name != args.name or len(args.name) > 100:
        raise UserError(f"--name {args.name[:40]!r}: up to 100 printable characters without a slash.")
    part = args.output / f"{args.name}.part"
    fps = args.fps or (PROXY_RATE if args.proxy else None)
    sampling = Sampling(
        frames=args.frames or (None if fps else 32),
        fps=fps,
        size=args.size or (PROXY_SIDE if args.proxy else 320),
        quality=args.quality,
        rate=args.rate,
        link=str(args.output) if args.link else "",
        proxies=str(args.output / f"{args.name}.proxies") if args.proxy else "",
        captions=not args.frames_only,
        keep_damaged=args.keep_damaged,
    )
    if not args.source.exists():
        raise UserError(f"{args.source} does not exist; check the path")
    window = (args.start, args.end)
    items = read_items(args.source, args.captions, not args.frames_only, args.frame_folders, window)
    if not items:
        raise UserError(f"{args.source}: no video, image or row in it; check the path")
    with growing(part):
        make(args, items, sampling, layout)


@contextlib.contextmanager
def growing(part: Path) -> Iterator[None]:
    """Inside, files of this name are written by this process alone; a full disk ends in one line."""
    with writing(str(part)):
        part.mkdir(parents=True, exist_ok=True)
        folder = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"{part}: another process is writing files of this name; wait until it ends."
                ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # of an interrupted run, which goes on
                part.rmdir()
            os.close(folder)


def make(args: argparse.Namespace, items: list[Item], sampling: Sampling, layout: Layout) -> None:
    """Make the files, or what an earlier run has not made of them."""
    part = args.output / f"{args.name}.part"
    settings = settings_of(items, sampling, layout)
    if is_complete(part, settings, layout):
        move(part, layout)
        print(f"{args.name}: finished")
        return
    if not args.overwrite and is_finished(part, settings, layout):
        print(f"{args.name}: complete, with these settings (--overwrite writes it again)")
        return
    done = write_rows(part, items, sampling, layout, args.workers, settings)
    finish(part, items, done, layout)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("source", type=Path, help="a folder; a CSV of `video` or `image`, `caption`, and, where the rows are "
        "clips of videos, `id`, `start` and `end`; or a frames TSV")  # fmt: skip
    add("--captions", type=Path, help="for a folder or TSV: a JSON {id: [captions]}, or a CSV as above")
    add("--frames_only", action="store_true", help="write only img_NAME.tsv, which needs no captions")
    add("--output", type=Path, required=True, help="folder to write to; it is created if missing")
    add("--name", required=True, help="beginning of the names of the written files")
    add(
        "--frames",
        type=int,
        help="frames per video at most, evenly spaced, first and last included (default: 32)",
    )
    add("--fps", type=float, help="frames per second of video (then, by default, --frames is unbounded; "
        f"default with --proxy: {PROXY_RATE:g})")  # fmt: skip
    add("--start", type=float, default=0.0, help="start of each clip in seconds (default: 0)")
    add("--end", type=float, help="end of each clip in seconds (default: end of the video)")
    add(
        "--size",
        type=int,
        help="longest side of stored frames in pixels; smaller frames are kept (default: 320); "
        f"with --proxy: the shorter side (default: {PROXY_SIDE})",
    )
    add("--quality", type=int, default=90, help="quality of the JPEGs, 1 to 100 (default: 90)")
    add(
        "--frame_folders", action="store_true", help="each folder in the source is a video, a picture a frame"
    )
    add(
        "--rate", type=float, default=0.0, help="frames per second of such folders, for --fps, --start, --end"
    )
    add(
        "--keep_damaged",
        action="store_true",
        help="keep rows with frames that the decoder reports as damaged",
    )
    add(
        "--link",
        action="store_true",
        help="write rows that name the files, which are decoded when they are read",
    )
    add(
        "--proxy",
        action="store_true",
        help="write small videos of which every frame is a key frame, and rows that name them: "
        "they take less than half of the bytes of stored frames",
    )
    add("--shard_gb", type=float, default=0.0, help="size limit of a frames file in GB (default: one file)")
    add(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="decoding processes (default: one per core; 0: the main process decodes)",
    )
    add("--overwrite", action="store_true", help="replace finished files of this name")
    args = parser.parse_args(as_arguments(sys.argv[1:] if arguments is None else arguments))
    for name in ("frames", "fps", "size", "quality"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name} must be more than 0")
    if args.start < 0 or (args.end is not None and args.end <= args.start):
        parser.error("--start and --end must be 0 <= start < end")
    if args.link and args.proxy:
        parser.error("--link names the videos themselves, --proxy names small copies: choose one")
    if args.link and args.keep_damaged:
        parser.error("--keep_damaged applies to stored frames; linked rows are checked when they are read")
    return args


if __name__ == "__main__":
    try:
        run_script(main)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
