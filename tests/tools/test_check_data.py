"""_tools/check_data.py finds what is wrong with the data of any type of config, and nothing in good data."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import check_data
from _tools.convert import checks
from lib import Config
from tests.conftest import write_corpus, write_videos

OPTIONS = {f"option_{i}": f"moves {word}" for i, word in enumerate(["left", "right", "up", "down", "a star"])}
QUESTIONS = {
    "qaoe": [
        {"video": f"clip{i}", "question": "what color is the star ?", "answer": "red"} for i in range(6)
    ],
    "qamc": [{"video": f"clip{i}", "question": "what is it ?", **OPTIONS, "answer": i % 5} for i in range(6)],
    "retrieval": [{"video": f"clip{i}", "caption": f"a red star moves {i}"} for i in range(6)],
}


@pytest.fixture
def check(tmp_path, question_bert, capsys):
    """Check a config; gives the exit code and, by "where, what", the faults' number and the first."""

    def run(*arguments, **config):
        config = {"txt_backbone": str(question_bert), "path_output": str(tmp_path / "out"), **config}
        (tmp_path / "args.json").write_text(json.dumps({"size_frame": 4, "size_txt": 40, **config}))
        with pytest.raises(SystemExit) as exit_:
            check_data.main([str(tmp_path / "args.json"), *arguments])
        text = capsys.readouterr().out
        counts, firsts = text.split("\n\n")[0], text.split("The first of each:")[-1]
        found = {}
        for line in counts.splitlines():
            if line.startswith(("ERROR", "note")):
                found[line.split()[0]] = found.get(line.split()[0], "") + line + "\n"
        return exit_.value.code, found, firsts

    return run


def downstream(tmp_path, kind, items, **more):
    write_videos(tmp_path)
    (tmp_path / "txt_asked.json").write_text(json.dumps(items))
    return {"type": kind, "task": "asked", "dataset": "clips", "data_dir": str(tmp_path), **more}


def test_a_good_corpus_has_no_fault_and_is_drawn(check, tmp_path):
    corpora = {name: str(write_corpus(tmp_path, name)) for name in ("one", "two")}
    code, found, _ = check(
        type="pretrain", train_yaml={"one": corpora["one"]}, val_yaml={"two": corpora["two"]}
    )
    assert (code, found) == (0, {})
    sheet = np.asarray(Image.open(tmp_path / "out/check_pretrain.png"))
    assert sheet.shape[0] == 8 * (64 + check_data.TEXT) and sheet[60, :128].std() > 1


@pytest.mark.parametrize("kind", QUESTIONS)
def test_good_questions_have_no_fault(check, tmp_path, kind):
    items = {"train": QUESTIONS[kind][:3], "test": QUESTIONS[kind][3:]}
    assert check(**downstream(tmp_path, kind, items))[:2] == (0, {})
    assert (tmp_path / "out/check_asked.png").exists()


def lines_of(path):
    return path.read_bytes().splitlines()


def damage_frame(folder):
    rows = lines_of(folder / "a.img.tsv")
    rows[5] = rows[5][:-200]
    (folder / "a.img.tsv").write_bytes(b"\n".join(rows) + b"\n")


def drop_frames(folder):
    rows = lines_of(folder / "a.img.tsv")
    rows[5] = b"\t".join(rows[5].split(b"\t")[:3])
    (folder / "a.img.tsv").write_bytes(b"\n".join(rows) + b"\n")


def old_index(folder):
    rows = lines_of(folder / "a.img.tsv")
    offsets = np.cumsum([0, *(len(row) + 1 for row in rows[:-1])])
    offsets[5] += 1
    (folder / "a.img.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


def other_caption(folder):
    text = (folder / "a.caption.tsv").read_text()
    (folder / "a.caption.tsv").write_text(text.replace("a3\t", "b3\t"))


def same_id(folder):
    for name in ("a.caption.tsv", "a.img.tsv"):
        text = (folder / name).read_bytes()
        (folder / name).write_bytes(text.replace(b"a4\t", b"a3\t"))


def long_caption(folder):
    rows = lines_of(folder / "a.caption.tsv")
    rows[2] = b"a2\t" + json.dumps([{"caption": "red star " * 40}]).encode()
    (folder / "a.caption.tsv").write_bytes(b"\n".join(rows) + b"\n")


def pair_beyond(folder):
    with (folder / "a.linelist.tsv").open("a") as file:
        file.write("12\t0\n")


@pytest.mark.parametrize(
    ("damage", "mark", "what", "first"),
    [
        (damage_frame, "ERROR", "rows that cannot be decoded", r"a\.img\.tsv row 5: frame 5"),
        (drop_frames, "note", "rows of fewer than 4 frames", "row 5: 2"),
        (old_index, "ERROR", "indices that are not their file's", "delete its index"),
        (other_caption, "ERROR", "pairs without the caption of their row", "pair 3: .* belongs to 'b3'"),
        (same_id, "ERROR", "ids that come twice", "a3: 2 times"),
        (long_caption, "note", "captions cut to size_txt 40", "82 tokens"),
        (pair_beyond, "ERROR", "pairs whose row does not exist", r"pair 12: \[0, 12, 0\]"),
        (
            lambda folder: (folder / "a.img.tsv").unlink(),
            "ERROR",
            "files that cannot be used",
            "does not exist",
        ),
    ],
)
def test_what_is_wrong_with_a_corpus(check, tmp_path, damage, mark, what, first):
    path = write_corpus(tmp_path, "a")
    damage(tmp_path)
    code, found, firsts = check(type="pretrain", train_yaml={"a": str(path)})
    assert code == (mark == "ERROR")
    assert what in found[mark]
    assert any(what in line and re.search(first, line) for line in firsts.splitlines())


def test_a_sample_finds_what_is_everywhere(check, tmp_path):
    path = write_corpus(tmp_path, "a")
    rows = [row.split(b"\t")[0] for row in lines_of(tmp_path / "a.img.tsv")]
    (tmp_path / "a.img.tsv").write_bytes(b"\tAAAA\n".join(rows) + b"\tAAAA\n")
    code, found, _ = check("--sample", "3", type="pretrain", train_yaml={"a": str(path)})
    assert code == 1 and found["ERROR"].split()[-2:] == ["3", "3"]


@pytest.mark.parametrize(
    ("kind", "change", "mark", "what"),
    [
        ("qaoe", {"video": "clip9"}, "note", "videos that are missing"),
        ("qaoe", {"answer": "zebra"}, "note", "the answer is not one token"),
        ("qaoe", {"question": "red " * 60}, "note", "questions cut to size_txt 40"),
        ("qaoe", {"answer": 7}, "ERROR", "questions that cannot be used"),
        ("qaoe", {"video": "clip0"}, "note", "that are in train"),
        ("qamc", {"answer": 5}, "ERROR", "questions that cannot be used"),
        ("qamc", {"option_5": "x"}, "ERROR", "questions that cannot be used"),
        ("retrieval", {"caption": 3}, "ERROR", "captions that are no text"),
        ("retrieval", {"caption": " "}, "ERROR", "captions without a word"),
        ("retrieval", {"caption": ["red star", "a star " * 40]}, "note", "captions cut"),
    ],
)
def test_what_is_wrong_with_texts(check, tmp_path, kind, change, mark, what):
    items = {"train": QUESTIONS[kind][:3], "test": [*QUESTIONS[kind][3:5], {**QUESTIONS[kind][5], **change}]}
    code, found, _ = check(**downstream(tmp_path, kind, items))
    assert code == (mark == "ERROR")
    assert what in found[mark]


def test_an_answer_that_is_a_number_is_named(check, tmp_path):
    numbered = [{**item, "answer": i % 2} for i, item in enumerate(QUESTIONS["qaoe"])]
    _, _, firsts = check(**downstream(tmp_path, "qaoe", {"train": numbered, "vocab": ["red", "zebra"]}))
    assert "the answer is not one token: clip1: what color is the star ? zebra" in firsts


def test_ids_that_come_twice_are_found_where_the_file_is_read(check, tmp_path, monkeypatch):
    config = downstream(tmp_path, "retrieval", {"test": QUESTIONS["retrieval"][:5]})
    rows = lines_of(tmp_path / "img_clips.tsv")
    (tmp_path / "img_clips.tsv").write_bytes(b"\n".join([*rows, rows[0]]) + b"\n")
    code, found, firsts = check(**config)
    assert code == 1 and "ids that come twice" in found["ERROR"] and "clip0: 2 times" in firsts
    monkeypatch.setattr("_tools.convert.checks.find_rows", None)  # a sample of a large file does without
    assert check("--sample", "2", **config)[0] == 0


def test_several_configs_are_looked_at_and_one_that_is_at_fault_is_enough(tmp_path, question_bert, capsys):
    write_videos(tmp_path)
    for name, video in (("good", "clip0"), ("bad", "missing")):
        asked = [{"video": video, "question": "what color is the star ?", "answer": "red"}]
        (tmp_path / f"txt_{name}.json").write_text(json.dumps({"test": asked}))
        config = {"type": "qaoe", "task": name, "dataset": "clips", "path_output": str(tmp_path / "out")}
        (tmp_path / f"{name}.json").write_text(json.dumps({**config, "size_frame": 4, "size_txt": 40}))
    paths = [str(tmp_path / f"{name}.json") for name in ("good", "bad")]
    overrides = ["--data_dir", str(tmp_path), "--txt_backbone", str(question_bert)]  # of both
    with pytest.raises(SystemExit) as exit_:
        check_data.main([*paths, *overrides])
    text = capsys.readouterr().out
    assert exit_.value.code == 1
    good, bad = text.split(paths[0])[1].split(paths[1])
    assert "no errors" in good and "no errors" not in bad and "missing" in bad
    with pytest.raises(SystemExit):
        check_data.main([*paths, *overrides, "--sheet", str(tmp_path / "sheet.png")])
    assert "--sheet needs a single config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "kind"), [("tgif-action", "OptionNumber"), ("demo-action", "MultipleChoice")]
)
def test_options_are_numbered_in_the_two_tasks_that_name_their_number(task, kind):
    assert checks.kind_of(Config(type="qamc", task=task), []).__name__ == kind
