"""Stages side by side."""

import itertools
import time

import pytest

from demo.stages import Failed, Job, run_all

WAIT = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"


def script(folder, name, text) -> str:
    path = folder / f"{name}.py"
    path.write_text(text)
    return str(path)


def test_a_stage_waits_for_those_before_it_and_goes_beside_the_others(tmp_path):
    # each of the two waits for what the other writes: one after the other they would never end
    meet = "import pathlib, sys\npathlib.Path(sys.argv[2]).touch()\n" + WAIT
    meeting = script(tmp_path, "meet", meet)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    order = []

    def last(stage):
        order.append(sorted(path.name for path in tmp_path.glob("[ab]")))
        stage.run(script(tmp_path, "threads", "import os; print(os.environ['OMP_NUM_THREADS'])"))

    jobs = [
        Job("last", last, after=("first", "second")),
        Job("first", lambda stage: stage.run(meeting, a, b), share=0.5),
        Job("second", lambda stage: stage.run(meeting, b, a), share=0.25),
    ]
    stages = run_all(jobs, tmp_path / "logs", available=2)
    assert [stage.name for stage in stages] == ["last", "first", "second"]
    assert order == [["a", "b"]]
    assert [stage.threads for stage in stages] == [2, 1, 1]
    assert (tmp_path / "logs" / "last.log").read_text() == "2\n"
    assert stages[0].began >= max(stage.began + stage.seconds for stage in stages[1:]) - 0.01


def test_on_one_core_stages_follow_each_other(tmp_path):
    quick = script(tmp_path, "quick", "")
    jobs = [Job(str(i), lambda stage: stage.run(quick), share=0.5) for i in range(3)]
    stages = run_all(jobs, tmp_path / "logs", available=1)
    for before, after in itertools.pairwise(stages):
        assert after.began >= before.began + before.seconds - 0.01


def test_memory_and_time_are_those_of_the_largest_program_and_of_all(tmp_path):
    hungry = script(tmp_path, "hungry", "x = bytearray(300 * 2**20)")
    busy = script(tmp_path, "busy", "import time\nwhile time.process_time() < 0.2: pass")

    def work(stage):
        stage.run(hungry)
        stage.run(busy)

    [stage] = run_all([Job("both", work)], tmp_path / "logs")
    assert 0.29 < stage.memory_gib < 0.6
    assert stage.seconds > 0.2 and stage.cpu_seconds > 0.2
    assert stage.figures()["memory_gib"] == stage.memory_gib


def test_when_one_fails_the_others_end_and_nothing_else_starts(tmp_path):
    never = script(tmp_path, "never", WAIT)
    fails = script(tmp_path, "fails", "print('the reason'); raise SystemExit(3)")
    started = []

    def two(stage):
        stage.run(never, str(tmp_path / "never there"))
        started.append("the second program of an ended stage")

    jobs = [
        Job("waits", two, share=0.5),
        Job("fails", lambda stage: stage.run(fails), share=0.5),
        Job("after", lambda stage: started.append("after"), after=("fails",)),
    ]
    start = time.perf_counter()
    with pytest.raises(Failed, match=r"the reason\nfails: exit code 3; all of it: .*fails\.log"):
        run_all(jobs, tmp_path / "logs", available=2)
    assert time.perf_counter() - start < 20
    assert started == []
