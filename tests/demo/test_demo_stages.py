"""The stages of demo.mk, with a program in python's place that notes what it is asked to run."""

import shlex
import subprocess
from pathlib import Path

import pytest

from demo.make import parse_arguments
from demo.run import TASKS
from engine.arguments import load_config

ROOT = Path(__file__).parents[2]
STUB = """#!/bin/sh
printf '%s' "$1 $2" | grep -q "$FAILS" && {{ echo "the reason"; exit 3; }}
line=$(for a in "$@"; do printf "'%s' " "$a"; done)
echo "$line" >> {record} # in one piece: two stages run at a time
case "$*" in *--path_output*)
  while [ "$1" != --path_output ]; do if [ "$1" = --config ]; then c=$(basename $2 .json); fi; shift; done
  mkdir -p $2/_${{c#demo-}}_1 $2/_${{c}}_1;;
esac
"""


@pytest.fixture
def make(tmp_path):
    record, stub = tmp_path / "record", tmp_path / "python"
    stub.write_text(STUB.format(record=record))
    stub.chmod(0o755)

    def run(fails: str = "nothing", *options: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        record.write_text("")
        given = [f"PY={stub}", f"DATA={tmp_path}/data", f"RUN={tmp_path}/run", "READY=", "QUICK=1", *options]
        ended = subprocess.run(
            ["make", "-C", str(ROOT), "demo", *given],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", "FAILS": fails},
        )
        return ended, [shlex.split(line) for line in record.read_text().splitlines()]

    return run


def place(ran: list[list[str]], *words: str) -> int:
    [found] = [i for i, command in enumerate(ran) if all(any(w in part for part in command) for w in words)]
    return found


def test_each_stage_comes_after_its_prerequisites(make, tmp_path):
    ended, ran = make()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    order = ["demo.make", "demo.questions", "demo.retrieval", "--sample", "demo.backbone", "main_pretrain"]
    places = [place(ran, word) for word in order]
    assert places == sorted(places)
    encoder, pretrained = places[-2:]
    for task in TASKS:
        assert place(ran, "main_", f"_args/{task}.json", "/encoder_only") > encoder
        at = place(ran, "main_", f"_args/{task}.json", "/pretrained")
        assert at > pretrained
        assert ran[at][ran[at].index("--path_ckpt") + 1] == f"{tmp_path}/run/pretraining/_pretrain_1"
    assert place(ran, "eval_retrieval", "/pretrained/ranking") > place(ran, "main_retrieval", "/pretrained")
    assert place(ran, "demo.run") == len(ran) - 1
    assert sorted(path.name for path in (tmp_path / "run" / "logs").iterdir())[:2] == [
        "check.log",
        "encoder_only_demo-action.log",
    ]


def test_stages_that_are_done_are_not_run_again(make):
    make()
    ended, ran = make()
    assert ended.returncode == 0 and [command[1] for command in ran] == ["demo.run"]


@pytest.mark.parametrize(("fails", "name"), [("demo.backbone", "swin_demo"), ("demo.questions", "world")])
def test_a_failed_stage_names_its_log_and_stops_the_rest(make, tmp_path, fails, name):
    ended, ran = make(fails)
    assert ended.returncode != 0
    log = tmp_path / "run" / "logs" / f"{name}.log"
    assert f"the reason\n{name} failed: all that it printed is in {log}" in ended.stdout
    assert "make demo stopped" in ended.stdout
    assert not any("main_" in part for command in ran for part in command)
    again, _ = make()
    assert again.returncode == 0  # goes on with the stage that failed


def test_arguments_are_known_to_the_programs(make, tmp_path):
    _, ran = make("nothing", "SEED=3")
    sizes = ran[place(ran, "demo.make")]
    assert parse_arguments(sizes[2:]).names_val == 32
    scripts = [command for command in ran if command[0].startswith(("main_", "eval_"))]
    assert len(scripts) == 1 + 2 * len(TASKS) + 2
    for script, *arguments in scripts:
        config = load_config(script.removesuffix(".py"), arguments)
        assert (config.seed, config.max_steps, config.txt_backbone) == (3, 4, f"{tmp_path}/data/bert")
    config = load_config("main_pretrain_yaml", ran[place(ran, "main_pretrain")][1:])
    assert config.val_yaml == {"demo": f"{tmp_path}/data/val.yaml"}
