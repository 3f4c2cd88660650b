"""Damaged files for every reader: each ends in one clear line or is read, within seconds and little memory.

`pytest -s tests/test_fuzz.py` prints how many were tried by reader, and what became of them.
"""

import collections
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dataset import PretrainCorpus
from engine.arguments import load_config
from engine.resume import PROGRESS, load_model, load_optimizer, load_random_states, random_states, read_state
from engine.runs import STATE
from lib import UserError, World
from media.files import reading
from media.frames import Transform, read_clip
from media.tokens import Tokens
from media.tsv import BadRow, Tsv, Videos, find_ids, id2lineidx_path, lineidx_path
from tasks.qa.questions import Annotation
from teachers.dalle_encoder import DalleEncoder, load_dalle
from tests.conftest import write_corpus, write_videos
from tests.media.test_decoding import write_video
from tests.tools.test_make_tsv import write_image
from weights.bert import bert_config
from weights.tensor_files import read_tensors

CASES = 30  # mutations of each file
SECONDS = 10  # that one may take
MEMORY = 2 << 30  # bytes that it may take
Read = Callable[[Path], Any]


# ------------------------------------------------------------------------------------------- mutations


def cut_off(data: bytes, chance: random.Random) -> bytes:
    return data[: int(len(data) * chance.random())]


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 4, 40])):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def inserted(data: bytes, chance: random.Random) -> bytes:
    place, count = chance.randrange(len(data)), chance.choice([1, 7, 500])
    return data[:place] + chance.randbytes(count) + data[place:]


def left_out(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + data[place + chance.choice([1, 9, 300]) :]


def swapped(data: bytes, chance: random.Random) -> bytes:
    a, b, c = sorted(chance.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def grown(data: bytes, chance: random.Random) -> bytes:
    """A number in digits, or in four bytes, becomes a huge or a negative one."""
    numbers = [found.span() for found in re.finditer(rb"\d+", data[: 1 << 16])]
    if numbers and chance.random() < 0.5:
        start, end = chance.choice(numbers)
        return data[:start] + chance.choice([b"9" * 25, b"4294967296", b"-7", b"1e999"]) + data[end:]
    place = chance.randrange(len(data))
    huge = chance.choice([b"\xff\xff\xff\x7f", b"\xff" * 8, b"r\xff\xff\xff\x3f", b"\x8e" + b"\xff" * 8])
    return data[:place] + huge + data[place + len(huge) :]


def nested(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    deep = chance.choice([b"[" * 20_000, b'{"a":' * 20_000, b"(" * 20_000, b"]\x85" * 20_000, b"- " * 20_000])
    return data[:place] + deep + data[place:]


def other(data: bytes, chance: random.Random) -> bytes:
    """Something else altogether."""
    pages = [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n", b"\xff\xfe\x00"]
    return chance.choice([*pages, b"null", b"NaN", b"[[]]", b'"\\ud800"', data[::-1], b"\0" * 5000])


MUTATIONS = (cut_off, flipped, inserted, left_out, swapped, grown, nested, other)


def mutated(data: bytes, number: int) -> bytes:
    chance = random.Random(number)
    return MUTATIONS[number % len(MUTATIONS)](data, chance)


def rezipped(data: bytes, number: int) -> bytes:
    """An archive of `torch.save` whose pickle is damaged, with checksums that fit."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(written, "w") as target:
        for name in archive.namelist():
            content = archive.read(name)
            target.writestr(name, mutated(content, number) if name.endswith("data.pkl") else content)
    return written.getvalue()


# --------------------------------------------------------------------------------------------- readers


def readers(folder: Path, bert: Path) -> dict[str, tuple[Path, Read]]:
    """{name: (a whole file, how it is read)}; each in a folder of its own, with all that goes with it."""
    tokens, transform = Tokens(str(bert), 8), Transform(["img_center_crop"], 32)
    made: dict[str, tuple[Path, Read]] = {}

    def add(name: str, make: Callable[[Path], Path], read: Read) -> None:
        (folder / name.replace(" ", "_")).mkdir(parents=True)
        made[name] = make(folder / name.replace(" ", "_")), read

    def corpus(path: Path) -> None:
        found = PretrainCorpus(next(path.parent.glob("*.yaml")), "clips", tokens, transform, 2)
        for index in range(min(3, len(found))):
            found.read(index, None)

    def videos(path: Path) -> None:
        found = Videos(path.parent / "img_clips.tsv")
        for name in list(found.rows)[:3]:
            read_clip(found[name], 2, transform, None, path.parent)

    def linked(path: Path) -> None:
        read_clip([b"clip", os.fsencode(path.name)], 2, transform, None, path.parent)

    add("annotations", write_annotation, Annotation.read)
    add("config", write_config, lambda path: load_config("pretrain", ["--config", str(path)]))
    add("YAML", lambda f: write_corpus(f, "clips", 3, 2), corpus)
    add("linelist", lambda f: write_corpus(f, "clips", 3, 2).with_suffix(".linelist.tsv"), corpus)
    add("captions", lambda f: write_corpus(f, "clips", 3, 2).with_suffix(".caption.tsv"), corpus)
    add(
        "lineidx",
        write_lineidx_of_rows,
        lambda path: list(map(Tsv(path.with_suffix(".tsv")).__getitem__, [0, 1])),
    )
    add("rows", lambda f: write_videos(f, rows=3, frames=3), videos)
    add("id2lineidx", write_id2lineidx, videos)
    add("zip checkpoint", lambda f: write_checkpoint(f / "a.pt"), read_tensors)
    add("zip pickle", lambda f: write_checkpoint(f / "b.pt"), read_tensors)
    add("old checkpoint", lambda f: write_checkpoint(f / "c.pt", zipped=False), read_tensors)
    add("safetensors", write_safetensors, read_tensors)
    add("encoder.pkl", write_encoder, load_dalle)
    add("training state", write_state, resume)
    add("BERT config", write_bert_config, lambda path: bert_config(str(path.parent)))
    add("mp4", lambda f: named(f / "a.mp4", write_video), linked)
    add("gif", lambda f: named(f / "a.gif", lambda path: write_video(path, 6, "gif", "pal8")), linked)
    add("jpeg", lambda f: named(f / "a.jpg", write_image), linked)
    add("png", lambda f: named(f / "a.png", write_image), linked)
    return made


def named(path: Path, write: Callable[[Path], Any]) -> Path:
    write(path)
    return path


def write_annotation(folder: Path) -> Path:
    item = {"video": "clip0", "question": "what is red ?", "answer": 0, "answer_text": "star"}
    content = {"train": [item] * 3, "test": [item], "ans2label": {"star": 0, "circle": 1}}
    (folder / "txt_a.json").write_text(json.dumps(content))
    return folder / "txt_a.json"


def write_config(folder: Path) -> Path:
    (folder / "a.json").write_text(Path("_args/args_pretrain.json").read_text())
    return folder / "a.json"


def write_lineidx_of_rows(folder: Path) -> Path:
    (folder / "a.tsv").write_bytes(b"one\t1\ntwo\t2\nlast\t3\n")
    lineidx_path(folder / "a.tsv").write_text("0\n6\n12\n")
    return lineidx_path(folder / "a.tsv")


def write_id2lineidx(folder: Path) -> Path:
    rows = write_videos(folder, rows=3, frames=3)
    id2lineidx_path(rows).write_bytes(pickle.dumps(collections.defaultdict(int, find_ids(rows))))
    return id2lineidx_path(rows)


def write_checkpoint(path: Path, zipped: bool = True) -> Path:
    state = {f"layer.{i}.weight": torch.randn(3, 4) for i in range(4)} | {"count": torch.tensor(3)}
    content = {"model": state, "epoch": 3, "args": {"lr": 0.1, "names": ["a", "b"]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def write_safetensors(folder: Path) -> Path:
    save_file({f"w{i}": torch.randn(5) for i in range(4)}, folder / "a.safetensors")
    return folder / "a.safetensors"


class Blocks(torch.nn.Module):
    """Stands in for dall_e.encoder.Encoder: pickled by its name."""


def write_encoder(folder: Path) -> Path:
    encoder = Blocks()
    encoder.blocks = DalleEncoder(8, 16, 1).blocks
    torch.save(encoder, folder / "encoder.pkl")
    return folder / "encoder.pkl"


def small() -> tuple[torch.nn.Module, torch.optim.AdamW]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [*model.parameters()], "peak": 1e-3}], lr=1e-3, fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def write_state(folder: Path) -> Path:
    model, optimizer = small()
    progress = {name: kind() for name, kind in PROGRESS.items()}
    recorded = {"names": [], "window": [], "rates": {"lr": 0.1}, "sizes": {"metrics.jsonl": 3}}
    states = [random_states(torch.device("cpu"))]
    parts = {"scaler": {}, "random": states, "progress": progress, "recorder": recorded, "config": {"lr": 1}}
    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    torch.save(state | parts, folder / STATE)
    return folder / STATE


def resume(path: Path) -> None:
    """As `Agent.restore` does, and one step after it."""
    state = read_state(path.parent, World(torch.device("cpu")))
    model, optimizer = small()
    with reading(path, "the state of this run"):
        load_model(model, state["model"])
        load_optimizer(optimizer, state["optimizer"])
        load_random_states(state["random"][0], torch.device("cpu"))
    optimizer.step()


def write_bert_config(folder: Path) -> Path:
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "bert", "intermediate_size": 64}))
    return folder / "config.json"


# ------------------------------------------------------------------------------------------- the test


def late(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def peak() -> int:
    """The most memory of this process, in bytes."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def tried(path: Path, read: Read, mutate: Callable[[bytes, int], bytes], cases: int) -> dict[str, Any]:
    """What became of the mutations of a file, in the words of the figures."""
    whole, others = path.read_bytes(), set(path.parent.iterdir())
    figures: dict[str, Any] = dict.fromkeys(("tried", "clear", "read", "hangs", "peak"), 0)
    figures |= {"tracebacks": [], "slowest": 0.0}
    signal.signal(signal.SIGALRM, late)
    for number in range(cases):
        path.write_bytes(mutate(whole, number))
        Path("/proc/self/clear_refs").write_text("5")
        before, start = peak(), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            read(path)
            figures["read"] += 1
        except (UserError, BadRow) as error:
            figures["clear"] += 1
            if "weights_only" in str(error) or not str(error).strip():
                figures["tracebacks"].append(f"case {number}: {error}")
        except TimeoutError:
            pass
        except BaseException:
            figures["tracebacks"].append(f"case {number}: {traceback.format_exc()[-1500:]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        figures["tried"] += 1
        figures["hangs"] += time.monotonic() - start >= SECONDS  # a reader may have taken it for damage
        figures["slowest"] = max(figures["slowest"], time.monotonic() - start)
        figures["peak"] = max(figures["peak"], peak() - before)
        for left in set(path.parent.iterdir()) - others:  # an index that was built of this file
            left.unlink()
    return figures


def try_all(folder: Path, bert: Path, answer: Path) -> None:
    """In a process of its own, which may not take much more memory: the figures of every reader, as JSON."""
    made, figures = readers(folder, bert), {}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for name, (path, read) in made.items():
        mutate = rezipped if name in ("zip pickle", "encoder.pkl", "training state") else mutated
        whole = path.read_bytes()
        read(path)  # which it can be
        path.write_bytes(whole)
        figures[name] = tried(path, read, mutate, CASES)
        answer.write_text(json.dumps(figures))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_every_damaged_file_ends_in_one_line_or_is_read(tmp_path, bert_folder, capsys):
    answer = tmp_path / "figures.json"
    # a fork would wait for locks of threads that it does not have
    child = multiprocessing.get_context("spawn").Process(
        target=try_all, args=(tmp_path / "files", bert_folder, answer)
    )
    child.start()
    child.join(120)
    child.kill()
    child.join()
    figures = json.loads(answer.read_text())
    rows, failed = [f"{'':16}tried clear  read tracebacks hangs  slowest  memory"], []
    for name, found in figures.items():
        rows.append(
            f"{name:16}{found['tried']:5} {found['clear']:5} {found['read']:5} {len(found['tracebacks']):10} "
            f"{found['hangs']:5} {found['slowest']:7.2f}s {found['peak'] >> 20:4} MiB"
        )
        failed += [f"{name}, {line}" for line in found["tracebacks"]] + [name] * found["hangs"]
    with capsys.disabled():
        print("\n" + "\n".join(rows))
    assert not failed, "\n".join(failed)
    assert child.exitcode == 0 and len(figures) == 19
