"""A run's folder: a new one, or the folder of an unfinished run to resume."""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from lib import KEYS, Config, UserError, World, log, start_log
from media.files import atomic_path, leftovers, read_json
from media.files import hold as hold_file

STATE, BEFORE = "last.pt", "last.previous.pt"  # the training state, and the previous one
FINISHED = "finished.json"  # the last figures of a finished run
# keys that may change when a run is resumed: they change how it is computed, not the result
FREE: tuple[str, ...] = (
    "resume",
    "save_minutes",
    "requeue_code",
    "path_output",
    "n_workers",
    "logger",
    "profile",
    "device",
)
FREE += ("max_bad_ratio", "teacher_batch", "teacher_device", "logging_steps", "parallel", "compile", "tf32")
FREE += ("window_kernels",)
FREE += ("compress_gradients", "use_checkpoint", "deterministic", "eval_start", "eval_every", "keep_epochs")


@dataclass(frozen=True)
class Run:
    """A run's folder, and whether the run is resumed."""

    folder: Path
    resumed: bool = False
    lock: IO[str] | None = None
    """of the main process, open while it writes to the folder"""


def open_run(config: Config, world: World) -> Run:
    """The run that `resume` names, or a new one; the log is appended to `log.txt`.

    A group of processes that torchrun restarts resumes, whatever `resume` is.
    """
    # a machine counts only the restarts that its own processes have caused
    restarts = world.most(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
    wanted = config.resume or ("auto" if restarts else "")
    found: Path | UserError | None = None
    lock = None
    if world.is_main and wanted and config.size_epoch:
        try:
            found, lock = find_unfinished(config) if wanted == "auto" else named_run(config, Path(wanted))
        except UserError as error:
            found = error
    found = world.gather(found)[0]
    if isinstance(found, UserError):
        raise found
    if found is None:
        folder = make_run_folder(config, world)
        if world.is_main and config.size_epoch:
            link_latest(folder)
        return Run(folder, lock=hold(folder) if world.is_main else None)
    start_log(world, found)
    describe_machine(world)
    log.info("resuming %s", found)
    return Run(found, resumed=True, lock=lock)


def reopen(folder: Path) -> None:
    """Mark a resumed run as unfinished, and delete its half-written files."""
    (folder / FINISHED).unlink(missing_ok=True)
    for left in leftovers(folder):
        left.unlink()


def make_run_folder(config: Config, world: World) -> Path:
    """Make `path_output/_TASK_TIME` with the config in `args.json`; the log goes to its `log.txt` as well."""
    folder: Path | None = None
    while world.is_main and folder is None:
        stamp = time.strftime("%Y%m%d%H%M%S")
        path = Path(config.path_output) / f"_{config.task}_{stamp}"
        with contextlib.suppress(FileExistsError):  # of a run that started in the same second
            path.mkdir(parents=True)
            folder = path
        time.sleep(0 if folder else 0.2)
    folder = world.gather(folder)[0]
    assert folder is not None
    if world.is_main:
        with atomic_path(folder / "args.json") as temporary:
            temporary.write_text(config.to_json())
    start_log(world, folder)
    describe_machine(world)
    return folder


def link_latest(folder: Path) -> None:
    """Point the link `latest`, in the folder of the runs, to this run, the newest that trains."""
    temporary = folder.with_name(f".latest{folder.name}")
    with contextlib.suppress(OSError):  # not all file systems have links
        temporary.symlink_to(folder.name)
        temporary.replace(folder.with_name("latest"))


def describe_machine(world: World) -> None:
    """Log the code version, the libraries and the devices."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers"))
    log.debug("commit %s; python %s, %s", commit(), platform.python_version(), libraries)
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine()
    devices = f"{world.device} ({name}, {torch.get_num_threads()} threads)"
    log.debug("processes: %d, machines: %d", world.size, world.nodes)
    log.debug("this process: host %s, %s", platform.node(), devices)


def commit() -> str:
    """The commit of this checkout, with -dirty where it has been changed; "unknown" without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def find_unfinished(config: Config) -> tuple[Path | None, IO[str] | None]:
    """The newest run of this task and config that has a state, is not finished and not being written to."""
    for folder in newest_first(config):
        if (folder / FINISHED).exists() or not has_state(folder):
            continue
        if other := differences(config, folder):
            log.info("resume auto: %s is skipped, a run with %s", folder, ", ".join(other))
        elif lock := hold(folder):
            return folder, lock
        else:
            log.info("resume auto: %s is skipped, another process writes to it", folder)
    return None, None


def newest_first(config: Config) -> list[Path]:
    """The folders of the runs of this task."""
    start = f"_{config.task}_"
    runs = [path for path in Path(config.path_output).glob("_*") if path.name.startswith(start)]
    stamps = {path: path.name.removeprefix(start) for path in runs}
    return sorted((p for p in runs if stamps[p].isdigit()), key=lambda p: int(stamps[p]), reverse=True)


def named_run(config: Config, path: Path) -> tuple[Path, IO[str]]:
    """The run of a folder, or of a `last.pt` in it; raises `UserError` if it cannot be resumed."""
    folder = path if path.is_dir() else path.parent
    if not has_state(folder):
        raise UserError(f"resume {path}: there is no {STATE} in {folder}; name a run's folder, or auto.")
    if other := differences(config, folder):
        log.warning("resume: the run had %s; the values given now are used", ", ".join(other))
    lock = hold(folder)
    if lock is None:
        raise UserError(f"resume {path}: another process is writing to that run; end it first.")
    return folder, lock


def has_state(folder: Path) -> bool:
    """Whether a run's folder has a training state, the last or the previous one."""
    return (folder / STATE).is_file() or (folder / BEFORE).is_file()


def differences(config: Config, folder: Path) -> list[str]:
    """The keys, with their values, that differ in a run's `args.json`; `FREE` keys may differ."""
    try:
        stored: dict[str, Any] = read_json(folder / "args.json", most=1 << 20)
        if not isinstance(stored, dict):
            raise UserError("it is not a JSON object")
    except UserError as error:
        return [f"no args.json that can be read ({error})"]
    if "accumulate" in stored and stored.get("type") != "pretrain":
        stored.setdefault("text_rules", "fixed")  # from before there was a choice
    given = json.loads(json.dumps(dataclasses.asdict(config)))
    usual = json.loads(json.dumps(dataclasses.asdict(Config(type=config.type))))
    known = {key: stored.get(key, usual[key]) for key in KEYS if key not in FREE}
    return [f"{key} {value}" for key, value in known.items() if value != given[key]]


def hold(folder: Path) -> IO[str] | None:
    """A run's lock, held until it is closed or the process ends; None: another process has it."""
    return hold_file(folder / "lock")
