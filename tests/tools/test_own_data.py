"""From a CSV of one's own to a run, by one command."""

import json
import re
import sys

import pytest

import main_qamc_tsv
import main_qaoe_tsv_lsmdc_fib
import main_qaoe_tsv_mlm_head
import main_retrieval_tsv
import own_data
from _tools.convert.own import draw_splits
from lib import UserError
from tests.tools.test_make_tsv import write_video

SCRIPTS = (main_qamc_tsv, main_qaoe_tsv_lsmdc_fib, main_qaoe_tsv_mlm_head, main_retrieval_tsv)
TABLES = {  # by the script that is to run them: a head, and a row
    "main_qaoe_tsv_mlm_head.py": ("video,question,answer", "{video},what color is it ?,red"),
    "main_qaoe_tsv_lsmdc_fib.py": ("video,question,answer", "{video},a [MASK] star,red"),
    "main_qamc_tsv.py": (
        "video,question,option_0,option_1,answer",
        '{video},"what is it, a star ?",red,blue,{n}',
    ),
    "main_retrieval_tsv.py": ("video,caption", '{video},"a star moves, {n}"'),
}


@pytest.fixture
def own(tmp_path, question_bert, monkeypatch, capsys):
    """Run the command on a table of five clips, with a tiny network; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    for number in range(5):
        write_video(tmp_path / "clips" / f"-c{number}.mp4", frames=4)
    tiny = {"vis_backbone_size": "demo", "vis_backbone_init": "random", "path_ckpt": "", "deepspeed": False}
    tiny |= {"txt_backbone": question_bert, "fusion_encoder": question_bert, "txt_backbone_rand_init": True}
    tiny |= {"fusion_encoder_rand_init": True, "size_img": 32, "size_frame": 2, "n_workers": 0}
    tiny |= {"device": "cpu", "max_steps": 1, "path_output": tmp_path / "out"}

    def make(table: str, *more: str) -> str:
        (tmp_path / "clips" / "mine.csv").write_text(table, encoding="utf-8-sig")
        keys = [word for key, value in tiny.items() for word in (f"--{key}", str(value))]
        own_data.main(["clips/mine.csv", "--frames", "3", "--workers", "0", "--overwrite", *more, *keys])
        return capsys.readouterr().out

    return make


def table(head: str, row: str, videos: int = 5) -> str:
    return "\n".join([head, *(row.format(video=f"-c{n}.mp4", n=n % 2) for n in range(videos))]) + "\n"


@pytest.mark.parametrize("script", TABLES)
def test_one_command_then_the_printed_one(own, monkeypatch, tmp_path, script):
    said = own(table(*TABLES[script]))
    assert "train 3 of 3 videos, val 1 of 1 videos, test 1 of 1 videos" in said
    check, command, *ranked = [line for line in said.splitlines() if line.startswith("    python ")]
    assert len(ranked) == (script == "main_retrieval_tsv.py")
    assert check.split()[:2] == ["python", "_tools/check_data.py"]
    python, named, *arguments = command.split()
    assert (python, named) == ("python", script)
    monkeypatch.setattr(sys, "argv", [named, *arguments])
    next(module for module in SCRIPTS if f"{module.__name__}.py" == named).main()
    [row] = [json.loads(line) for path in (tmp_path / "out").glob("_*/eval.jsonl") for line in path.open()]
    figures = {"val_pairs", "test_pairs"} if ranked else {"val_acc", "test_acc"}  # one pair finds nothing
    assert figures <= row.keys()


def test_splits_of_the_table_and_answers_as_text(own, tmp_path):
    rows = ["-c0.mp4,train,red,blue,blue", "-c1.mp4,train,red,blue,0", "-c2.mp4,valid,red,blue,1"]
    said = own("\n".join(["video,split,option_0,option_1,answer", *rows, "-c3.mp4,TEST,red,blue,", ""]))
    made = json.loads((tmp_path / "_data/txt_mine-mc.json").read_text())
    assert [item["answer"] for split in ("train", "val", "test") for item in made[split]] == [1, 0, 1, -1]
    assert made["train"][0] == {
        "video": "-c0", "question": "", "option_0": "red", "option_1": "blue", "answer": 1,
    }  # fmt: skip
    config = json.loads((tmp_path / "_data/args_mine-mc.json").read_text())
    assert (config["type"], config["size_option"], config["size_batch"]) == ("qamc", 2, 2)
    assert "python main_qamc_tsv.py --config _data/args_mine-mc.json" in said


def test_withheld_answers_are_predicted(own, monkeypatch, tmp_path):
    """The run trains, and writes what it predicts; no accuracy is made up."""
    rows = [f"-c{n}.mp4,{split},red,blue,{answer}" for n, (split, answer) in enumerate(
        [("train", 1), ("train", 0), ("val", 1), ("test", ""), ("test", "")]
    )]  # fmt: skip
    own("\n".join(["video,split,option_0,option_1,answer", *rows, ""]))
    monkeypatch.setattr(sys, "argv", ["x.py", "--config", "_data/args_mine-mc.json"])
    main_qamc_tsv.main()
    run = tmp_path / "out" / "latest"
    [row] = [json.loads(line) for line in (run / "eval.jsonl").open()]
    assert "val_acc" in row and [name for name in row if name.startswith("test_")] == ["test_questions"]
    predicted = [json.loads(line) for line in (run / "predictions_test_1.jsonl").open()]
    assert [(line["answer"], line["right"], len(line["best"])) for line in predicted] == [(None, None, 2)] * 2
    assert (
        "test: the file has no answers: the split is predicted, without accuracy"
        in (run / "log.txt").read_text()
    )


def test_clips_of_one_video_and_a_video_that_cannot_be_read(own, tmp_path):
    (tmp_path / "clips" / "gone.mp4").write_bytes(b"<html>")
    rows = [f"-c0.mp4,part{n},0.0{4 * n},0.{8 + 4 * n:02d},text {n}" for n in range(3)]
    said = own("\n".join(["video,id,start,end,caption", *rows, "gone.mp4,,,,a page", ""]))
    assert "1 rows left out: their videos cannot be read, see img_mine.failures.tsv" in said
    made = json.loads((tmp_path / "_data/txt_mine-retrieval.json").read_text())
    assert sorted(item["video"] for items in made.values() for item in items) == ["part0", "part1", "part2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video,question,answer\n", "has no row"),
        ("clip,question,answer\na,b,c\n", "needs `video`"),
        ("video,title\na.mp4,b\n", "needs `question` and `answer`"),
        ("video,question,answer\n-c0.mp4,,red\n", "line 2: its question is empty"),
        ("video,question,answer\n-c0.mp4,what ?,\n", "rows of train have no answer"),
        ("video,question,answer\n-c0.mp4,a [MASK],x\n-c1.mp4,what ?,x\n", "1 of 2 questions have a"),
        ("video,option_0,option_1,answer\n-c0.mp4,a,b,2\n", "line 2: its answer '2' is none of"),
        ("video,option_0,option_1,answer\n-c0.mp4,1,0,1\n", "line 2: its answer '1' may be several of"),
        ("video,option_0,option_2,answer\n-c0.mp4,a,b,0\n", "option_0, option_1 and so on"),
        ("video,caption,split\n-c0.mp4,a,all\n", "line 2: its split 'all' is none of"),
        ("video,caption,split\n-c0.mp4,a,val\n-c1.mp4,a,\n", "some rows have a split"),
        ('video,caption\n-c0.mp4,"a\n', "not readable as UTF-8 CSV"),
        ("video,caption\n-c0.mp4,a, b\n", "line 2: 3 fields, not 2: a text with commas"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(own, content, message):
    with pytest.raises(UserError, match=message):
        own(content)


def test_an_unknown_key_and_a_name_that_is_none(own):
    with pytest.raises(UserError, match="did you mean 'size_img'"):
        own(table(*TABLES["main_retrieval_tsv.py"]), "--size_imgs", "3")
    with pytest.raises(UserError, match="is not a valid dataset name"):
        own(table(*TABLES["main_retrieval_tsv.py"]), "--name", "../x")


def test_splits_are_drawn_by_video_and_the_same_every_time():
    videos = [f"v{n}" for n in range(100)] * 3
    shares = {"val": 0.1, "test": 0.2}
    found = draw_splits(videos, shares, 1)
    counts = [list(found.values()).count(split) for split in ("train", "val", "test")]
    assert counts == [70, 10, 20] and found == draw_splits(videos[::-1], shares, 1)
    assert found != draw_splits(videos, shares, 2)
    assert sorted(draw_splits(["a", "b", "c"], shares, 0).values()) == ["test", "train", "val"]
    assert set(draw_splits(["a"], shares, 0).values()) == {"train"}
    with pytest.raises(UserError, match="between 0 and 1"):
        draw_splits(videos, {"val": 2.0}, 0)


def test_the_log_of_a_run_says_all_that_its_result_hangs_on(own, monkeypatch, tmp_path):
    own(table(*TABLES["main_qaoe_tsv_mlm_head.py"]))
    monkeypatch.setattr(sys, "argv", ["x.py", "--config", "_data/args_mine-qa.json", "--logging_steps", "1"])
    main_qaoe_tsv_mlm_head.main()
    latest = tmp_path / "out" / "latest"
    assert latest.is_symlink() and (latest / "args.json").is_file()
    log = (latest / "log.txt").read_text()
    for part in (
        r"commit \w+",
        r"python 3\.\d+",
        r"torch \d",
        "this process: .*cpu",
        "train: 3 questions",
        "step 1: loss",
    ):
        assert re.search(part, log), part
    assert re.search(r"INFO finished in 0:0\d:\d\d$", log.strip())
