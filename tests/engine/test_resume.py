"""Stopped, killed, out of disk: what a run goes on with, and that it goes on as if nothing had been."""

import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import agent as engine
import dataset
import main_pretrain_yaml as script
from agent import Agent
from batch import Mean, Output
from dataset import Loader, Mixture
from engine import resume, runs
from engine.processes import distributed
from engine.runs import BEFORE, FINISHED, STATE, hold, open_run
from engine.signals import Stop, leave_signals
from lib import Config, UserError, World, log
from media.batches import Batches
from tests.test_agent import free_port, lines, tiny_config

ALONE = World(torch.device("cpu"))


def start(arguments: list[str], sabotage=lambda: None, rank: int = 0, port: int = 0) -> int:
    """Run the script in a process of its own, which begins with all that this one has imported."""
    child = os.fork()
    if child:
        return child
    code = 1
    tqdm.set_lock(threading.RLock())  # forked processes share tqdm's own: a killed one would keep it for ever
    try:
        if port:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        sys.argv = ["main_pretrain_yaml.py", *arguments]
        sabotage()
        script.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Exit code of a child, or the signal that killed it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(arguments: list[str], sabotage=lambda: None, processes: int = 1) -> list[int]:
    port = free_port() if processes > 1 else 0
    return [ended(child) for child in [start(arguments, sabotage, rank, port) for rank in range(processes)]]


def at_call(module, name: str, call: int, act) -> None:
    """Have the call number `call` of a function do `act(original, *arguments)` instead."""
    original, calls = getattr(module, name), iter(range(1, 10**6))

    def counted(*arguments, **named):
        if next(calls) == call:
            return act(original, *arguments, **named)
        return original(*arguments, **named)

    setattr(module, name, counted)


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(original, content, path) -> None:
    original(content, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


def values(folder: Path) -> list[dict]:
    """The logged figures, but for those of the clock."""
    clock = {"samples_per_second", "data_wait", "memory_gib", "teacher_seconds"}
    return [{k: v for k, v in row.items() if k not in clock} for row in lines(folder / "metrics.jsonl")]


def on_board(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard shows of a run."""
    board = EventAccumulator(str(folder)).Reload()
    return {(tag, e.step): e.value for tag in board.Tags()["scalars"] for e in board.Scalars(tag)}


def in_files(folder: Path) -> dict[tuple[str, int], float]:
    """The same, as its files of figures have it."""
    rows = [("train", row) for row in lines(folder / "metrics.jsonl")]
    rows += (
        [("eval", row) for row in lines(folder / "eval.jsonl")] if (folder / "eval.jsonl").exists() else []
    )
    return {
        (f"{group}/{name}", row["step"]): pytest.approx(value, rel=1e-6)
        for group, row in rows
        for name, value in row.items()
        if name not in ("step", "epoch")
    }


def folders(arguments: list[str]) -> list[Path]:
    return sorted(Path(json.loads(Path(arguments[1]).read_text())["path_output"]).glob("_*"))


KILLS = {
    "in a step": lambda: at_call(Agent, "prepared", 6, die),
    "in a save": lambda: at_call(engine, "write_tensors", 5, half_a_file),
    "between a step and its save": lambda: at_call(Agent, "save_or_stop", 2, die),
    "in an evaluation": lambda: at_call(Agent, "evaluate", 1, lambda *a: (a[1].saver.wait(), die())),
    "after an evaluation": lambda: at_call(Agent, "save", 1, die),
}


def killed_and_resumed(arguments: list[str], processes: int) -> tuple[Path, Path]:
    """The folders of a run in one piece, and of one that was killed at each of the moments of `KILLS`."""
    arguments = [*arguments, "--size_epoch", "3", "--logging_steps", "3", "--save_minutes", "0"]
    arguments += ["--pretrain_masks", '["am", "bm"]']
    assert run(arguments, processes=processes) == [0] * processes
    (straight,) = folders(arguments)
    # as if it had been made by another task: the runs of this one are looked through for unfinished ones
    straight = straight.rename(straight.parent / "straight")
    for sabotage in KILLS.values():
        codes = run([*arguments, "--resume", "auto"], sabotage, processes)
        assert codes[0] == -signal.SIGKILL
    assert run([*arguments, "--resume", "auto"], processes=processes) == [0] * processes
    (pieces,) = folders(arguments)
    assert (pieces / "log.txt").read_text().count("resuming ") == len(KILLS)
    return straight, pieces


def test_killed_at_any_moment_a_run_goes_on_bit_for_bit(arguments):
    straight, pieces = killed_and_resumed(arguments, processes=1)
    assert values(pieces) == values(straight)
    assert [row["step"] for row in values(pieces)] == [3, 4, 6, 8, 9, 12]
    assert lines(pieces / "eval.jsonl") == lines(straight / "eval.jsonl")
    for name in [f"ckpt_violet_pretrain_{epoch}.pt" for epoch in (1, 2, 3)]:
        one, other = (torch.load(folder / name, weights_only=True) for folder in (straight, pieces))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert on_board(pieces) == in_files(pieces)
    names = [{p.name for p in folder.iterdir() if "events" not in p.name} for folder in (straight, pieces)]
    assert names[0] == names[1]  # no half-written file is left


def test_the_average_that_latent_learns_from_goes_on_bit_for_bit(arguments, monkeypatch):
    moment = "between a step and its save"
    monkeypatch.setattr(sys.modules[__name__], "KILLS", {moment: KILLS[moment]})
    arguments = [*arguments, "--mvm_target", '["latent", "clip_visible"]', "--teacher_init", "random"]
    straight, pieces = killed_and_resumed(arguments, processes=1)
    assert values(pieces) == values(straight)
    one, other = (torch.load(f / STATE, weights_only=True)["followers"] for f in (straight, pieces))
    assert one.keys() == other.keys() == {"latent", "running"}
    for name, tensors in one.items():
        assert all(torch.equal(tensor, other[name][key]) for key, tensor in tensors.items()), name
    checkpoint = torch.load(straight / "ckpt_violet_pretrain_3.pt", weights_only=True)
    encoder = {name.removeprefix("enc_img.swin."): tensor for name, tensor in checkpoint.items()}
    apart = {name: not torch.equal(tensor, encoder[name]) for name, tensor in one["latent"].items()}
    assert any(apart.values()) and len(checkpoint) == len(encoder)  # it is no copy, and in no checkpoint


def test_killed_on_two_processes_a_run_goes_on_with_the_same_losses(arguments, monkeypatch):
    moments = ("in a step", "in an evaluation")
    monkeypatch.setattr(sys.modules[__name__], "KILLS", {moment: KILLS[moment] for moment in moments})
    straight, pieces = killed_and_resumed(arguments, processes=2)
    rows = zip(values(pieces), values(straight), strict=True)
    for row, wanted in rows:
        assert row == pytest.approx(wanted, rel=1e-6)
    evaluations = [lines(folder / "eval.jsonl")[-1] for folder in (straight, pieces)]
    assert evaluations[1] == pytest.approx(evaluations[0], rel=1e-6)


# -- asked to stop


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_continues_on_another_number_of_processes(arguments, before, after):
    given = [*arguments, "--size_epoch", "2", "--save_minutes", "0", "--resume", "auto"]
    steps = {1: 8, 2: 4}  # of the whole run
    codes = run(given, lambda: at_call(Agent, "prepared", 3, die), before)
    assert codes[0] == -signal.SIGKILL
    (folder,) = folders(arguments)
    saved = torch.load(folder / STATE, weights_only=True)["progress"]["step"]
    assert run(given, processes=after) == [0] * after
    assert folders(arguments) == [folder]
    rows = values(folder)
    done = saved * steps[after] // steps[before]  # the same share of the schedule
    expected = [*range(1, saved + 1), *range(done + 1, steps[after] + 1)]
    assert [row["step"] for row in rows] == expected
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert "not bit-equal" in (folder / "log.txt").read_text()
    assert (folder / FINISHED).exists()


def ask(number: int, times: int = 1):
    """Have the process send itself a signal in the middle of its second step."""

    def send(original, *arguments, **named):
        for _ in range(times):
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    return lambda: at_call(Agent, "prepared", 2, send)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=str)
def test_a_signal_ends_the_step_and_saves(arguments, number):
    given = [
        *arguments,
        "--max_steps",
        "4",
        "--logging_steps",
        "4",
        "--resume",
        "auto",
        "--requeue_code",
        "85",
    ]
    assert run(given, ask(number)) == [85]
    (folder,) = folders(arguments)
    assert not (folder / "metrics.jsonl").exists()
    assert torch.load(folder / STATE, weights_only=True)["progress"]["step"] == 2
    assert run(given) == [0]
    assert folders(arguments) == [folder]
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [4]
    assert (folder / FINISHED).exists()
    run([*given, "--size_epoch", "1"])  # a run that is finished is not gone on with
    assert len(folders(arguments)) == 2


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(arguments):
    given = [*arguments, "--max_steps", "4", "--save_minutes", "0"]  # they agree after every step
    port = free_port()
    children = [
        start(given, sabotage, rank, port) for rank, sabotage in enumerate([dict, ask(signal.SIGUSR1)])
    ]
    assert [ended(child) for child in children] == [0, 0]
    (folder,) = folders(arguments)
    assert torch.load(folder / STATE, weights_only=True)["progress"]["step"] == 2


def test_a_signal_ends_an_evaluation_whose_training_is_saved(arguments):
    def stop(original, agent, *rest):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(agent, *rest)

    given = [*arguments, "--size_epoch", "1", "--resume", "auto"]
    assert run(given, lambda: at_call(Agent, "evaluate", 1, stop)) == [0]
    (folder,) = folders(arguments)
    assert not (folder / "eval.jsonl").exists() and not (folder / FINISHED).exists()
    assert run(given) == [0]
    assert len(lines(folder / "eval.jsonl")) == 1
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("step", [2, 4])  # the last of the epoch's first part, and of the run
def test_a_stop_at_the_last_step_of_a_part_loses_no_evaluation(arguments, step):
    given = [
        *arguments,
        "--size_epoch",
        "1",
        "--size_part",
        "2",
        "--resume",
        "auto",
        "--pretrain_tasks",
        "mlm",
    ]

    def send(original, *rest, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*rest, **named)

    assert run(given, lambda: at_call(Agent, "prepared", step, send)) == [0]
    (folder,) = folders(arguments)
    assert torch.load(folder / STATE, weights_only=True)["progress"]["step"] == step
    assert run(given) == [0]
    assert [row["step"] for row in lines(folder / "eval.jsonl")] == [2, 4]
    names = sorted(path.name for path in folder.glob("ckpt_*"))
    assert names == ["ckpt_violet_pretrain_1.pt", "ckpt_violet_pretrain_1_1.pt"]


def be_worker(reader: int, writer: int) -> None:
    leave_signals()
    os.write(writer, b"ready")
    threading.Event().wait(20)
    os._exit(1)


def test_a_loader_worker_ends_for_its_parent_alone():
    reader, writer = os.pipe()
    worker = multiprocessing.get_context("fork").Process(target=be_worker, args=(reader, writer))
    worker.start()
    os.read(reader, 5)
    if not (stranger := os.fork()):  # as torchrun or a scheduler, which signals all processes of a job
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
        os._exit(0)
    assert ended(stranger) == 0
    worker.join(2)
    assert worker.is_alive()
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0


class Stuck(Dataset):
    """A corpus of which nothing can be read, at once or ever."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        print(os.getpid(), flush=True)
        time.sleep(30)
        return index


def be_killed(when: str) -> None:
    """A training process that is killed while its worker, which prints its number, is starting or stuck."""

    def begin(number: int) -> None:
        if when == "starting":
            print(os.getpid(), flush=True)
            time.sleep(1)
        leave_signals(number)

    loader = DataLoader(Stuck(), num_workers=1, worker_init_fn=begin, multiprocessing_context="fork")
    _running = iter(loader)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("when", ["starting", "stuck"])
def test_a_loader_worker_ends_when_its_parent_is_killed(when):
    script = f"from tests.engine.test_resume import be_killed; be_killed({when!r})"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout and int(parent.stdout.readline())
    assert parent.wait() == -signal.SIGKILL
    assert parent.communicate(timeout=10) == ("", None)  # no worker keeps its end of the output open


def test_a_second_ctrl_c_stops_at_once_but_one_that_came_twice_does_not(monkeypatch):
    stop, times = Stop(), iter([100.0, 100.2, 103.0])
    monkeypatch.setattr("engine.signals.time.monotonic", lambda: next(times))
    for _ in range(2):  # from the terminal and from torchrun
        stop.receive(signal.SIGINT, None)
    assert stop.asked
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT, None)


def test_a_worker_whose_torchrun_has_ended_stops_too(monkeypatch):
    parents = iter([7, 7, 1, 1])
    monkeypatch.setattr("engine.signals.os.getppid", lambda: next(parents))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop = Stop()
    assert [stop.asked, stop.asked, stop.asked] == [False, True, True]
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # any other parent may end, as a shell does after nohup
    monkeypatch.setattr("engine.signals.os.getppid", iter([7, 1]).__next__)
    assert not Stop().asked


# -- which run is gone on with


def unfinished(folder: Path, stamp: str, **values: object) -> Path:
    """A run's folder as `auto` looks at it."""
    run = folder / f"_tiny_{stamp}"
    run.mkdir(parents=True)
    (run / "args.json").write_text(tiny_config(folder, **values).to_json())
    (run / STATE).write_bytes(b"")
    return run


def test_auto_takes_the_newest_unfinished_run_of_its_task_and_config(tmp_path):
    wanted = [unfinished(tmp_path, stamp, n_workers=int(stamp)) for stamp in ("1", "2")]
    (unfinished(tmp_path, "5") / FINISHED).write_text("{}")
    unfinished(tmp_path, "4", lr=2e-3)
    (unfinished(tmp_path, "6") / STATE).unlink()
    (tmp_path / "_tiny_other_7").mkdir()
    config = tiny_config(tmp_path, resume="auto")
    found = open_run(config, ALONE)
    assert (found.folder, found.resumed) == (wanted[1], True)
    busy = os.fork()
    if not busy:  # another process takes the lock only after this one has let it go
        os._exit(hold(wanted[1]) is not None)
    assert ended(busy) == 0
    found.lock.close()
    with pytest.raises(UserError, match=r"no last\.pt"):
        open_run(tiny_config(tmp_path, resume=str(tmp_path)), ALONE)
    assert open_run(tiny_config(tmp_path, resume=str(wanted[0] / STATE)), ALONE).folder == wanted[0]
    assert not open_run(tiny_config(tmp_path / "none", resume="auto"), ALONE).resumed


def test_processes_that_torchrun_starts_again_go_on(tmp_path, monkeypatch):
    wanted = unfinished(tmp_path, "1")
    assert not open_run(tiny_config(tmp_path), ALONE).resumed
    monkeypatch.setattr(World, "most", lambda self, count: max(count, 1))  # another machine's have died
    found = open_run(tiny_config(tmp_path), ALONE)
    assert found.folder == wanted
    found.lock.close()
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert open_run(tiny_config(tmp_path), ALONE).folder == wanted


def test_what_was_logged_before_there_was_a_folder_is_in_the_log_of_the_run(arguments):
    def talk(original, *arguments, **named):
        log.info("12 rows")
        return original(*arguments, **named)

    assert run([*arguments, "--max_steps", "1"], lambda: at_call(dataset, "pretrain_loader", 1, talk)) == [0]
    (folder,) = folders(arguments)
    assert "INFO 12 rows" in (folder / "log.txt").read_text()


# -- what is on the disk


class Line(nn.Module):
    """y = w x, for runs that take no time."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, batch):
        return Output(losses={"error": Mean((batch["x"] @ self.w - 3).square().sum(), torch.tensor(1.0))})


class Numbers:
    """What the agent asks of a loader: `length` batches that follow from epoch and place."""

    def __init__(self, length=4, spoilt=-1):
        self.length, self.spoilt = length, spoilt
        self.batches = type("Batches", (), {"sizes": {"numbers": length}})

    def __len__(self):
        return self.length

    def epoch(self, epoch, skip=0):
        for place in range(skip, self.length):
            x = torch.full((1, 3), 0.1 * place + epoch)
            if place == self.spoilt:
                x[0, 1] = torch.nan
            index = torch.tensor([place])
            yield {"x": x, "id": [f"n{place}"], "corpus": ["numbers"], "index": index}


def line_agent(folder: Path, **values: object) -> Agent:
    return Agent(tiny_config(folder, size_epoch=2, **values), ALONE, Line())


def fit(folder: Path, train=None, **values: object) -> Agent:
    agent = line_agent(folder, **values)
    agent.fit(train or Numbers(), None)
    return agent


def test_a_damaged_state_is_noticed_and_the_one_before_used(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(runs, "FINISHED", "unmarked")
    folder = fit(tmp_path, save_minutes=0).folder
    whole = (folder / STATE).read_bytes()
    reference = torch.load(folder / STATE, weights_only=True)
    (folder / BEFORE).write_bytes(whole)
    weight = reference["model"]["w"].numpy().tobytes()
    assert whole.count(weight) >= 1
    flipped = whole.replace(weight, bytes([weight[0] ^ 1]) + weight[1:])
    for damaged in (flipped, whole[: len(whole) // 2], b""):
        (folder / STATE).write_bytes(damaged)
        assert resume.damage(folder / STATE)
        monkeypatch.setattr(resume.log, "propagate", True)
        caplog.clear()
        state = resume.read_state(folder, ALONE)
        assert "the previous state is used" in caplog.text
        assert torch.equal(state["model"]["w"], reference["model"]["w"])
    (folder / BEFORE).write_bytes(b"")
    with pytest.raises(UserError, match="no complete training state"):
        resume.read_state(folder, ALONE)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bit_that_flips_anywhere_is_noticed_or_does_no_harm(tmp_path):
    """Also in the archive's own tables, which have no checksum."""
    state = {"model": {"w": torch.randn(9)}, "progress": {"step": 3}}
    resume.write_tensors(state, tmp_path / STATE)
    whole, noticed = (tmp_path / STATE).read_bytes(), 0
    for place in range(0, len(whole), 5):
        (tmp_path / STATE).write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        if resume.damage(tmp_path / STATE):
            noticed += 1
            continue
        found = resume.load_data(tmp_path / STATE)
        assert torch.equal(found["model"]["w"], state["model"]["w"]) and found["progress"] == {"step": 3}
    assert noticed > 100


def no_space(original, content, path):
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_reported_the_run_goes_on_and_the_older_state_is_whole(tmp_path, monkeypatch, capfd):
    states: list[int] = []

    def write(content, path):
        if "progress" in content:
            states.append(content["progress"]["step"])
            if 2 <= states[-1] <= 3:
                no_space(None, content, path)
        resume.write_tensors(content, path)

    monkeypatch.setattr(engine, "write_tensors", write)
    agent = line_agent(tmp_path, save_minutes=0)
    seen = {}
    original = Agent.save_or_stop

    def look(self):
        original(self)
        self.saver.wait()
        seen[self.step] = torch.load(self.folder / STATE, weights_only=True)["progress"]["step"]

    monkeypatch.setattr(Agent, "save_or_stop", look)
    agent.fit(Numbers(), None)
    assert seen == {1: 1, 2: 1, 3: 1, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8}
    assert "could not be written (No space left on device): the run continues" in capfd.readouterr().err
    assert (agent.folder / FINISHED).exists()  # what failed has been written since
    assert not list(agent.folder.glob(".*"))


def test_a_run_whose_last_weights_were_not_written_is_not_finished(tmp_path, monkeypatch):
    full = True

    def write(content, path):
        if full and "w" in content:
            no_space(None, content, path)
        resume.write_tensors(content, path)

    monkeypatch.setattr(engine, "write_tensors", write)
    agent = line_agent(tmp_path)
    with pytest.raises(UserError, match=r"not written: .*_2.pt \(No space left on device\)"):
        agent.fit(Numbers(), None)
    assert not (agent.folder / FINISHED).exists()
    full = False
    again = fit(tmp_path, resume=str(agent.folder))
    assert again.folder == agent.folder and (agent.folder / FINISHED).exists()
    assert (agent.folder / "ckpt_violet_tiny_2.pt").exists()


def test_a_file_system_that_is_full(tmp_path, monkeypatch, capfd):
    """A small one in memory, where this process may mount it."""
    if os.system(f"mount -t tmpfs -o size=400k tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("no right to mount a file system")
    try:
        agent = line_agent(tmp_path, save_minutes=0, logging_steps=1)
        original, filler = Agent.save_or_stop, tmp_path / "filler"

        def save_or_stop(self):
            self.saver.wait()
            if self.step == 3:
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(b"x" * 512):
                        pass
            if self.step == 6:
                state = resume.read_state(agent.folder, ALONE)
                assert state["progress"]["step"] == 2
                filler.unlink()
            original(self)

        monkeypatch.setattr(Agent, "save_or_stop", save_or_stop)
        agent.fit(Numbers(), None)
        output = capfd.readouterr().err
        assert "last.pt could not be written (No space left on device): the run continues" in output
        state = resume.read_state(agent.folder, ALONE)
        assert state["progress"]["step"] == 8
        steps = [row["step"] for row in lines(agent.folder / "metrics.jsonl")]
        assert {1, 2, 3} <= set(steps) and steps[-1] == 8
        if "TensorBoard: " in output:  # else all of it had room
            assert output.count("TensorBoard: ") == 1
            assert "metrics.jsonl and eval.jsonl have them" in output
    finally:
        os.system(f"umount -l {tmp_path}")


# -- numbers


def test_values_that_are_not_finite_stop_the_run_and_name_the_samples(tmp_path):
    agent = line_agent(tmp_path, save_minutes=0, logging_steps=5)
    with pytest.raises(
        FloatingPointError, match=r"step 3: loss, error, grad_norm, grad_norm_heads not finite; the batch: n2"
    ):
        agent.fit(Numbers(spoilt=2), None)
    found = json.loads((agent.folder / "not_finite_0.json").read_text())
    assert found["step"] == 3 and found["samples"] == [{"corpus": "numbers", "index": 2, "id": "n2"}]
    state = torch.load(agent.folder / STATE, weights_only=True)
    assert state["progress"]["step"] == 2 and state["model"]["w"].isfinite().all()


def test_fp16_skips_such_a_step_and_the_mean_leaves_it_out(tmp_path):
    agent = line_agent(tmp_path, amp="fp16", logging_steps=4)
    agent.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # which overflows nowhere else
    agent.fit(Numbers(spoilt=2), None)
    assert agent.model.w.isfinite().all()
    assert agent.scaler.get_scale() == 64 / 4
    for row in lines(agent.folder / "metrics.jsonl"):
        assert row["skipped"] == 0.25 and 0 < row["error"] < 1000
    with pytest.raises(FloatingPointError, match="not finite with any loss scale"):
        fit(tmp_path, Numbers(length=20, spoilt=0), amp="fp16", logging_steps=1, lr=1e20)


def test_figures_say_where_the_time_goes_and_board_and_file_agree(tmp_path):
    folder = fit(tmp_path, logging_steps=2).folder
    rows = lines(folder / "metrics.jsonl")
    names = {"loss", "error", "grad_norm", "grad_norm_heads", "lr", "lr_swin"}
    names |= {"samples_per_second", "data_wait", "memory_gib"}
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert all(row.keys() == {"step", *names} for row in rows)
    assert on_board(folder) == in_files(folder)
    assert all(0 <= row["data_wait"] < 1 for row in rows)


def test_the_gradient_norm_is_that_before_clipping(tmp_path):
    folders = [fit(tmp_path, logging_steps=1, max_grad_norm=most).folder for most in (0, 0.1)]
    rows = [lines(folder / "metrics.jsonl")[1] for folder in folders]  # the learning rate is zero before
    assert rows[0]["grad_norm"] == rows[1]["grad_norm"] > 0.1


def test_wandb_gets_the_same_figures(tmp_path, monkeypatch):
    logged: list = []
    run = SimpleNamespace(
        log=lambda row, step: logged.append((step, row)), finish=lambda: logged.append("end")
    )
    module = SimpleNamespace(init=lambda **given: logged.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    folder = fit(tmp_path, logger="wandb", logging_steps=4).folder
    given, *rows, end = logged
    assert given["resume"] == "allow" and given["config"]["task"] == "tiny" and end == "end"
    for row, (step, sent) in zip(lines(folder / "metrics.jsonl"), rows, strict=True):
        assert sent == {f"train/{name}": value for name, value in row.items() if name != "step"}
        assert step == row["step"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        fit(tmp_path, logger="wandb")


def test_a_profile_is_a_trace_of_so_many_steps_and_a_table(tmp_path):
    folder = fit(tmp_path, profile=3).folder
    trace = json.loads((folder / "trace.json").read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e.get("name", "").startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}
    table = (folder / "profile.txt").read_text()
    assert table.count("aten::") > 5 and "ProfilerStep" not in table


def test_deterministic_is_torchs_own(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.use_deterministic_algorithms", chosen.append)
    with distributed(Config(deterministic=True, device="cpu")):
        assert chosen == [True]


# -- what a resumed loader reads


def test_a_loader_goes_on_at_a_batch_without_reading_those_before(tmp_path):
    class Letters:
        def __init__(self):
            self.read_rows = []

        def __len__(self):
            return 10

        def read(self, index, random):
            self.read_rows.append(index)
            return {"x": torch.tensor(index), "id": str(index)}

    letters = Letters()
    loader = Loader(
        Mixture({"letters": letters}, 0, True), Batches({"letters": 10}, {"letters": 2}, True), 0, 0.0
    )
    whole = [batch["x"].tolist() for batch in loader.epoch(3)]
    letters.read_rows.clear()
    assert [batch["x"].tolist() for batch in loader.epoch(3, skip=3)] == whole[3:]
    assert letters.read_rows == [index for batch in whole[3:] for index in batch]
