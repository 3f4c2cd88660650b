"""README and docs: their commands and links, and distributed lines run as they are printed, in miniature."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

import mvm_targets
from engine.arguments import load_config
from engine.runs import FINISHED, STATE
from lib import KEYS
from tests.conftest import WORDS, tiny_bert, write_corpus
from tests.engine.test_resume import values
from tests.test_agent import free_port
from video_swin import SIZES, VideoSwin

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "_data/README.md",
    ROOT / "_snapshot/README.md",
]
SECTION = (ROOT / "docs/long_runs.md").read_text().split("\n## ")[0]
SLURM = {  # what of it the job's script calls, for two machines with a task each
    "sbatch": """
        while [[ $1 == --* ]]; do [[ $1 == --nodes=* ]] && nodes=${1#*=}; shift; done
        export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=here SLURM_JOB_NUM_NODES=$nodes SLURM_NTASKS=$nodes
        exec bash "$@"
        """,
    "scontrol": """
        if [[ $1 == show ]]; then echo localhost; else echo "$@" >> scontrol.txt; fi
        """,
    "srun": """
        for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
            SLURM_PROCID=$rank SLURM_LOCALID=0 "$@" & tasks+=($!)
        done
        for ((tenth = 0; tenth < 600; tenth++)); do
            compgen -G "_snapshot/demo/_*/last.pt" > /dev/null && break
            sleep 0.1
        done
        kill -USR1 "${tasks[@]}"
        for task in "${tasks[@]}"; do wait "$task"; code=$?; ((code > largest)) && largest=$code; done
        exit "$largest"
        """,
}


def blocks(text: str) -> list[list[str]]:
    """The command lines of a text, block by block; one that goes on in the background with the next."""
    found = re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    return [re.sub(r"&\n\s*", "& ", block).strip().replace("\n    ", "\n").split("\n") for block in found]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The project, with data and weights of the demo that take no time to make and to train on."""
    for path in ROOT.iterdir():
        if path.suffix == ".py" or path.name in ("_args", "_tools"):
            (tmp_path / path.name).symlink_to(path)
    data, weights = tmp_path / "_data/demo", tmp_path / "_snapshot/demo"
    (data / "bert").mkdir(parents=True)
    weights.mkdir(parents=True)
    for split, rows in {"train": 8, "val": 3}.items():
        write_corpus(data, split, rows)
    (data / "bert/vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(data / "bert/vocab.txt")).save_pretrained(data / "bert")
    tiny_bert(5 + len(WORDS)).save_pretrained(data / "bert")
    state = {f"backbone.{name}": tensor for name, tensor in VideoSwin(SIZES["demo"]).state_dict().items()}
    torch.save({"state_dict": state}, weights / "swin_demo.pth")
    return tmp_path


def start(command: str, checkout: Path) -> subprocess.Popen[str]:
    """A command as printed, but for the port, which others may have taken."""
    path = f"{checkout / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", command.replace("5566", str(free_port())) + "; code=$?; wait; exit $code"],
        cwd=checkout,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(running: subprocess.Popen[str]) -> str:
    """All that a command prints until no process of it is left; raises an error with it after 100 seconds."""
    try:
        return running.communicate(timeout=100)[0]
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"not ended; it has printed\n{(late.output or b'').decode()[-3000:]}") from late


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in found.split()]


def kill_a_worker(launcher: subprocess.Popen[str], checkout: Path) -> None:
    """SIGKILL of the second worker of torchrun once there is a state to resume."""
    until = time.monotonic() + 60
    while not any(checkout.glob(f"_snapshot/demo/*/{STATE}")) and time.monotonic() < until:
        time.sleep(0.05)
    workers = children(launcher.pid)
    while len(workers) < 2:  # below the shell
        workers = children(workers[0])
    os.kill(workers[1], signal.SIGKILL)


def test_the_lines_for_a_laptop_run_as_printed_and_one_survives_a_kill(checkout):
    commands, found = blocks(SECTION)[0], []
    assert [len(re.findall(r"\S+\.py ", command)) for command in commands] == [1, 1, 1, 2]
    for command in commands:
        running = start(command, checkout)
        if killed := command.startswith("torchrun --nproc_per_node=2 --max-restarts"):
            kill_a_worker(running, checkout)
        output = output_of(running)
        assert running.returncode == 0, f"{command}\n{output[-3000:]}"
        (folder,) = checkout.glob("_snapshot/demo/_*")
        assert (folder / FINISHED).exists()
        assert ("resuming " in (folder / "log.txt").read_text()) == killed
        processes = len(torch.load(folder / STATE, weights_only=True)["random"])
        found.append((processes, values(folder)))
        folder.rename(checkout / f"run{len(found)}")
    assert [processes for processes, _ in found] == [1, 2, 2, 2]
    for _, rows in found[2:]:
        for row, wanted in zip(rows, found[1][1], strict=True):
            assert row == pytest.approx(wanted, rel=1e-6)


def test_a_job_of_slurm_that_is_preempted_saves_and_queues_itself_again(checkout):
    (command,) = [line for block in blocks(SECTION) for line in block if line.startswith("sbatch")]
    (checkout / "bin").mkdir()
    for name, script in SLURM.items():
        (checkout / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}")
        (checkout / "bin" / name).chmod(0o755)
    job = start(command.replace("args_pretrain", "demo-pretrain") + " --device cpu", checkout)
    output = output_of(job)
    assert job.returncode == 0, output[-3000:]
    assert (checkout / "scontrol.txt").read_text() == "requeue 7\n"
    (folder,) = checkout.glob("_snapshot/demo/_*")
    state = torch.load(folder / STATE, weights_only=True)
    assert len(state["random"]) == 2 and state["progress"]["step"] < state["progress"]["total"]
    assert not (folder / FINISHED).exists()


COMMANDS = sorted({command for page in PAGES for block in blocks(page.read_text()) for command in block})
STARTS = ("python ", "torchrun ", "sbatch ", "make ", "pip ")


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--config" in c])
def test_every_command_names_scripts_configs_and_keys_that_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    for part in command.split("&"):
        words = shlex.split(part)
        script = next(place for place, word in enumerate(words) if word.endswith(".py"))
        assert Path(words[script]).is_file()
        load_config(Path(words[script]).stem, words[script + 1 :])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(STARTS) and "--config" not in c])
def test_every_other_command_names_programs_files_and_options_that_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        assert re.search(rf"^{words[0]}:", Path("Makefile").read_text(), re.MULTILINE)
        return
    if program == "pip":
        assert Path(words[-1]).is_file()
        return
    module = words[words.index("-m") + 1] if "-m" in words else None
    source = Path(module.replace(".", "/") + ".py" if module else words[0]).read_text()
    for word in words:
        if word.startswith("--"):
            name = word[2:].split("=")[0]
            assert name in KEYS or f'"--{name}"' in source, word
        if word.startswith("_args/"):
            assert Path(word).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, target


def test_the_readme_is_short():
    assert len(README.split()) <= 1500


def test_the_target_of_the_readme_is_complete(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") <= 18
    monkeypatch.setattr(mvm_targets, "TARGETS", dict(mvm_targets.TARGETS))
    exec(code, vars(mvm_targets).copy())
    target = mvm_targets.make_targets(["edges"], 16)["edges"]
    ramp = torch.arange(32.0).expand(1, 2, 3, 32, 32)
    truth = target.truth(ramp)
    assert truth.shape == (1, 2, 1, 32, 32)
    torch.testing.assert_close(truth[..., 1:-1], torch.ones(1, 2, 1, 32, 30))
    assert target.loss(torch.randn(1, 2 * 2, 16), ramp, torch.ones(1, 2, 1, 1)).value > 0
