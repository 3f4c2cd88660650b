"""Public annotation files, as they are and with their quirks, end up in what the scripts read.

pytest tests/test_annotations.py
"""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import annotations
import eval_retrieval_tsv
import main_pretrain_yaml
import main_qamc_tsv
import main_qamc_tsv_mlm_gen_ans_idx
import main_qaoe_tsv_lsmdc_fib
import main_qaoe_tsv_mlm_head
import main_retrieval_tsv
from _tools.convert.files import Public
from dataset import PretrainCorpus
from engine.processes import choose_device
from lib import Config, UserError, World
from media.frames import Transform
from media.tokens import Tokens
from tasks.qa.kinds import FillInTheBlank, MultipleChoice, OpenEnded, OptionNumber
from tasks.qa.questions import question_loaders
from tests.conftest import write_videos

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {  # by what a task's name has
    "retrieval": main_retrieval_tsv,
    "-mc": main_qamc_tsv,
    "-action": main_qamc_tsv_mlm_gen_ans_idx,
    "-transition": main_qamc_tsv_mlm_gen_ans_idx,
    "-fib": main_qaoe_tsv_lsmdc_fib,
    "": main_qaoe_tsv_mlm_head,
}
QUIRKS = 'a "red" star, naïve 猫 \u2028 moves\x85'  # two characters that Python takes for line ends
BOM = "\ufeff"


@pytest.fixture
def data(tmp_path):
    """`_data` with frames of clip0 .. clip5 under every dataset's name."""
    folder = tmp_path / "_data"
    folder.mkdir()
    for dataset in ("msrvtt", "msvd", "tgif", "lsmdc", "didemo", "webvid", "cc3m"):
        write_videos(folder, dataset)
    return folder


def rename(path, names):
    """Give the rows of a frames file other ids."""
    rows = path.read_bytes().splitlines()
    rows = [name.encode() + b"\t" + row.split(b"\t", 1)[1] for name, row in zip(names, rows, strict=False)]
    path.write_bytes(b"\n".join(rows) + b"\n")


def table(rows, delimiter=","):
    """As CSV writers make it, with CRLF."""
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


def convert(name, data, files, *more):
    public = data.parent / "public"
    public.mkdir(exist_ok=True)
    for file, text in files.items():
        text = text if isinstance(text, str) else json.dumps(text)
        (public / file).write_bytes(text.encode())
    annotations.main([name, str(public), "--data", str(data), *more])


def read(data, task):
    return json.loads((data / f"txt_{task}.json").read_text(encoding="utf-8"))


def load(data, task, kind, bert, **config):
    """The batch of every split, as its script reads it."""
    config = Config(
        data_dir=str(data),
        task=task,
        txt_backbone=str(bert),
        size_frame=2,
        size_img=32,
        n_workers=0,
        **config,
    )
    loaders = question_loaders(config, World(choose_device("cpu")), Tokens(str(bert), config.size_txt), kind)
    return {split: next(iter(loader.epoch(0))) for split, loader in loaders.items()}


# ---- Captions ----


def corpus(data, name, bert):
    return PretrainCorpus(
        data / f"{name}.yaml", name, Tokens(str(bert), 20), Transform(["pad_resize"], 32), 2
    )


def test_webvid(data, question_bert, capsys):
    rows = [["videoid", "contentUrl", "duration", "page_dir", "name"]]
    rows += [[f"clip{n}", "https://x/y.mp4", "PT00H00M10S", "0_1", f"{n} {QUIRKS}"] for n in (4, 0, 7)]
    convert("webvid-train", data, {"results_2M_train.csv": BOM + table(rows)})
    made = corpus(data, "train_webvid2.5m_10", question_bert)
    assert [made.read(i, None)["id"] for i in range(len(made))] == ["clip0", "clip4"]
    assert made.caption(0, 4, 0, "clip4") == " ".join(f"4 {QUIRKS}".split())
    said = capsys.readouterr().out
    assert "1 captions without a row: clip7" in said and "4 rows without a caption: clip1" in said


def test_cc3m_of_several_frames_files(data, question_bert):
    rename(data / "img_cc3m.tsv", ["00000000", "00000002"])
    rename(data / "img_webvid.tsv", ["00000001"])
    lines = [f"red {n} “{QUIRKS}\thttp://x/{n}.jpg" for n in range(3)]
    frames = [str(data / "img_cc3m.tsv"), str(data / "img_webvid.tsv")]
    convert("cc3m-train", data, {"Train_GCC-training.tsv": "\r\n".join(lines)}, "--frames", *frames)
    made = corpus(data, "train_cc3m_10", question_bert)
    assert made.is_image
    assert [made.read(i, None)["id"] for i in range(3)] == ["00000000", "00000002", "00000001"]
    assert made.caption(1, 0, 0, "00000001").startswith("red 1 “a")
    convert("cc3m-val", data, {"Validation_GCC-1.1.0-Validation.tsv": lines[0]}, "--frames", frames[0])
    assert len(corpus(data, "val_cc3m", question_bert)) == 0
    rename(data / "img_cc3m.tsv", ["03318333"])  # as the published ids go on
    (data / "img_cc3m.lineidx").unlink()
    convert("cc3m-val", data, {}, "--frames", frames[0])
    assert len(corpus(data, "val_cc3m", question_bert)) == 1


MSRVTT = {
    "videos": [
        {"video_id": f"video{n}", "split": split}
        for n, split in enumerate(["train"] * 9 + ["test", "validate", "test", "test"])
    ],
    "sentences": [
        {"video_id": f"video{n}", "caption": f"{n} {text}", "sen_id": 2 * n}
        for n in range(13)
        for text in ("one", QUIRKS)
    ],
}


def test_msrvtt_by_its_own_split(data, capsys):
    convert("msrvtt-retrieval", data, {"train_val_videodatainfo.json": MSRVTT})
    made = read(data, "msrvtt-retrieval")
    assert {split: len(rows) for split, rows in made.items()} == {"train": 18, "val": 2, "test": 6}
    assert made["test"][0] == {"video": "video9", "caption": "9 one"}
    assert "missing: video0, video1" in capsys.readouterr().out


def test_msrvtt_9k_and_1k_a(data, capsys):
    train = table([["video_id"], *([f"video{n}"] for n in range(10))])
    test = table([["key", "vid_key", "video_id", "sentence"], ["ret0", "msr12", "video12", QUIRKS]])
    files = {"MSRVTT_data.json": MSRVTT, "MSRVTT_train.9k.csv": train, "MSRVTT_JSFUSION_test.csv": BOM + test}
    convert("msrvtt-retrieval", data, files)
    made = read(data, "msrvtt-retrieval")
    assert made["test"] == [{"video": "video12", "caption": QUIRKS}]
    assert [row["video"] for row in made["val"]] == ["video9"] * 2  # listed, but of videodatainfo's test
    assert {row["video"] for row in made["train"]} == {f"video{n}" for n in range(9)}
    said = capsys.readouterr().out
    assert any(line.split() == ["train", "18", "140200", "9", "9"] for line in said.splitlines())
    for role, file in {"info": "MSRVTT_data.json", "train": "MSRVTT_train.9k.csv"}.items():
        assert f"{role}: {data.parent / 'public' / file}" in said
    (data.parent / "public/MSRVTT_JSFUSION_test.csv").unlink()
    with pytest.raises(UserError, match=r"is needed with MSRVTT_JSFUSION_test\.csv: .* --file test=PATH"):
        convert("msrvtt-retrieval", data, {})
    listed = table([["video_id"], ["video1"], ["video77"]])
    with pytest.raises(UserError, match=r"1 videos of .* the first video77; if that is two files"):
        convert("msrvtt-retrieval", data, {**files, "MSRVTT_train.9k.csv": listed})


def test_lsmdc_retrieval(data, capsys):
    line = 'clip{}\t00.00\t00.01\t00.00\t00.01\tSOMEONE says "no\tmore, naïvely.\r\n'
    names = ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv")
    nothing = "clip5\t00.00\t00.01\t00.00\t00.01\t \r\n"
    convert("lsmdc-retrieval", data, {name: line.format(n) + nothing for n, name in enumerate(names)})
    assert "val: 1 empty captions are left out, of clip5" in capsys.readouterr().out
    text = 'SOMEONE says "no more, naïvely.'
    assert read(data, "lsmdc-retrieval") == {
        split: [{"video": f"clip{n}", "caption": text}] for n, split in enumerate(("train", "val", "test"))
    }


def test_didemo_joins_the_sentences_of_a_video(data):
    moments = [
        {
            "annotation_id": n,
            "description": f"{n}\n{QUIRKS}",
            "video": f"1@N02_{n // 2}_ab.mov",
            "times": [[0, 0]],
        }
        for n in range(4)
    ]
    convert("didemo-retrieval", data, {f"{split}_data.json": moments for split in ("train", "val", "test")})
    text = " ".join(QUIRKS.split())
    assert read(data, "didemo-retrieval")["test"] == [
        {"video": "1@N02_0_ab", "caption": [f"0 {text}", f"1 {text}"]},
        {"video": "1@N02_1_ab", "caption": [f"2 {text}", f"3 {text}"]},
    ]


# ---- Questions ----


def test_msrvtt_qa(data, question_bert):
    rename(data / "img_msrvtt.tsv", [f"video{n}" for n in range(6)])
    words = ["red", "blue", "red", "green"]
    rows = [
        {"answer": word, "category_id": 1, "id": n, "question": "what color is the star?", "video_id": n}
        for n, word in enumerate(words)
    ]
    late = [{**rows[0], "answer": "circle"}]
    convert(
        "msrvtt-qa",
        data,
        {"train_qa.json": BOM + json.dumps(rows), "val_qa.json": rows, "test_qa.json": late},
    )
    made = read(data, "msrvtt-qa")
    assert made["vocab"] == ["blue", "green", "red"]
    assert [row["answer"] for row in made["train"]] == [2, 0, 2, 1]
    assert made["test"] == [{"video": "video0", "question": "what color is the star?", "answer": -1}]
    rows.append({**late[0], "video_id": 5})
    convert("msrvtt-qa", data, {"train_qa.json": rows})
    batches = load(data, "msrvtt-qa", OpenEnded, question_bert, type="qaoe", dataset="msrvtt")
    assert [len(batches[split]["id"]) for split in ("train", "val", "test")] == [5, 4, 1]
    tokens = Tokens(str(question_bert), 20)
    assert batches["test"]["answer"].tolist() == [tokens.one("circle")]


def test_msvd_qa_by_its_mapping(data, question_bert):
    rename(data / "img_msvd.tsv", ["7xNG7qGY9rw_14_29", "-4wsuPCjDBc_5_15"])
    rows = [{"answer": "red", "id": 1, "question": "what moves?", "video_id": 2}]
    files = {f"{split}_qa.json": rows for split in ("train", "val", "test")}
    files["youtube_mapping.txt"] = "7xNG7qGY9rw_14_29 vid1\r\n-4wsuPCjDBc_5_15 vid2\r\n"
    convert("msvd-qa", data, files)
    batches = load(data, "msvd-qa", OpenEnded, question_bert, type="qaoe", dataset="msvd")
    assert batches["test"]["id"] == ["-4wsuPCjDBc_5_15"] and batches["test"]["valid"].all()
    with pytest.raises(UserError, match=r"youtube_mapping\.txt has no 'vid3'"):
        convert("msvd-qa", data, {"val_qa.json": [{**rows[0], "video_id": 3}]})


def tgif_rows(columns, *values):
    rows = [[f"clip{n}", f'what "is"\tthe {n} ?', *values, str(n)] for n in range(6)]
    return table([["gif_name", "question", *columns, "key"], *rows], "\t")


@pytest.mark.parametrize("task", ["action", "transition"])
def test_tgif_choices(data, question_bert, task):
    text = tgif_rows(["a1", "a2", "a3", "a4", "a5", "answer"], "red", "blue", 'a "star"', "up", "down", 2)
    files = {f"{split}_{task}_question.csv": text for split in ("Train", "Test")}
    convert(f"tgif-{task}", data, files, "--val_share", "0.34")
    made = read(data, f"tgif-{task}")
    assert [len(made[split]) for split in ("train", "val", "test")] == [4, 2, 6]
    assert made["test"][1] == {
        "video": "clip1",
        "question": 'what "is"\tthe 1 ?',
        **{f"option_{n}": word for n, word in enumerate(["red", "blue", 'a "star"', "up", "down"])},
        "answer": 2,
    }
    settings = {"type": "qamc", "dataset": "tgif", "size_txt": 60}
    batches = load(data, f"tgif-{task}", OptionNumber, question_bert, **settings)
    assert len(set(batches["test"]["answer"].tolist())) == 1


def test_tgif_frame(data, question_bert):
    text = tgif_rows(["answer", "type"], "red", "color")
    convert("tgif-frame", data, {f"{split}_frameqa_question.csv": text for split in ("Train", "Test")})
    made = read(data, "tgif-frame")
    assert (made["vocab"], made["test"][0]["type"], made["test"][0]["answer"]) == (["red"], "color", 0)
    batches = load(data, "tgif-frame", OpenEnded, question_bert, type="qaoe", dataset="tgif")
    assert (batches["test"]["answer"] >= 0).all()


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_msrvtt_mc(data, question_bert, kind):
    options = ["red", QUIRKS, "up", "down", "star"]
    text = json.dumps({"qid": "0", "clip_name": "clip2", "options": options, "answer": 1}) + "\n"
    if kind == "csv":
        text = BOM + table([["video_id", "a1", "a2", "a3", "a4", "a5", "answer"], ["clip2", *options, 1]])
    convert("msrvtt-mc", data, {f"MSRVTT_MC_test.{kind}": text})
    assert read(data, "msrvtt-mc2")["test"][0]["option_1"] == QUIRKS
    settings = {"type": "qamc", "dataset": "msrvtt", "size_epoch": 0, "size_txt": 40}
    assert load(data, "msrvtt-mc2", MultipleChoice, question_bert, **settings)["test"]["answer"].tolist() == [
        1
    ]


@pytest.mark.parametrize("name", ["MSR_MC_test.csv", "msrvtt_mc_test.json"])
def test_msrvtt_mc_of_jsfusion_and_of_singularity(data, name):
    """JSFusion: a table with tabs, videos called msr2; Singularity and VindLU: five captions of a video."""
    rename(data / "img_msrvtt.tsv", ["video2", "video7010"])
    options = [["red", QUIRKS, "up", "down", "star"], ["a", "b", "c", "d", "e"]]
    if name.endswith("json"):
        files = [("video2.mp4", options[0], 1), ("video7010.mp4", options[1], 4)]
        text = json.dumps([{"video": v, "caption": o, "answer": a} for v, o, a in files])
    else:
        rows = [["", "key", "vid_key", "a1", "a2", "a3", "a4", "a5", "answer"]]
        rows += [[0, "ret0", "msr2", *options[0], 1], [1, "ret1", "msr7010", *options[1], 4]]
        text = table(rows, "\t")
    convert("msrvtt-mc", data, {name: text})
    made = read(data, "msrvtt-mc2")["test"]
    assert [(row["video"], row["answer"]) for row in made] == [("video2", 1), ("video7010", 4)]
    assert [made[0][f"option_{n}"] for n in range(5)] == options[0]


def test_lsmdc_choices_as_they_are_published(data, question_bert):
    """Train and val have no answer: the right sentence comes first, and is not to stay there."""
    times = "00.00.51.926\t00.00.54.129\t00.00.51.815\t00.00.54.229"
    line = "1001_American_Beauty_00.00.51.926-00.00.54.{}\t" + times + "\tright {}\tw1\tw2\tw3\tw4{}\r\n"
    untold = "".join(line.format(129 + n, n, "") for n in range(200))
    files = {f"LSMDC16_multiple_choice_{split}.csv": untold for split in ("train", "valid")}
    told = "".join(line.format(129 + n, n, "\t1") for n in range(3))
    convert("lsmdc-mc", data, {**files, "LSMDC16_multiple_choice_test_randomized.csv": told})
    made = read(data, "lsmdc-mc")
    assert [row["answer"] for row in made["test"]] == [0, 0, 0]
    for split in ("train", "val"):
        assert made[split][1]["video"] == "1001_American_Beauty_00.00.51.926-00.00.54.130"
        for number, row in enumerate(made[split]):
            options = [row[f"option_{n}"] for n in range(5)]
            assert options[row["answer"]] == f"right {number}"
            assert sorted(options) == sorted([f"right {number}", "w1", "w2", "w3", "w4"])
        counts = [sum(row["answer"] == n for row in made[split]) for n in range(5)]
        assert min(counts) > 20
    convert("lsmdc-mc", data, {})
    assert read(data, "lsmdc-mc") == made


def test_didemo_has_one_id_a_video(data, capsys):
    names = ["11@N01_1_aa.mov", "22@N01_2_b.", "33@N01_3_c.3g2", "44@N01_4_d.m2ts", "55@N01_5_e.mp4"]
    named = enumerate([*names, "22@N01_2_b.mp4"])
    moments = [{"video": name, "description": f"sentence {n}"} for n, name in named]
    rename(data / "img_didemo.tsv", ["11@N01_1_aa", "22@N01_2_b", "33@N01_3_c", "44@N01_4_d", "55@N01_5_e"])
    convert("didemo-retrieval", data, {f"{split}_data.json": moments for split in ("train", "val", "test")})
    made = read(data, "didemo-retrieval")["test"]
    assert len(made) == 5 and made[1]["caption"] == ["sentence 1", "sentence 5"]
    assert "missing:" not in capsys.readouterr().out


@pytest.mark.parametrize("first", [0, 1])
def test_lsmdc_choices(data, question_bert, first):
    line = 'clip{}\tSOMEONE\tred "x\tblue\tup, up\tdown\tnaïve\t{}\r\n'
    text = "".join(line.format(n, n + first) for n in range(5))
    files = {f"LSMDC16_multiple_choice_{name}.csv": text for name in ("train", "valid", "test_randomized")}
    convert("lsmdc-mc", data, files)
    batches = load(data, "lsmdc-mc", MultipleChoice, question_bert, type="qamc", dataset="lsmdc")
    assert batches["test"]["answer"].tolist() == [0, 1, 2, 3, 4]
    assert read(data, "lsmdc-mc")["val"][4]["option_0"] == 'red "x'
    with pytest.raises(UserError, match="the right option's number"):
        convert("lsmdc-mc", data, {"LSMDC16_multiple_choice_valid.csv": line.format(0, 7)})


def test_lsmdc_blanks(data, question_bert):
    text = "clip1\t00.1\t00.2\tthe red star moves up\tthe red _____ moves  up\tStar\r\n"
    convert("lsmdc-fib", data, {f"LSMDC16_FIB_{split}.csv": text for split in ("train", "valid", "test")})
    want = {"video": "clip1", "question": "the red [MASK] moves up", "answer": 0}
    assert read(data, "lsmdc-fib")["test"] == [want]
    batches = load(data, "lsmdc-fib", FillInTheBlank, question_bert, type="qaoe", dataset="lsmdc")
    assert batches["train"]["answer"].tolist() == [Tokens(str(question_bert), 9).one("star")]


# ---- What cannot be used ----


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("msrvtt_qa", {}, "did you mean 'msrvtt-qa'"),
        ("msrvtt-qa", {}, r"has no train_qa.json or .* --file train=PATH"),
        ("msrvtt-qa", {"train_qa.json": "[{]"}, "is not JSON"),
        ("msrvtt-qa", {"train_qa.json": [{"video": 1}]}, "do not have the published form"),
        ("webvid-val", {"results_2M_val.csv": "id,text\n1,2\n"}, "not .'videoid', 'name'."),
        ("webvid-val", {"results_2M_val.csv": "videoid,name\n1,a, b\n"}, "line 2: 3 fields, not 2"),
        ("cc3m-val", {"Validation_x.tsv": "no tab\n"}, "line 1: 1 fields"),
        (
            "tgif-action",
            {"Train_action_question.csv": tgif_rows(["a1", "a2", "a3", "a4", "a5", "answer"], *"abcdef")},
            "do not have the published form .*invalid literal",
        ),
        (
            "msrvtt-mc",
            {"mc_test.json": [{"video": "video1", "options": ["red", None], "answer": 0}]},
            "question 0 of test: its option_1 is None, not a string",
        ),
        ("msrvtt-mc", {"MC_test.csv": 'video_id,a1,a2,answer\nvideo1,"red,up,0\n'}, "line 2 is not readable"),
        ("msvd-qa", {"youtube_mapping.txt": "vid1\n"}, "a line is a video's name, a space, its number"),
        ("lsmdc-fib", {"fib_train.csv": "a\tb\tc\nclip0\tno blank\tword\n"}, "line 2: no field has a blank"),
    ],
)
def test_other_files_say_what_is_wrong(data, name, files, message):
    with pytest.raises(UserError, match=message):
        convert(name, data, files)


def test_a_file_of_another_name(data):
    rows = [{"answer": "red", "id": 1, "question": "what moves?", "video_id": 2}]
    other = data.parent / "mine.json"
    other.write_text(json.dumps(rows))
    files = [f"--file={split}={other}" for split in ("train", "val", "test")]
    convert("msrvtt-qa", data, {}, *files)
    assert read(data, "msrvtt-qa")["val"][0]["video"] == "video2"
    with pytest.raises(UserError, match="--file 'trian' is unknown; did you mean 'train'"):
        convert("msrvtt-qa", data, {}, *files, f"--file=trian={other}")


def test_a_file_that_is_there_twice_is_not_guessed(data):
    """As where MSRVTT-QA and MSVD-QA lie beside each other, whose files have the same names."""
    for folder in ("MSRVTT-QA", "MSVD-QA"):
        (data.parent / "public" / folder).mkdir(parents=True)
        (data.parent / "public" / folder / "train_qa.json").write_text("[]")
    with pytest.raises(UserError, match=r"MSVD-QA/train_qa\.json: several files match: .* --file train=PATH"):
        convert("msrvtt-qa", data, {})
    (data.parent / "public/MSRVTT-QA/train_qa.json").rename(data.parent / "public/MSRVTT-QA/._train_qa.json")
    assert Public(data.parent / "public").find("train", "*train_qa.json").parent.name == "MSVD-QA"


def test_numbered_frames_files_are_all_read_in_their_order(data):
    for number in (10, 2):
        shutil.copy(data / "img_webvid.tsv", data / f"img_webvid.{number}.tsv")
        rename(data / f"img_webvid.{number}.tsv", [f"{number}_{row}" for row in range(6)])
    rows = [["videoid", "name"], ["10_3", "a star"], ["2_0", "a red star"]]
    convert("webvid-val", data, {"results_2M_val.csv": table(rows)})
    lines = (data / "val_webvid2.5m.linelist.tsv").read_text().splitlines()
    assert lines == ["0\t0\t0", "1\t3\t0"]


# ---- Each in its script, by its config ----

QA = [{"video_id": n, "question": "what moves?", "answer": "star", "id": n} for n in range(1, 4)]
CHOICE = ["a1", "a2", "a3", "a4", "a5", "answer"], "red", "blue", "star", "up", "down", 2
LSMDC = ("training", "val", "test_1000")


def of_splits(pattern, content, splits=("train", "val", "test")):
    """The same content under the name of each split."""
    return {pattern.format(split): content for split in splits}


FILES = {
    "msrvtt-retrieval": {"MSRVTT_data.json": MSRVTT},
    "lsmdc-retrieval": of_splits(
        "LSMDC16_annos_{}.csv",
        "".join(f"clip{n}\t0\t1\t0\t1\tSOMEONE {n} moves.\r\n" for n in range(3)),
        LSMDC,
    ),
    "didemo-retrieval": of_splits(
        "{}_data.json", [{"video": f"clip{n % 3}.mov", "description": f"star {n}"} for n in range(6)]
    ),
    "msrvtt-qa": of_splits("{}_qa.json", QA),
    "msvd-qa": of_splits("{}_qa.json", QA)
    | {"youtube_mapping.txt": "".join(f"clip{n} vid{n}\n" for n in range(6))},
    "msrvtt-mc": {
        "mc_test.json": [{"video": "video1", "options": ["red", "a", "up", "down", "star"], "answer": 4}] * 3
    },
    "tgif-action": of_splits("{}_action_question.csv", tgif_rows(*CHOICE), ("Train", "Test")),
    "tgif-transition": of_splits("{}_transition_question.csv", tgif_rows(*CHOICE), ("Train", "Test")),
    "tgif-frame": of_splits("{}_frameqa_question.csv", tgif_rows(["answer"], "red"), ("Train", "Test")),
    "lsmdc-mc": of_splits("LSMDC16_multiple_choice_{}.csv", "clip1\tred\tblue\tup\tdown\tstar\t1\n" * 3),
    "lsmdc-fib": of_splits("LSMDC16_annos_{}_FIB.csv", "clip1\tthe red _____ moves\tstar\n" * 3),
}


@pytest.fixture
def start(data, question_bert, monkeypatch):
    """Run a script by its published config with a tiny model; returns its run folder."""
    tiny = {"vis_backbone_size": "demo", "vis_backbone_init": "random", "path_ckpt": "", "deepspeed": False}
    tiny |= {"txt_backbone": question_bert, "fusion_encoder": question_bert, "txt_backbone_rand_init": True}
    tiny |= {"size_img": 32, "size_frame": 2, "size_batch": 2, "size_txt": 60, "n_workers": 0}
    tiny |= {"device": "cpu", "fusion_encoder_rand_init": True, "data_dir": data, "path_output": data / "out"}

    def run(script, config, **more):
        settings = {**tiny, **more}
        given = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [script.__name__, "--config", str(ROOT / "_args" / config), *given])
        script.main()
        return max((data / "out").iterdir(), key=lambda path: path.stat().st_mtime_ns)

    return run


@pytest.mark.parametrize("task", FILES)
def test_what_is_written_runs_in_its_script(data, start, task):
    if task.startswith("msrvtt"):
        rename(data / "img_msrvtt.tsv", [f"video{n}" for n in (1, 2, 3, 9, 10, 11)])
    convert(task, data, FILES[task])
    script = next(script for part, script in SCRIPTS.items() if part in task)
    settings = {"max_steps": 1}
    if task == "msrvtt-mc":  # a test split alone, for a checkpoint of retrieval
        convert("msrvtt-retrieval", data, FILES["msrvtt-retrieval"])
        trained = start(main_retrieval_tsv, "args_msrvtt-retrieval.json", max_steps=1)
        [checkpoint] = trained.glob("ckpt_*last.pt")
        settings = {"size_epoch": 0, "path_ckpt": checkpoint}
    folder = start(script, f"args_{task}.json", **settings)
    [found] = [json.loads(line) for line in (folder / "eval.jsonl").open()]
    assert 0 <= found["test_acc"] <= 1
    if script is main_retrieval_tsv:
        [checkpoint] = folder.glob("ckpt_*last.pt")
        folder = start(eval_retrieval_tsv, f"args_{task}.json", path_ckpt=checkpoint)
        [found] = [json.loads(line) for line in (folder / "eval.jsonl").open()]
        assert found["texts"] == {"msrvtt-retrieval": 6}.get(task, 3)


def test_what_is_written_for_pretraining_runs_in_its_script(data, start):
    rename(data / "img_cc3m.tsv", [f"{n:08d}" for n in range(6)])
    rows = [["videoid", "contentUrl", "duration", "page_dir", "name"]]
    rows += [[f"clip{n}", "https://x/y.mp4", "PT00H00M10S", "0_1", f"red star {n}"] for n in range(6)]
    convert("webvid-train", data, {"results_2M_train.csv": table(rows)})
    convert("cc3m-train", data, {"Train_GCC-training.tsv": "a blue star\thttp://x\n" * 6})
    published = json.loads((ROOT / "_args/args_pretrain.json").read_text())["train_yaml"]
    corpora = json.dumps({name: str(data / Path(path).name) for name, path in published.items()})
    settings = {"mvm_target": "pixel", "train_yaml": corpora, "val_yaml": corpora, "max_steps": 2}
    folder = start(main_pretrain_yaml, "args_pretrain.json", **settings)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 1
