"""Questions: files as they should be and as they are, texts that fit and texts that are cut."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from dataset import Loader, Mixture
from lib import Config, UserError, World
from media.batches import Batches
from media.frames import Transform
from media.tokens import Tokens
from media.tsv import BadRow, Videos, find_ids, id2lineidx_path
from tasks.qa.kinds import FillInTheBlank, MultipleChoice, OpenEnded, OptionNumber
from tasks.qa.metric import accuracy
from tasks.qa.questions import Annotation, question_loaders, some_videos
from tasks.qa.texts import Fixed
from tests.conftest import write_videos

OPTIONS = {f"option_{i}": f"moves {word}" for i, word in enumerate(["left", "right", "up", "down", "a star"])}
CHOICE = {"video": "clip1", "question": "what is the red circle ?", **OPTIONS, "answer": 3}
OPEN = {"video": "clip1", "question": "what color is the star ?", "answer": "red"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos(write_videos(tmp_path_factory.mktemp("videos")))


@pytest.fixture(scope="module")
def tokenizer(question_bert):
    return Tokens(str(question_bert), 40)


@pytest.fixture
def ask(tmp_path, videos, question_bert):
    """Questions of a kind, as a file's split."""

    def make(kind, items, split="val", size_txt=40, more=None, text_rules="fixed", **arguments):
        path = tmp_path / "txt_asked.json"
        path.write_text(json.dumps({split: items, **(more or {})}))
        tokens, transform = Tokens(str(question_bert), size_txt), Transform(["img_rand_crop"], 32)
        annotation = Annotation.read(path)
        return kind(
            annotation, split, annotation.splits[split], videos, tokens, transform, size_frame=2,
            text_rules=text_rules, **arguments
        )  # fmt: skip

    return make


def words(questions, index=0, row=None):
    """The text that the model sees, without its padding."""
    sample = questions.sample(index)
    txt, mask = sample["txt"], sample["mask"]
    txt, mask = (txt, mask) if row is None else (txt[row], mask[row])
    assert txt.shape == (questions.tokens.size,)
    assert (txt[mask == 0] == questions.pad).all()
    return " ".join(questions.tokens.tokenizer.convert_ids_to_tokens(txt[mask == 1].tolist()))


def at_place(questions, index=0):
    sample = questions.sample(index)
    return questions.tokens.tokenizer.convert_ids_to_tokens(int(sample["txt"][sample["place"]]))


# -- videos by id


def test_the_index_is_built_when_missing_and_read_when_it_fits(tmp_path):
    path = write_videos(tmp_path)
    videos = Videos(path)
    index = pickle.loads(id2lineidx_path(path).read_bytes())
    assert index == find_ids(path)
    assert list(index) == [f"clip{i}" for i in range(6)]
    assert [videos[name][0] for name in ("clip4", "clip0")] == [b"clip4", b"clip0"]
    assert "clip9" not in videos
    before = id2lineidx_path(path).stat().st_mtime_ns
    shuffled = dict(reversed(index.items()))  # as published ones are not in the file's order
    id2lineidx_path(path).write_bytes(pickle.dumps(shuffled, protocol=2))
    os.utime(id2lineidx_path(path), ns=(before, before))
    assert Videos(path)["clip3"] == videos["clip3"]
    assert id2lineidx_path(path).stat().st_mtime_ns == before


def test_an_index_that_does_not_fit_is_not_used_and_stays_as_it_is(tmp_path):
    path = write_videos(tmp_path)
    index = find_ids(path)
    wrongs = [
        {name: offset + 1 for name, offset in index.items()},
        {name: offset for name, offset in index.items() if name != "clip5"},
        {**index, "clip5": path.stat().st_size + 10},
        {**index, "clip2": index["clip3"]},
        {**index, "clip2": -1},
        {},
    ]
    for wrong in wrongs:
        id2lineidx_path(path).write_bytes(pickle.dumps(wrong))
        assert Videos(path)["clip2"][0] == b"clip2"
        assert pickle.loads(id2lineidx_path(path).read_bytes()) == wrong  # the user may have downloaded it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["img_clips.id2lineidx.pkl", "img_clips.tsv"]


def test_empty_lines_and_lines_without_frames_are_no_videos(tmp_path):
    path = write_videos(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n\n")
    index = Videos(path).rows
    assert list(index) == [f"clip{i}" for i in range(6)]
    written = id2lineidx_path(path).stat().st_mtime_ns
    assert Videos(path)["clip5"][0] == b"clip5"
    assert id2lineidx_path(path).stat().st_mtime_ns == written
    path.write_bytes(whole + b"clip6\t{}\t" + b"A" * 80)  # it has grown since
    assert "clip6" in Videos(path)


class Attack:
    """A pickle that would write a file when it is read."""

    def __reduce__(self):
        return (open, ("attacked", "w"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Attack()), "open"),
        (pickle.dumps({"clip0": np.float64(0)}), "not a dict"),
        (pickle.dumps(["clip0"]), "not a dict"),
        (pickle.dumps({"clip0": "0"}), "not a dict"),
        (pickle.dumps({"clip0": 0})[:-4], "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_an_index_is_data_and_nothing_in_it_is_run(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = write_videos(tmp_path)
    id2lineidx_path(path).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Videos(path)
    assert not (tmp_path / "attacked").exists()


# -- texts


def test_multiple_choice_is_a_text_per_option(ask):
    asked = ask(MultipleChoice, [CHOICE, {**CHOICE, "question": ""}])
    assert words(asked, 0, row=3) == "[CLS] what is the red circle ? moves down [SEP]"
    assert words(asked, 1, row=4) == "[CLS] moves a star [SEP]"
    assert asked.sample(0)["answer"] == 3


def test_option_numbers_are_in_one_text(ask):
    asked = ask(OptionNumber, [CHOICE])
    text = "[CLS] what is the red circle ? [SEP] option 0 : moves left [SEP] option 1 : moves right"
    text += (
        " [SEP] option 2 : moves up [SEP] option 3 : moves down [SEP] option 4 : moves a star [MASK] [SEP]"
    )
    assert words(asked) == text
    assert at_place(asked) == "[MASK]"
    assert asked.sample(0)["answer"] == asked.tokens.one("3")


@pytest.mark.parametrize(
    ("mask_pos", "text"),
    [
        ("append", "[CLS] what color is the star ? answer : [MASK] [SEP]"),
        ("prepend", "[CLS] [MASK] what color is the star ? answer : [SEP]"),
        ("replace", "[MASK] what color is the star ? answer : [SEP]"),
        ("insert", "[CLS] what color is the star ? answer : [MASK] [SEP]"),
    ],
)
def test_places_of_the_mask(ask, mask_pos, text):
    asked = ask(OpenEnded, [OPEN], mask_pos=mask_pos)
    assert words(asked) == text
    assert at_place(asked) == "[MASK]"
    choice = ask(OptionNumber, [CHOICE], mask_pos=mask_pos)
    place = {"append": 38, "prepend": 1, "replace": 0, "insert": 10}[mask_pos]
    assert choice.sample(0)["place"] == place
    assert at_place(choice) == "[MASK]"


@pytest.mark.parametrize("kind", [MultipleChoice, OptionNumber, OpenEnded, FillInTheBlank])
def test_a_prompt_comes_first(ask, kind):
    item = {**CHOICE, "question": "the [MASK] star"}
    if kind in (OpenEnded, FillInTheBlank):
        item["answer"] = "red"
    row = 0 if kind is MultipleChoice else None
    plain, prompted = (words(ask(kind, [item], size_txt=60, use_prompt=on), row=row) for on in (False, True))
    assert prompted.endswith(plain.removeprefix("[CLS]"))
    lead = prompted.removeprefix("[CLS] ").removesuffix(plain.removeprefix("[CLS]")).split()
    assert len(lead) == len(kind.prompt[:-1].split()) + 1  # its last word and the mark after it


def test_a_blank_keeps_its_own_mask(ask):
    asked = ask(FillInTheBlank, [{**OPEN, "question": "the [MASK] star moves up ."}])
    assert words(asked) == "[CLS] the [MASK] star moves up . [SEP]"
    assert asked.sample(0)["place"] == 2


# -- texts by the published rules

LONG = {"video": "clip1", "question": " ".join(["what", "is", "the", *["small"] * 30]), "answer": "red"}
PLACES = ["append", "prepend", "insert", "replace"]


def by_the_table(words: list[str], ending: list[str], mask_pos: str, size: int) -> tuple[list[str], int]:
    """Words cut to size - 1 in their frame, which is not cut; the place of [MASK]."""
    cut = words[: size - 1]
    if mask_pos == "insert":  # the text is padded to size + 2 first
        frame = ["[CLS]", *cut, "[SEP]", *["[PAD]"] * (size - len(cut))]
        frame = [*frame[:10], "[MASK]", *frame[10:]]
        while frame[-1] == "[PAD]":
            frame.pop()
    else:
        frame = {
            "append": ["[CLS]", *cut, *ending, "[MASK]", "[SEP]"],
            "prepend": ["[MASK]", "[CLS]", *cut, "[SEP]"],
            "replace": ["[MASK]", *cut, "[SEP]"],
        }[mask_pos]
    return frame, frame.index("[MASK]")


def check_text(asked, words, place, index=0, row=None):
    sample = asked.sample(index)
    txt, mask = (sample[key] if row is None else sample[key][row] for key in ("txt", "mask"))
    read = asked.tokens.tokenizer.convert_ids_to_tokens(txt.tolist())
    assert read == words + ["[PAD]"] * (len(read) - len(words))
    assert mask.tolist() == [int(word != "[PAD]") for word in read]
    if place >= 0:
        assert sample["place"] == place and asked.reasons[index] == ""
    else:
        assert (asked.reasons[index], sample["answer"]) == ("mask", -1)


@pytest.mark.parametrize("mask_pos", PLACES)
@pytest.mark.parametrize("size", range(3, 45))
def test_published_texts_of_open_ended_questions(ask, mask_pos, size):
    items = [{**LONG, "question": " ".join(LONG["question"].split()[:n])} for n in (1, 4, 9, 10, 14, 33)]
    items.append(OPEN | {"question": "the"})
    asked = ask(OpenEnded, items, size_txt=size, text_rules="published", mask_pos=mask_pos)
    for index, item in enumerate(items):
        check_text(asked, *by_the_table(item["question"].split(), ["answer", ":"], mask_pos, size), index)


@pytest.mark.parametrize("mask_pos", PLACES)
@pytest.mark.parametrize("size", range(12, 60, 3))
def test_published_texts_of_numbered_options(ask, mask_pos, size):
    words = CHOICE["question"].split()
    for i in range(5):
        words += ["[SEP]", "option", str(i), ":", *CHOICE[f"option_{i}"].split()]
    short = {"video": "clip1", "question": "", **{f"option_{i}": "up" for i in range(5)}, "answer": 0}
    few = [word for i in range(5) for word in ("[SEP]", "option", str(i), ":", "up")]
    expected = [by_the_table(text, [], mask_pos, size) for text in (words, few)]
    asked = ask(OptionNumber, [CHOICE, short], size_txt=size, text_rules="published", mask_pos=mask_pos)
    for index, (text, place) in enumerate(expected):
        check_text(asked, text, place, index)


@pytest.mark.parametrize("mask_pos", PLACES)  # without effect
@pytest.mark.parametrize("size", range(3, 20))
def test_published_texts_of_choices_and_blanks(ask, mask_pos, size):
    given = {"size_txt": size, "text_rules": "published", "mask_pos": mask_pos}
    asked = ask(MultipleChoice, [CHOICE], **given)
    for row in range(5):
        words = [*CHOICE["question"].split(), *CHOICE[f"option_{row}"].split()]
        check_text(asked, ["[CLS]", *words, "[SEP]"][: size - 1], 0, row=row)
    sentences = [["[MASK]"], ["the", "[MASK]", "star"], [*["up"] * 12, "[MASK]", "down"]]
    items = [{**OPEN, "question": " ".join(sentence)} for sentence in sentences]
    asked = ask(FillInTheBlank, items, **given)
    for index, sentence in enumerate(sentences):
        text = ["[CLS]", *sentence, "[SEP]"][: size - 1]
        check_text(asked, text, text.index("[MASK]") if "[MASK]" in text else -1, index)


@pytest.mark.parametrize("kind", [MultipleChoice, OptionNumber, OpenEnded, FillInTheBlank])
def test_a_published_prompt_is_a_sequence_of_its_own(ask, kind):
    item = {**CHOICE, "question": "the [MASK] star"}
    if kind in (OpenEnded, FillInTheBlank):
        item["answer"] = "red"
    plain, prompted = (ask(kind, [item], text_rules="published", use_prompt=on).sample(0) for on in (0, 1))
    assert torch.equal(plain["txt"], prompted["txt"]) and "prompt" not in plain
    asked = ask(kind, [item])
    if kind is MultipleChoice:  # texts per option have none
        assert "prompt" not in prompted
        return
    words = asked.tokens.tokenizer.convert_ids_to_tokens(prompted["prompt"].tolist())
    assert (words[0], words[-1]) == ("[CLS]", "[SEP]")
    prompt = "which answer is correct, from [0, 1, 2, 3, 4]?" if kind is OptionNumber else kind.prompt
    assert words[1:-1] == asked.tokens.tokenizer.tokenize(prompt)


def test_published_answers_are_compared_as_they_are_written(ask):
    items = [{**OPEN, "answer": word} for word in ("red", "Red", "RED", " red", "red star", "[UNK]")]
    assert ask(OpenEnded, items, text_rules="published").reasons == ["", *["answer"] * 5]
    assert ask(OpenEnded, items).reasons == ["", "", "", "", "answer", "answer"]


# -- texts that are cut


@pytest.mark.parametrize("mask_pos", ["append", "prepend", "insert", "replace"])
def test_a_long_question_keeps_its_mask_and_its_end(ask, mask_pos, caplog):
    caplog.set_level("INFO", "violet")
    items = [{**OPEN, "question": "what is the " + 30 * "small " + "star ?"}, OPEN]
    asked = ask(OpenEnded, items, size_txt=15, mask_pos=mask_pos)
    text = words(asked).split()
    assert len(text) == 15
    assert text[-1] == "[SEP]" and " ".join(text).count("answer :") + (mask_pos == "insert") >= 1
    assert at_place(asked) == "[MASK]"
    assert "1 questions shortened to size_txt 15" in caplog.text
    assert asked.shortened == [True, False]


def test_options_are_shortened_evenly_before_the_question():
    question, options, fit = list(range(6)), [[1] * 10, [2] * 3, [3] * 8], Fixed.fit
    assert fit(question, options, 27, together=True) == (question, options)
    cut, cuts = fit(question, options, 23, together=True)
    assert (len(cut), [len(o) for o in cuts]) == (6, [7, 3, 7])
    cut, cuts = fit(question, options, 14, together=True)  # not below 4 while the question can give
    assert (len(cut), [len(o) for o in cuts]) == (3, [4, 3, 4])
    cut, cuts = fit(question, options, 5, together=True)
    assert (len(cut), [len(o) for o in cuts]) == (2, [1, 1, 1])
    cut, cuts = fit(question, options, 12, together=False)
    assert (len(cut), [len(o) for o in cuts]) == (6, [6, 3, 6])
    with pytest.raises(UserError, match="leaves 2 tokens for 3 options"):
        fit(question, options, 2, together=True)


def test_every_option_is_in_a_text_that_is_cut(ask):
    long = {f"option_{i}": 20 * f"{w} " for i, w in enumerate(["left", "right", "up", "down", "star"])}
    item = {**CHOICE, **long, "question": 30 * "what "}
    text = words(ask(OptionNumber, [item], size_txt=60))
    assert len(text.split()) == 60
    for i, word in enumerate(["left", "right", "up", "down", "star"]):
        assert f"[SEP] option {i} : {word} {word}" in text
    assert text.endswith("[MASK] [SEP]")
    asked = ask(MultipleChoice, [item], size_txt=25)
    for row, word in enumerate(["left", "right", "up", "down", "star"]):
        assert words(asked, 0, row).endswith(4 * f"{word} " + "[SEP]")
        assert len(words(asked, 0, row).split()) == 25
    with pytest.raises(UserError, match="raise it"):
        ask(OptionNumber, [item], size_txt=25)


@pytest.mark.parametrize("before", [0, 5, 12, 30])
def test_a_long_sentence_keeps_its_blank(ask, before):
    sentence = " ".join([*["up"] * before, "[MASK]", *["down"] * 20])
    asked = ask(FillInTheBlank, [{**OPEN, "question": sentence}], size_txt=12)
    text = words(asked).split()
    assert (len(text), text[0], text[-1]) == (12, "[CLS]", "[SEP]")
    assert at_place(asked) == "[MASK]"
    assert asked.shortened == [True]


# -- answers


def test_answers_by_word_by_number_and_by_text(ask):
    items = [
        OPEN,
        {**OPEN, "answer": 1},
        {**OPEN, "answer": 7, "answer_text": "green"},
        {**OPEN, "answer": -1},
        {**OPEN, "answer": 2},
        {**OPEN, "answer": "purple"},
    ]
    names = ["red", "blue", "green", "", "large star", "purple"]
    for more in (
        {"ans2label": {"red": 0, "blue": 1, "large star": 2}},
        {"vocab": ["red", "blue", "large star"]},
    ):
        asked = ask(OpenEnded, items, more=more)
        assert [asked.answer_name(item) for item in asked.items] == names
        assert [asked.name({}, i) for i in asked.wanted[:3]] == ["red", "blue", "green"]
        assert asked.reasons == ["", "", "", "answer", "answer", "answer"]
        assert asked.wanted[3:] == [-1, -1, -1]
        trained = ask(OpenEnded, items, split="train", more=more)  # as published: kept, without a loss
        assert trained.wanted == asked.wanted


@pytest.mark.parametrize(
    ("kind", "item", "message"),
    [
        (MultipleChoice, {**CHOICE, "answer": 5}, "val question 0: answer 5 is none of its 5 options"),
        (OptionNumber, {**CHOICE, "answer": -2}, "answer -2 is none of its 5 options"),
        (OpenEnded, {**OPEN, "question": None}, "val question 0: its question is None, not a string"),
        (OpenEnded, {**OPEN, "question": float("nan")}, "its question is nan, not a string"),
        (OpenEnded, {**OPEN, "question": 3}, "its question is 3, not a string"),
        (OpenEnded, {**OPEN, "question": ["what"]}, "not a string"),
        (OpenEnded, {**OPEN, "answer_text": None}, "its answer_text is None"),
        (MultipleChoice, {**CHOICE, "option_2": 2}, "its option_2 is 2, not a string"),
        (MultipleChoice, {**CHOICE, "video": None}, "its video None is not an id"),
        (MultipleChoice, {**CHOICE, "video": ["clip1"]}, "is not an id"),
        (MultipleChoice, {**CHOICE, "answer": "left"}, "answer 'left' is none"),
        (MultipleChoice, {**CHOICE, "option_5": "grows"}, "it has 6 options, not 5; set size_option"),
        (OptionNumber, {k: v for k, v in CHOICE.items() if k != "option_2"}, "it has 4 options"),
        (OpenEnded, {**OPEN, "answer": 1}, "neither ans2label nor vocab"),
        (OpenEnded, {"video": "clip1", "question": "what ?"}, "neither an answer nor"),
        (OpenEnded, {"video": "clip1", "answer": "red"}, "has no question"),
        (FillInTheBlank, {**OPEN, "question": "the red star"}, "no question of val can be answered"),
        (OpenEnded, {**OPEN, "video": "clip99"}, "no question of val can be answered"),
    ],
)
def test_faults_of_a_question_are_named_with_their_place(ask, kind, item, message):
    with pytest.raises(UserError, match=message):
        ask(kind, [item])


@pytest.mark.parametrize("kind", [MultipleChoice, OptionNumber, OpenEnded])
def test_a_split_whose_answers_are_withheld_is_predicted(ask, kind, caplog):
    item = {**(CHOICE if kind.has_options else OPEN), "answer": -1}
    questions = ask(kind, [item, {**item, "video": "clip99"}], split="test")
    assert "test: the file has no answers" in caplog.text
    assert questions.reasons == ["", "video"] and questions.sample(0)["answer"] == -1
    rows = [questions.describe(i, True, 1, [1, 0], [0.7, 0.3]) for i in range(2)]
    assert [(row["answer"], row["right"], len(row["best"])) for row in rows] == [(None, None, 2)] * 2
    assert accuracy(rows, "test") == {"questions": 2}
    with pytest.raises(UserError):
        ask(kind, [item], split="train")
    some = [item, {**item, "answer": 1 if kind.has_options else "red"}]
    if kind.has_options:
        with pytest.raises(UserError, match="test question 0: answer -1 is none of its 5 options"):
            ask(kind, some, split="test")
    else:  # an answer that is not on the published list: it counts as wrong
        with pytest.raises(UserError, match="neither ans2label nor vocab"):
            ask(kind, some, split="test")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "txt_x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"val": [OPEN]}).encode())
    assert Annotation.read(tmp_path / "txt_x.json").splits["val"][0]["answer"] == "red"


def test_an_evaluation_goes_on_with_the_splits_that_have_videos(tmp_path, tokenizer, caplog):
    write_videos(tmp_path)
    content = {"val": [{**OPEN, "video": "gone"}], "test": [OPEN]}
    (tmp_path / "txt_asked.json").write_text(json.dumps(content))
    settings = {"data_dir": str(tmp_path), "dataset": "clips", "task": "asked", "n_workers": 0}
    config = Config(size_epoch=0, size_img=32, **settings)
    assert list(question_loaders(config, World(torch.device("cpu")), tokenizer, OpenEnded)) == ["test"]
    assert "no question of val can be answered" in caplog.text and "It is not evaluated" in caplog.text
    (tmp_path / "txt_asked.json").write_text(json.dumps({"val": content["val"]}))
    with pytest.raises(UserError, match="no question of val"):
        question_loaders(config, World(torch.device("cpu")), tokenizer, OpenEnded)


def test_an_answer_number_beyond_the_list_is_named(ask):
    with pytest.raises(UserError, match="answer 9 is none of the 1"):
        ask(OpenEnded, [{**OPEN, "answer": 9}], more={"vocab": ["red"]})


def test_more_options_than_the_tokenizer_counts(ask):
    item = {"video": "clip1", "question": "", **{f"option_{i}": "left" for i in range(6)}, "answer": 0}
    with pytest.raises(UserError, match="no token for the number 5"):
        ask(OptionNumber, [item], size_option=6)


# -- clips


def test_a_missing_video_is_left_out_of_training_and_counts_as_wrong(ask, caplog):
    caplog.set_level("INFO", "violet")
    items = [OPEN, {**OPEN, "video": "clip99"}]
    trained = ask(OpenEnded, items, split="train")  # as published: kept, without a loss
    assert trained.wanted[1] == -1 and trained.read(1, None)["valid"] is False
    assert "1 questions have no loss" in caplog.text
    asked = ask(OpenEnded, items)
    sample = asked.read(1, None)
    assert sample["valid"] is False and sample["answer"] == -1 and not sample["img"].any()
    row = asked.describe(1, False, 1, [asked.tokens.one("red")], [0.5])
    assert (row["right"], row["right_5"], row["unanswerable"]) == (False, False, "video")


def test_a_right_pick_is_right(ask):
    asked = ask(OptionNumber, [{**CHOICE, "type": "direction"}])
    row = asked.describe(0, True, 1, [3, 0, 1, 2, 4], [0.5, 0.2, 0.1, 0.1, 0.1])
    assert (row["right"], row["answer"], row["type"]) == (True, "moves down", "direction")
    assert row["best"][0] == {"answer": "moves down", "probability": 0.5}
    assert not asked.describe(0, False, 1, [3], [0.5])["right"]
    opened = ask(OpenEnded, [OPEN])
    red, blue = opened.tokens.one("red"), opened.tokens.one("blue")
    row = opened.describe(0, True, 2, [blue, red], [0.6, 0.4])
    assert (row["right"], row["right_5"], row["best"][0]["answer"]) == (False, True, "blue")


def test_clips_are_even_in_evaluation_and_random_in_training(ask):
    asked = ask(OpenEnded, [OPEN])
    still, again = asked.read(0, None)["img"], asked.read(0, None)["img"]
    assert still.shape == (2, 3, 32, 32) and torch.equal(still, again)
    drawn = [asked.read(0, np.random.default_rng(i))["img"] for i in range(4)]
    assert len({float(img.sum()) for img in drawn}) > 1


def test_a_bad_row_is_reported_with_its_file(tmp_path, ask):
    path = write_videos(tmp_path)
    row = path.read_bytes().splitlines()
    row[1] = b"clip1\t{}\t" + b"A" * 80
    path.write_bytes(b"\n".join(row) + b"\n")
    asked = ask(OpenEnded, [OPEN, {**OPEN, "video": "clip2"}])
    asked.videos = Videos(path)
    with pytest.raises(BadRow, match=r"img_clips.tsv \(clip1\): frame 0 is not a JPEG.*make_tsv"):
        asked.read(0, None)

    def first(train):
        batches = Batches({"val": 2}, {"val": 2}, train)
        return next(Loader(Mixture({"val": asked}, 1, train), batches, 0, max_bad_ratio=0.5).epoch(1))

    evaluated = first(train=False)
    assert evaluated["valid"].tolist() == [False, True] and not evaluated["img"][0].any()
    assert asked.describe(0, False, 1, [1], [1.0])["unanswerable"] == "row"
    trained = first(train=True)
    assert trained["valid"].all() and trained["id"] == ["clip2", "clip2"]


def test_data_ratio_draws_videos():
    items = [{"video": f"clip{i % 5}", "number": i} for i in range(20)]
    some = some_videos(items, 0.4, seed=1)
    assert len({item["video"] for item in some}) == 2 and len(some) == 8
    assert some == some_videos(items[::-1], 0.4, seed=1)[::-1]
    assert len({tuple(item["number"] for item in some_videos(items, 0.4, seed)) for seed in range(9)}) > 1
    assert some_videos(items, 1.0, seed=1) == items
    assert some_videos(items, 0.01, seed=1)  # one video at least


# -- files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no questions under train, val or test"),
        ({"val": [], "test": []}, "no questions under train, val or test"),
        ({"train": {"a": 1}}, "train is not a list"),
        ({"train": [{"question": "what ?"}]}, "train is not a list"),
        ({"val": [OPEN]}, "no questions under train; --size_epoch 0"),
        ({"train": [], "val": [OPEN]}, "no questions under train; --size_epoch 0"),
    ],
)
def test_empty_and_wrong_files(tmp_path, tokenizer, content, message):
    write_videos(tmp_path)
    (tmp_path / "txt_asked.json").write_text(json.dumps(content))
    config = Config(type="qaoe", data_dir=str(tmp_path), dataset="clips", task="asked", size_img=32)
    with pytest.raises(UserError, match=message):
        question_loaders(config, World(torch.device("cpu")), tokenizer, OpenEnded)


def test_missing_files_are_named(tmp_path, tokenizer):
    config = Config(type="qaoe", data_dir=str(tmp_path), dataset="clips", task="asked")
    world = World(torch.device("cpu"))
    with pytest.raises(UserError, match=r"txt_asked.json does not exist"):
        question_loaders(config, world, tokenizer, OpenEnded)
    (tmp_path / "txt_asked.json").write_text(json.dumps({"train": [OPEN]}))
    with pytest.raises(UserError, match=r"img_clips.tsv does not exist"):
        question_loaders(config, world, tokenizer, OpenEnded)
    write_videos(tmp_path)
    (tmp_path / "txt_asked.json").write_text("{'train': ")
    with pytest.raises(UserError, match="as JSON: Expecting"):
        question_loaders(config, world, tokenizer, OpenEnded)
    (tmp_path / "txt_asked.json").write_text(json.dumps({"train": [OPEN]}))
    evaluate = Config(**{**config.__dict__, "size_epoch": 0})
    with pytest.raises(UserError, match="nothing under val or test"):
        question_loaders(evaluate, world, tokenizer, OpenEnded)
    (tmp_path / "txt_asked.json").write_text(json.dumps({"train": [OPEN], "val": [OPEN]}))
    assert set(question_loaders(config, world, tokenizer, OpenEnded)) == {"train", "val"}
    assert set(question_loaders(evaluate, world, tokenizer, OpenEnded)) == {"val"}


def test_a_share_of_the_training_videos_and_the_place_of_a_fault_in_the_file(tmp_path, tokenizer):
    write_videos(tmp_path)
    items = [{**OPEN, "video": f"clip{i % 6}"} for i in range(12)]
    config = Config(
        type="qaoe", data_dir=str(tmp_path), dataset="clips", task="asked", data_ratio=0.5, n_workers=0
    )
    (tmp_path / "txt_asked.json").write_text(json.dumps({"train": items}))
    loader = question_loaders(config, World(torch.device("cpu")), tokenizer, OpenEnded)["train"]
    assert loader.batches.sizes == {"train": 6}
    (tmp_path / "txt_asked.json").write_text(json.dumps({"train": [{**i, "answer": 1} for i in items]}))
    first = min(i["number"] for i in loader.dataset.corpora["train"].items)
    with pytest.raises(UserError, match=f"train question {first}: answer 1 is a number"):
        question_loaders(config, World(torch.device("cpu")), tokenizer, OpenEnded)
    with pytest.raises(UserError, match="leaves no training video"):
        question_loaders(
            Config(**{**config.__dict__, "data_ratio": 0.0}), World(torch.device("cpu")), tokenizer, OpenEnded
        )


# -- numbers that would be wrong in silence


def test_two_words_of_one_number_and_an_answer_against_its_text_are_errors(ask):
    with pytest.raises(UserError, match="ans2label gives the number 1 to 'red' and 'blue'"):
        ask(OpenEnded, [OPEN], more={"ans2label": {"red": 1, "blue": 1}})
    wrong = {**OPEN, "answer": 1, "answer_text": "red"}
    with pytest.raises(UserError, match="question 0: answer 1 \\('blue'\\) is not its answer_text 'red'"):
        ask(OpenEnded, [wrong], more={"vocab": ["red", "blue"]})
    with pytest.raises(UserError, match="is not its answer_text"):
        ask(OpenEnded, [{**OPEN, "answer_text": "blue"}])
    assert ask(OpenEnded, [{**OPEN, "answer": 0, "answer_text": "Red"}], more={"vocab": ["red"]}).reasons == [
        ""
    ]


def test_ids_that_come_twice_are_told_and_an_index_that_lacks_videos_is_not_used(tmp_path, caplog):
    path = write_videos(tmp_path)
    index = find_ids(path)
    id2lineidx_path(path).write_bytes(pickle.dumps({k: v for k, v in index.items() if k != "clip2"}))
    assert "clip2" in Videos(path)
    assert "does not fit" in caplog.text
    id2lineidx_path(path).unlink()
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    Videos(path)
    assert "1 rows have the id of a row before, first 'clip1'" in caplog.text


def test_a_video_in_train_and_in_test_is_told(tmp_path, tokenizer, caplog):
    write_videos(tmp_path)
    content = {"train": [OPEN], "test": [OPEN, {**OPEN, "video": "clip2"}]}
    (tmp_path / "txt_asked.json").write_text(json.dumps(content))
    config = Config(type="qaoe", data_dir=str(tmp_path), dataset="clips", task="asked", size_img=32)
    question_loaders(config, World(torch.device("cpu")), tokenizer, OpenEnded)
    assert "1 videos are in train and in test, first clip1" in caplog.text


def test_scores_that_are_not_finite_answer_nothing(ask):
    asked = ask(OpenEnded, [OPEN])
    row = asked.describe(0, True, 1, [5, 6], [float("nan"), float("nan")])
    assert (row["right"], row["right_5"], row["unanswerable"], row["best"]) == (False, False, "score", [])
    assert "NaN" not in json.dumps(row)
