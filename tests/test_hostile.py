"""Files made to do harm, full disks, killed processes: nothing is lost, and one line says why.

Each test names a harm that was done once.
"""

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import make_tsv
from agent import Agent
from dataset import Loader, Mixture, PretrainCorpus
from engine.arguments import load_config
from engine.processes import distributed
from engine.recorder import Recorder
from engine.resume import load_optimizer, read_state
from engine.runs import FINISHED, STATE
from engine.signals import Stalled, Stop, handling_signals
from lib import Config, Printable, UserError
from media.batches import Batches
from media.decoding import open_video
from media.files import atomic_path, leftovers, parse_json, read_json, read_yaml, writing
from media.frames import Transform
from media.pickles import Machine, Refused
from media.tokens import Tokens
from media.tsv import Tsv, Videos, lineidx_path, unpickle_index
from tasks.qa.questions import Annotation
from tasks.retrieval.evaluation import Blocks
from teachers.dalle_encoder import load_dalle
from tests.conftest import write_corpus, write_videos
from tests.engine.test_resume import ALONE, Numbers, fit, line_agent
from tests.media.test_decoding import write_video
from weights.checkpoint import load_tensors
from weights.tensor_files import read_tensors


def stopped(folder: Path) -> tuple[Path, dict]:
    """A run's folder, and its state to be changed."""
    run = fit(folder, save_minutes=0).folder
    return run, torch.load(run / STATE, weights_only=True)


# ----------------------------------------------------------------------------------- training states


@pytest.mark.parametrize("name", ["../mine.txt", "/tmp/none/mine.txt", "args.json", "link"])
def test_a_state_shortens_no_file_but_the_runs_own(tmp_path, name):
    run, state = stopped(tmp_path / "runs")
    victim = run.parent / "mine.txt"
    victim.write_text("mine\n" * 100)
    (run / "link").symlink_to(victim)
    before = {path: path.read_bytes() for path in (victim, run / "args.json")}
    state["recorder"]["sizes"] = {name: 3, str(victim): 3}
    torch.save(state, run / STATE)
    recorder = Recorder(run, ALONE, 4)
    recorder.resume(1, read_state(run, ALONE)["recorder"], {})
    recorder.close()
    assert {path: path.read_bytes() for path in before} == before


def test_a_runs_own_file_that_is_a_link_is_not_shortened(tmp_path):
    run, state = stopped(tmp_path)
    (tmp_path / "mine.txt").write_text("mine\n" * 100)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "mine.txt")
    recorder = Recorder(run, ALONE, 4)
    recorder.resume(1, {**state["recorder"], "sizes": {"metrics.jsonl": 0}}, {})
    recorder.close()
    assert (tmp_path / "mine.txt").stat().st_size == 500


@pytest.mark.parametrize("size", [-1, "3", 2.5, None, 1 << 70])
def test_a_size_that_is_no_whole_number_is_one_line(tmp_path, size):
    run, state = stopped(tmp_path)
    state["recorder"]["sizes"] = {"metrics.jsonl": size}
    torch.save(state, run / STATE)
    if size == 1 << 70:  # more than there is: nothing is shortened
        read_state(run, ALONE)
        return
    with pytest.raises(UserError, match="cannot be read as a training state: the sizes of its files"):
        read_state(run, ALONE)


def changed_moment(state, tensor):
    state["optimizer"]["state"][0]["exp_avg"] = tensor


CHANGES = {
    "a larger moment": lambda s: changed_moment(s, torch.zeros(300)),
    "a smaller moment": lambda s: changed_moment(s, torch.zeros(1)),
    "a moment of other numbers": lambda s: changed_moment(s, torch.zeros(3, dtype=torch.int64)),
    "no moment": lambda s: s["optimizer"]["state"][0].pop("exp_avg"),
    "a moment more": lambda s: s["optimizer"]["state"][0].update(max_exp_avg_sq=torch.zeros(3)),
    "another parameter": lambda s: s["optimizer"]["state"].update({9: s["optimizer"]["state"][0]}),
    "more parameters": lambda s: s["optimizer"]["param_groups"][0]["params"].append(7),
    "no groups": lambda s: s["optimizer"].pop("param_groups"),
    "steps of a tensor": lambda s: s["optimizer"]["state"][0].update(step=torch.zeros(5)),
    "another weight": lambda s: s["model"].update(w=torch.zeros(9)),
    "weights of whole numbers": lambda s: s["model"].update(w=torch.zeros(3, dtype=torch.int8)),
    "a weight more": lambda s: s["model"].update(v=torch.zeros(3)),
    "no weight": lambda s: s["model"].clear(),
    "random states of a list": lambda s: s.update(random=[[1]]),
    "no random state": lambda s: s["random"][0].pop("python"),
    "a place beyond NumPy's state": lambda s: s["random"][0]["numpy"]["state"].update(pos=10**9),
    "a random state of floats": lambda s: s["random"][0].update(torch=torch.zeros(5056)),
    "no progress": lambda s: s.pop("progress"),
    "a step of text": lambda s: s["progress"].update(step="4"),
    "a step below nothing": lambda s: s["progress"].update(step=-4),
    "figures of text": lambda s: s["progress"].update(figures={"loss": "a"}),
    "a scaler of a list": lambda s: s.update(scaler=[1]),
    "figures of another shape": lambda s: s["recorder"].update(window=torch.zeros(3, 9, 2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_of_another_form_is_one_line_and_leaves_the_run_as_it_is(tmp_path, name):
    run, state = stopped(tmp_path)
    CHANGES[name](state)
    torch.save(state, run / STATE)
    (run / FINISHED).write_text("{}")
    with pytest.raises(UserError, match=r"last\.pt cannot be read as (the|a training) state") as error:
        fit(tmp_path, resume=str(run))
    assert "\n" not in str(error.value)
    assert (run / FINISHED).exists()  # a failed resume changes nothing


def test_options_of_an_optimiser_are_the_runs_own(tmp_path):
    _, state = stopped(tmp_path)
    state["optimizer"]["param_groups"][0] |= {"betas": "no", "maximize": True, "eps": -1.0}
    agent = line_agent(tmp_path)
    load_optimizer(agent.optimizer, state["optimizer"])
    group = agent.optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.98) and not group["maximize"] and group["eps"] > 0


def test_a_resume_removes_its_own_temporary_files_alone(tmp_path):
    run, _ = stopped(tmp_path)
    kept = [run / name for name in (".env.local", ".a.b", ".last.pt.swp", ".git.keep")]
    for path in kept:
        path.write_text("mine")
    with pytest.raises(RuntimeError, match="killed"), atomic_path(run / STATE) as temporary:
        left = temporary.with_name(temporary.name + "0")
        left.write_text("half")
        raise RuntimeError("killed")
    assert leftovers(run) == [left]
    (run / FINISHED).unlink()
    fit(tmp_path, resume=str(run))
    assert not left.exists() and all(path.exists() for path in kept)


# ------------------------------------------------------------------------------------------------ disks


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_of_which_nothing_can_be_saved_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.write_tensors", full)
    seen = []
    monkeypatch.setattr(Agent, "train_step", lambda self, batches: seen.append(batches))
    with pytest.raises(
        UserError, match=r"not written: .*last\.pt \(No space left on device\)\. Free disk space"
    ):
        line_agent(tmp_path).fit(Numbers(), None)
    assert not seen


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_ends_a_script_in_one_line_that_names_the_file(tmp_path, number):
    line = f"^{tmp_path}/a.json: {os.strerror(number)}; free disk space"
    with (
        pytest.raises(UserError, match=line),
        distributed(Config(device="cpu")),
        atomic_path(tmp_path / "a.json") as temporary,
    ):
        temporary.write_text("a")
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def by_torch(path):
    with path.open("wb") as file:
        torch.save(torch.zeros(100_000), file)


WRITERS = {
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "torch": by_torch,
    "numpy": lambda path: np.save(path.open("wb"), np.zeros(100_000)),
    "pillow": lambda path: Image.effect_noise((400, 400), 99).save(path, "PNG"),
    "text": lambda path: path.write_text("a" * 100_000),
}


@pytest.fixture
def small_disk():
    """No file of this process may be larger than 64 kB, as if the disk had no more room."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, was[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, was)


@pytest.mark.parametrize("library", WRITERS)
def test_a_library_that_writes_to_a_full_disk_is_one_line(tmp_path, small_disk, library):
    line = f"^{tmp_path}/a: (File too large|No space left on device); free disk space"
    with pytest.raises(UserError, match=line), writing("files"), atomic_path(tmp_path / "a") as temporary:
        WRITERS[library](temporary)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="; free disk space"), writing("files"):
        WRITERS[library](tmp_path / "b")


def test_faults_that_are_not_of_the_disk_stay_as_they_are(tmp_path):
    for fault in (RuntimeError("sizes differ"), UserError("not this"), OSError("no number")):
        with (
            pytest.raises(type(fault), match=str(fault)),
            writing("files"),
            atomic_path(tmp_path / "a"),
        ):
            raise fault


@pytest.mark.parametrize("workers", [0, 1])
def test_make_tsv_on_a_full_disk_is_one_line(tmp_path, monkeypatch, workers):
    write_video(tmp_path / "a.mp4", frames=3)
    monkeypatch.setattr(make_tsv, "write_rows", full)
    arguments = [str(tmp_path), "--frames_only", "--output", str(tmp_path / "out"), "--name", "x"]
    with pytest.raises(UserError, match=r"x.part: No space left on device"):
        make_tsv.main([*arguments, "--workers", str(workers)])


# ------------------------------------------------------------------------------------------------ locks


def held_by_another(act) -> object:
    """What `act` gives in another process, while this one holds what it holds."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(act)


def test_two_make_tsv_of_one_name(tmp_path):
    write_video(tmp_path / "a.mp4", frames=3)
    arguments = [
        str(tmp_path),
        "--frames_only",
        "--output",
        str(tmp_path / "out"),
        "--name",
        "x",
        "--workers",
        "0",
    ]
    with (
        make_tsv.growing(tmp_path / "out/x.part"),
        pytest.raises(UserError, match="another process is writing"),
    ):
        make_tsv.main(arguments)
    make_tsv.main(arguments)
    assert not (tmp_path / "out/x.part").exists() and (tmp_path / "out/img_x.tsv").exists()


def test_two_evaluations_of_one_config(tmp_path):
    first = Blocks(tmp_path / "_scores_x")
    first.claim(ALONE)
    first.write(0, np.zeros((2, 3)))
    child = os.fork()
    if not child:
        try:
            Blocks(tmp_path / "_scores_x").claim(ALONE)
        except UserError as error:
            os._exit(3 if "another process runs the same evaluation" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    (tmp_path / "_scores_x/mine.txt").write_text("mine")
    first.remove()
    assert [path.name for path in (tmp_path / "_scores_x").iterdir()] == ["mine.txt"]


def test_make_tsv_removes_and_replaces_no_file_that_it_has_not_made(tmp_path):
    write_video(tmp_path / "a.mp4", frames=3)
    part = tmp_path / "out/x.part"
    part.mkdir(parents=True)
    (part / "thesis.txt").write_text("mine")
    arguments = [str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0"]
    with pytest.raises(UserError, match=r"thesis.txt was not written by this program"):
        make_tsv.main([*arguments, "--frames_only", "--name", "x"])
    assert (part / "thesis.txt").read_text() == "mine"
    (tmp_path / "out/y.yaml").write_text("mine")
    captions = tmp_path / "c.json"
    captions.write_text('{"a": ["red"]}')
    with pytest.raises(UserError, match=r"y.yaml was written by another program"):
        make_tsv.main([*arguments, "--captions", str(captions), "--name", "y"])
    assert (tmp_path / "out/y.yaml").read_text() == "mine"


# ---------------------------------------------------------------------------------------------- indices


@pytest.mark.parametrize("content", [b"root:x:0:0\nuser:x:1:1\n", b"\x89PNG\0\t1\n", b"one\ntwo\n", b"\n"])
def test_nothing_is_written_beside_a_file_that_is_no_tsv(tmp_path, content):
    (tmp_path / "passwd").write_bytes(content)
    Tsv(tmp_path / "passwd")
    Videos(tmp_path / "passwd")
    assert [path.name for path in tmp_path.iterdir()] == ["passwd"]


def test_a_downloaded_index_is_never_written_over(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lib.log.propagate", True)
    path = write_videos(tmp_path)
    index = tmp_path / "img_clips.id2lineidx.pkl"
    index.write_bytes(pickle.dumps({"clip0": 7}))
    before = index.read_bytes()
    assert Videos(path)["clip3"][0] == b"clip3"
    assert index.read_bytes() == before
    assert "an index in memory is used" in caplog.text


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16, np.int8])
def test_an_index_of_numpy_numbers_in_a_defaultdict_is_read(tmp_path, kind):
    import collections

    content = collections.OrderedDict(a=kind(0), b=kind(100))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert unpickle_index(tmp_path / "a.pkl") == {"a": 0, "b": 100}


@pytest.mark.parametrize("content", ["0\n99999999999999999999\n", "0\n-4\n", "0\n8\n4\n", "zero", "\xff"])
def test_numbers_of_an_index_that_cannot_be(tmp_path, content):
    (tmp_path / "a.tsv").write_bytes(b"one\t1\ntwo\t2\n")
    lineidx_path(tmp_path / "a.tsv").write_text(content, "latin1")
    with pytest.raises(UserError, match=r"as a list of byte offsets: .*delete it"):
        Tsv(tmp_path / "a.tsv")


# --------------------------------------------------------------------------------------------- processes


class Sudden:
    """A corpus whose reading does something to the process."""

    def __init__(self, act) -> None:
        self.act = act

    def __len__(self) -> int:
        return 4

    def read(self, index, random):
        return self.act()


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_line():
    mixture = Mixture({"a": Sudden(kill_oneself)}, 0, True)
    loader = Loader(mixture, Batches({"a": 4}, {"a": 2}, True), 1, 0.0)
    with pytest.raises(UserError, match=r"a data-loading worker was killed.*lower --n_workers"):
        list(loader.epoch(0))


def test_a_run_that_waits_for_data_stops_when_it_is_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.signals.PATIENCE", 0.1)

    class Stalling(Numbers):
        def epoch(self, epoch, skip=0):
            for number, batch in enumerate(super().epoch(epoch, skip)):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(20)
                yield batch

    start = time.monotonic()
    agent = line_agent(tmp_path)
    with pytest.raises(SystemExit) as stop:
        agent.fit(Stalling(), None)
    assert stop.value.code == 0 and time.monotonic() - start < 10
    assert torch.load(agent.folder / STATE, weights_only=True)["progress"]["step"] == 2


def test_no_reader_takes_the_end_of_waiting_for_a_damaged_file():
    assert not issubclass(Stalled, Exception)
    before = signal.getsignal(signal.SIGALRM)
    with handling_signals(Stop()):
        pass
    assert signal.getsignal(signal.SIGALRM) == before


# ------------------------------------------------------------------------------------------ checkpoints


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 1)


NAMED = {
    "flat": lambda s: s,
    **{key: (lambda s, key=key: {key: s, "epoch": 3}) for key in ("state_dict", "model", "module", "net")},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {}}},
    "ema alone": lambda s: {"ema": s},
    "within two": lambda s: {"model": {"module": s}},
    "the first of two": lambda s: {"ema": {k: v * 0 for k, v in s.items()}, "model": s},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "model.": lambda s: {f"model.{k}": v for k, v in s.items()},
    "_orig_mod.": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "module.module.": lambda s: {f"module.module.{k}": v for k, v in s.items()},
    "module._orig_mod.": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "compiled parts": lambda s: {k.replace("a.", "a._orig_mod."): v for k, v in s.items()},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NAMED)
def test_state_dicts_under_the_names_that_trainers_use(tmp_path, name, zipped):
    state = Plain().state_dict()
    torch.save(NAMED[name](state), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "a.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def beside(tensors: dict) -> dict:
    import argparse
    import datetime

    return {
        "model": tensors,
        "args": argparse.Namespace(lr=0.1, path=Path("a")),
        "best": np.float64(0.5),
        "counts": np.arange(3),
        "when": datetime.datetime(2026, 1, 1),
        "set": {1, 2},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_what_lies_beside_tensors_is_passed_over_and_named(tmp_path, caplog, monkeypatch, zipped):
    monkeypatch.setattr("lib.log.propagate", True)
    state = Plain().state_dict()
    torch.save(beside(state), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with caplog.at_level("INFO"):
        assert read_tensors(tmp_path / "a.pt").keys() == state.keys()
    assert "tensors under model" in caplog.text and "argparse.Namespace" in caplog.text


def test_a_deepspeed_folder_is_its_latest_step(tmp_path):
    state = Plain().state_dict()
    for step, factor in ((10, 1.0), (20, 2.0)):
        (tmp_path / f"global_step{step}").mkdir()
        content = {"module": {k: v * factor for k, v in state.items()}, "ds_config": {}, "optimizer": None}
        torch.save(content, tmp_path / f"global_step{step}" / "mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text("global_step20\n")
    for path, factor in ((tmp_path, 2.0), (tmp_path / "global_step10", 1.0)):
        assert torch.equal(read_tensors(path)["a.weight"], state["a.weight"] * factor)
    (tmp_path / "latest").write_text("../../etc")
    with pytest.raises(UserError, match="holds no checkpoint"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html><title>Google Drive", r"it is a web page \(\d+ bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a git-lfs pointer"),
        (b"Not Found\n", r"it is a text file \(10 bytes\)"),
        (b"\x1f\x8b\x08\0", "it is a gzip archive"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(tmp_path, content, why):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=f"cannot be read as a checkpoint of tensors: {why}"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cut_off_anywhere_says_so_and_never_how_to_run_it(tmp_path, zipped):
    torch.save(beside(Plain().state_dict()), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.pt").read_bytes()
    for share in (0.05, 0.3, 0.7, 0.99):
        (tmp_path / "b.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"it is cut off \(\d+ bytes\)|begins like no file") as error:
            read_tensors(tmp_path / "b.pt")
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def test_flipped_bytes_of_a_checkpoint_are_noticed(tmp_path):
    state = {"w": torch.randn(5000)}
    torch.save(state, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    start = content.index(state["w"].numpy().tobytes())
    for place in range(start, start + 20_000, 1999):
        content[place] ^= 64
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"it is damaged: the checksum of .*data/0 is another"):
            read_tensors(tmp_path / "a.pt")
        content[place] ^= 64


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_an_error(dtype):
    module = nn.Linear(3, 2)
    state = {key: value.to(dtype) for key, value in module.state_dict().items()}
    with pytest.raises(UserError, match=f"holds {dtype} numbers, not floating-point"):
        load_tensors(module, state, "a")


HUGE = {  # pickles of a few bytes
    "a place in the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.",
    "an array of bytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f.",
    "a text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0f.",
    "bytes of a class": b"cbuiltins\nbytes\nI8600000000\n\x85R.",
    "lists in lists": b"\x80\x02" + b"](" * 100_000 + b".",
    "tuples in tuples as a key": b"\x80\x02}]" + b"\x85" * 100_000 + b"Ns.",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_pickle_that_claims_much_is_refused_or_small(name):
    import tracemalloc

    tracemalloc.start()
    with contextlib.suppress(Refused):
        Machine().load(HUGE[name])
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_keys_of_one_hash_take_no_hours():
    one_hash = {number * ((1 << 61) - 1): None for number in range(1, 50)}
    start = time.monotonic()
    body = pickle.dumps(one_hash, 2)
    assert len(Machine().load(body)) == 49
    many = b"\x80\x02}(" + b"".join(
        b"\x8a\x0b" + (number * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for number in range(1, 30_000)
    )
    assert len(Machine().load(many + b"u.")) == 29_999
    assert time.monotonic() - start < 2


def test_a_module_that_contains_itself_ends(tmp_path):
    module = Plain()
    module.loop = nn.ModuleList()
    module.loop._modules["0"] = module
    torch.save(module, tmp_path / "a.pt")
    for read in (read_tensors, load_dalle):
        with pytest.raises(UserError, match="contains itself"):
            read(tmp_path / "a.pt")


def test_an_encoder_of_absurd_size_is_refused_before_memory_is_taken(tmp_path):
    zero = torch.zeros(1)
    tensors = {"blocks.input.b": torch.zeros(1 << 20), "blocks.output.conv.b": torch.zeros(1 << 20)}
    tensors |= {f"blocks.group_1.block_{i}.res_path.conv_1.w": zero for i in range(1, 4)}
    torch.save(tensors, tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match="lacks most of an encoder"):
        load_dalle(tmp_path / "encoder.pkl")


# ------------------------------------------------------------------------------------- texts and configs


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b"\xff\xfe{\0", "not UTF-8"),
        (b'{"a": 1' + b"0" * 40 + b"}", "beyond 64 bits"),
        (b"", "it is empty"),
    ],
)
def test_a_json_that_cannot_be_is_one_line(tmp_path, content, why):
    (tmp_path / "a.json").write_bytes(content)
    for read in (read_json, Annotation.read, lambda path: load_config("pretrain", ["--config", str(path)])):
        with pytest.raises(UserError, match=f"cannot be read as JSON: .*{why}"):
            read(tmp_path / "a.json")


def test_half_of_a_surrogate_pair_becomes_a_sign_that_can_be_written():
    text = parse_json('["a\\ud800b", {"\\udc00": "\\ud83d\\ude00"}]')
    assert text == ["a\ufffdb", {"\ufffd": "\U0001f600"}]
    json.dumps(text, ensure_ascii=False).encode()


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("content", [BOMB, "[" * 9000, "a: &a [*a]", "\xff", "a: !!python/name:os.system ''"])
def test_a_yaml_that_cannot_be_is_one_line(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content, "latin1")
    with pytest.raises(UserError, match=r"cannot be read as YAML: .*_data/README.md") as error:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["img", "caption", "caption_linelist", "image", "composite"])
@pytest.mark.parametrize("value", ["7", "{a: 1}", "[1, 2]", "[[a]]", "2020-01-01", '"a\\0b"'])
def test_other_types_under_the_keys_of_a_yaml_are_one_line(tmp_path, question_bert, key, value):
    path = write_corpus(tmp_path, "clips", 2, 2)
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*lines, f"{key}: {value}"]))
    with pytest.raises(UserError, match=r"clips.yaml"):
        PretrainCorpus(path, "clips", Tokens(str(question_bert), 8), Transform(["pad_resize"], 32), 2)


@pytest.mark.parametrize(
    "labels", [7, "words", {"star": "0"}, {"star": [0]}, {"star": -1}, [1, 2], [None], {"a": 1.5}]
)
def test_answers_of_other_types_are_one_line(tmp_path, labels):
    content = {"train": [{"video": "a"}], "ans2label": labels}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its answers .* are not words numbered"):
        Annotation.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_workers", 10**6),
        ("size_img", 1 << 20),
        ("seed", 1 << 70),
        ("task", "../up"),
        ("task", "two\nlines"),
        ("task", "a" * 300),
        ("dataset", "\x1b[31m"),
    ],
)
def test_values_that_are_slips_or_attacks_are_one_line(tmp_path, key, value):
    (tmp_path / "a.json").write_text(json.dumps({key: value, "max_size_patch": 128}))
    with pytest.raises(
        UserError, match=r"beyond 64 bits|is more than|more than max_size|part of file names"
    ) as error:
        load_config("pretrain", ["--config", str(tmp_path / "a.json")])
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_ids_move_no_cursor_on_the_console():
    record = logging.LogRecord("violet", 20, "", 1, "bad row: %s", ("clip\x1b[2J\r\x07\ud800",), None)
    assert Printable("%(message)s").format(record) == "bad row: clip\\x1b[2J\\r\\x07\\ud800"


# ------------------------------------------------------------------------------------ videos and pictures


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="it is a pipe"), open_video(tmp_path / "a.mp4"):
        pass


@pytest.mark.parametrize(
    "name", ["tcp:127.0.0.1:9", "http://127.0.0.1:9/a.mp4", "concat:a.mp4|a.mp4", "pipe:0", "subfile:a"]
)
def test_an_address_is_no_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", frames=3)
    with pytest.raises(ValueError, match="does not exist"), open_video(Path(name)):
        pass


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile 'a.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    ],
)
def test_a_list_that_leads_to_other_files_is_no_video(tmp_path, monkeypatch, script):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", frames=3)
    for ending in (".mp4", ".m3u8", ".sdp", ".ffconcat"):
        (tmp_path / f"b{ending}").write_text(script)
        start = time.monotonic()
        with pytest.raises((ValueError, OSError)), open_video(tmp_path / f"b{ending}"):
            pass
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("shape", [(1, 65_500), (65_500, 1), (2, 65_500)])
@pytest.mark.parametrize("name", ["img_rand_crop", "vid_rand_crop", "pad_resize"])
def test_a_picture_as_long_as_a_thread_takes_little_memory(shape, name):
    import resource

    frame = torch.zeros(3, *shape, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for random in (None, np.random.default_rng(0)):
        assert Transform([name], 224)([frame], random).shape == (1, 3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_frames_of_usual_ratios_are_cropped_as_ever():
    frame = torch.randint(0, 255, (3, 40, 40 * 31), dtype=torch.uint8)
    whole = Transform(["img_center_crop"], 40)([frame], None)
    assert torch.equal(whole[0], frame[:, :, 600:640])


def test_a_word_has_the_same_ids_alone_and_in_its_text(question_bert):
    """So a file of 400,000 questions opens in seconds: each of its words is tokenised once."""
    tokens, chance = Tokens(str(question_bert), 8), np.random.default_rng(0)
    signs = [
        *"abc redstar",
        " ",
        "  ",
        "[MASK]",
        "?",
        ".",
        "\u00e9",
        "e\u0301",
        "\u03a3",
        "\u4e2d",
        "\t",
        "\n",
        "\u00a0",
    ]
    signs += ["\x1c", "\x85", "\u200b", "\ufffd", "[SEP]", "[", "]", "red", "square", "'"]
    texts = ["".join(chance.choice(signs, 12)) for _ in range(500)] + ["", " ", "red [MASK]star"]
    found = tokens.words(texts)
    assert found == {text: tokens.tokenizer(text, add_special_tokens=False).input_ids for text in texts}
