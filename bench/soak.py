"""Kill a run repeatedly, in steps, saves and evaluations, and compare it with an uninterrupted run.

    python -m bench.soak
    python -m bench.soak --processes 2 --kills 20

A tiny pre-training on a corpus of the tests, `--resume auto` after every SIGKILL. Prints how often which
moment was hit, and the largest difference of any logged loss, score or evaluation figure: 0 on one process.
"""

import argparse
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.context import ForkProcess as Process
from pathlib import Path

from tqdm import tqdm
from transformers import BertTokenizerFast

import main_pretrain_yaml
from lib import run_script
from tests.conftest import WORDS, demo_network, tiny_bert, write_corpus

ROOT = Path(__file__).resolve().parents[1]
CLOCK = ("samples_per_second", "data_wait", "memory_gib", "teacher_seconds")
MOMENTS = ("step", "save", "evaluation")


def make_config(folder: Path, epochs: int) -> Path:
    """A config of a tiny run and all that it reads."""
    bert = folder / "bert"
    bert.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (bert / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(bert / "vocab.txt")).save_pretrained(bert)
    tiny_bert(len(vocabulary), dropout=0.1).save_pretrained(bert)
    corpora = {
        "clips": str(write_corpus(folder, "clips", 15)),
        "cc3m": str(write_corpus(folder, "cc3m", 15, image=True)),
    }
    values = {
        "train_yaml": corpora,
        "val_yaml": corpora,
        **demo_network(bert),
        "size_img": 64,
        "size_frame": 2,
        "size_txt": 10,
        "size_batch": 2,
        "size_epoch": epochs,
        "mvm_target": ["pixel", "hog"],
        "lr": 1e-3,
        "n_workers": 1,
        "logging_steps": 3,
        "save_minutes": 0.005,
        "device": "cpu",
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


def live(config: Path, output: Path, log: Path, place: dict[str, str]) -> None:
    """A life of the run, of one process, which begins with all that this program has imported."""
    os.chdir(ROOT)
    os.environ.update(place)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    tqdm.set_lock(threading.RLock())  # forked processes share tqdm's own: a killed one would keep it for ever
    sys.argv = ["main_pretrain_yaml.py", "--config", str(config), "--resume", "auto"]
    sys.argv += ["--path_output", str(output)]
    main_pretrain_yaml.main()


def start(config: Path, output: Path, processes: int) -> list[Process]:
    """One life of the run, all its processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    lives = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = output.parent / f"{output.name}_{rank}.txt"
        lives.append(get_context("fork").Process(target=live, args=(config, output, log, place)))
        lives[-1].start()
    return lives


def ended(lives: list[Process]) -> list[int | None]:
    """The exit codes of all processes of a life."""
    for life in lives:
        life.join()
    return [life.exitcode for life in lives]


def rows(output: Path, file: str) -> list[dict[str, float]]:
    """The whole lines of a file of the only run there."""
    (folder,) = output.glob("_*")
    path = folder / file
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def reached(output: Path, moment: str, steps: int) -> bool:
    """Whether the run is at that moment, as its files tell."""
    if moment == "save":
        return any(output.glob("_*/.last.pt.*"))
    if not any(output.glob("_*")):
        return False
    done = [row["step"] for row in rows(output, "metrics.jsonl")]
    evaluated = [row["step"] for row in rows(output, "eval.jsonl")]
    at_end = bool(done) and done[-1] % steps == 0 and done[-1] not in evaluated
    return at_end if moment == "evaluation" else not at_end


def kill(output: Path, lives: list[Process], moment: str, steps: int, after: float) -> str:
    """Wait for the moment, in training and after so many steps of the run; SIGKILL; returns what was hit."""
    size = len(read_log(output))
    while lives[0].is_alive() and (b"state:" not in read_log(output)[size:] or last_step(output) < after):
        time.sleep(0.05)
    time.sleep(random.uniform(0, 0.6))
    until = time.monotonic() + 20
    while lives[0].is_alive() and not reached(output, moment, steps) and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05) if moment != "save" else 0)
    if not lives[0].is_alive():
        return "ended"
    evaluating = reached(output, "evaluation", steps)
    for life in lives:
        life.kill()
    ended(lives)
    if any(output.glob("_*/.last.pt.*")):
        return "save"
    return "evaluation" if evaluating else "step"


def read_log(output: Path) -> bytes:
    """The log of the only run there; empty before there is one."""
    return b"".join(path.read_bytes() for path in output.glob("_*/log.txt"))


def last_step(output: Path) -> float:
    """The last step that the run has logged; 0 before."""
    found = rows(output, "metrics.jsonl") if any(output.glob("_*")) else []
    return found[-1]["step"] if found else 0


def difference(straight: Path, pieces: Path, file: str) -> float:
    """The largest difference of a figure that is no clock's; the rows must be the same ones."""
    largest = 0.0
    for one, other in zip(rows(straight, file), rows(pieces, file), strict=True):
        assert one.keys() - set(CLOCK) == other.keys() - set(CLOCK)
        assert one["step"] == other["step"]
        largest = max([largest, *(abs(one[name] - other[name]) for name in one if name not in CLOCK)])
    return largest


def main() -> None:
    """Run, kill, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--epochs", type=int, default=0, help="epochs of the run (default: enough for the kills)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = make_config(folder, options.epochs or 3 * options.kills)
        straight, pieces = folder / "straight", folder / "pieces"
        for path in (straight, pieces):
            path.mkdir()
        began = time.monotonic()
        codes = ended(start(config, straight, options.processes))
        assert codes == [0] * options.processes, (folder / "straight_0.txt").read_text()[-3000:]
        seconds = time.monotonic() - began
        steps, last = int(rows(straight, "eval.jsonl")[0]["step"]), last_step(straight)
        hit: Counter[str] = Counter()
        while hit.total() < options.kills:
            wanted = MOMENTS[hit.total() % len(MOMENTS)]
            after = last * (hit.total() + random.random()) / (options.kills + 1)
            lives = start(config, pieces, options.processes)
            hit[kill(pieces, lives, wanted, steps, after)] += 1
            if hit["ended"]:
                break
        codes = [] if hit["ended"] else ended(start(config, pieces, options.processes))
        assert not any(codes), (folder / "pieces_0.txt").read_text()[-3000:]
        largest = {file: difference(straight, pieces, file) for file in ("metrics.jsonl", "eval.jsonl")}
        found = ", ".join(
            f"{number} in {'a ' if m != 'evaluation' else 'an '}{m}" for m, number in hit.items()
        )
        print(
            f"{options.processes} process(es), {last:.0f} steps ({seconds:.0f} s in one piece), "
            f"{hit.total()} SIGKILLs: {found}; largest difference of a logged figure {largest}"
        )


if __name__ == "__main__":
    run_script(main)
