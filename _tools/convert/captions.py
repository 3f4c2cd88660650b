"""Converters of public captions: WebVid, CC3M, and the retrieval files of MSR-VTT, LSMDC and DiDeMo."""

from pathlib import Path
from typing import Any

from _tools.convert.files import Item, Public, Splits, hold_out, read_json, read_lines, read_table
from lib import UserError
from media.kinds import file_id

CC3M_TRAIN = 3_318_333  # lines of the training file: those of validation are numbered on from it


def webvid(public: Public, split: str) -> dict[str, str]:
    """WebVid's CSV (videoid, contentUrl, duration, page_dir, name) -> {id: caption}."""
    path = public.find(split, f"results_*_{split}.csv", f"*{split}*.csv")
    return {row["videoid"]: row["name"] for row in read_table(path, columns=("videoid", "name"))}


def cc3m(public: Public, split: str) -> dict[str, str]:
    """CC3M's lines "caption TAB url" -> {number of the line, eight digits: caption}."""
    pattern = {"train": "*train*.tsv", "val": "*val*.tsv"}[split]
    first = CC3M_TRAIN if split == "val" else 0
    lines = read_lines(public.find(split, pattern), 2)
    return {f"{first + number:08d}": caption for number, (caption, *_) in enumerate(lines)}


def msrvtt_retrieval(public: Public, val_share: float) -> Splits:
    """MSR-VTT's sentences by the videos of a split.

    With the CSVs of 9k/1k-A (key, vid_key, video_id, sentence): every sentence of the listed videos, and the
    one of each test pair. Those listed that videodatainfo has in its test split are val, as in the published
    `txt_msrvtt-retrieval.json`. Without CSVs, the split that videodatainfo gives (6,513, 497, 2,990).
    """
    texts, official = sentences(public)
    train = public.look_for("train", "*train*9k*.csv")
    test = public.look_for("test", "*jsfusion*test*.csv", "*1ka*test*.csv")
    if not train and not test:
        return official_splits(texts, official)
    if not train or not test:
        lacking, file = ("test", "MSRVTT_JSFUSION_test.csv") if train else ("train", "MSRVTT_train.9k.csv")
        raise UserError(f"{train or test} is needed with {file}: download it, or give --file {lacking}=PATH.")
    videos = [row["video_id"] for row in read_table(train, columns=("video_id",))]
    if silent := [video for video in videos if video not in texts]:
        raise UserError(
            f"{len(silent)} videos of {train} have no sentence, the first {silent[0]}; if that is two "
            "files, both are needed (--file info=PATH --file test_info=PATH)."
        )
    pairs = [{"video": video, "caption": text} for video in videos for text in texts[video]]
    splits = {
        "train": [pair for pair in pairs if official[pair["video"]] != "test"],
        "val": [pair for pair in pairs if official[pair["video"]] == "test"],
    }
    rows = read_table(test, columns=("video_id", "sentence"))
    tested = [{"video": row["video_id"], "caption": row["sentence"]} for row in rows]
    return {**(splits if splits["val"] else hold_out(pairs, val_share)), "test": tested}


def official_splits(texts: dict[str, list[str]], official: dict[str, str]) -> Splits:
    """Every sentence of every video, in the split that videodatainfo gives it."""
    names = {"train": "train", "validate": "val", "validation": "val", "test": "test"}
    splits: Splits = {"train": [], "val": [], "test": []}
    for video, split in official.items():
        if split not in names:
            raise UserError(f"videodatainfo: the split of {video} is {split!r}, none of {list(names)}.")
        splits[names[split]] += [{"video": video, "caption": text} for text in texts.get(video, [])]
    return {split: rows for split, rows in splits.items() if rows}


def sentences(public: Public) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and split by video, from videodatainfo, which is one file, or one without test and its own."""
    texts: dict[str, list[str]] = {}
    official: dict[str, str] = {}
    first = public.find("info", "msrvtt_data.json", "train_val_videodatainfo.json", "*videodatainfo*.json")
    second = public.look_for("test_info", "test_videodatainfo.json")
    for path in dict.fromkeys(filter(None, (first, second))):
        content: dict[str, Any] = read_json(path)
        official |= {video["video_id"]: video["split"] for video in content["videos"]}
        for sentence in content["sentences"]:
            texts.setdefault(sentence["video_id"], []).append(" ".join(sentence["caption"].split()))
    return texts, official


def lsmdc_retrieval(public: Public, val_share: float) -> Splits:
    """LSMDC's lines "clip TAB start TAB end TAB start TAB end TAB sentence" (the sentence may hold tabs)."""
    patterns = {
        "train": ("LSMDC16_annos_training.csv", "*annos*train*.csv"),
        "val": ("LSMDC16_annos_val.csv", "*annos*val*.csv"),
        "test": ("LSMDC16_challenge_1000_*.csv", "*1000*.csv"),
    }
    return {split: lsmdc_captions(public.find(split, *names)) for split, names in patterns.items()}


def lsmdc_captions(path: Path) -> list[Item]:
    """The pairs of one of its files."""
    lines = read_lines(path, 6)
    return [{"video": clip, "caption": " ".join(" ".join(text).split())} for clip, _, _, _, _, *text in lines]


def didemo_retrieval(public: Public, val_share: float) -> Splits:
    """DiDeMo's moments (video, description, times) -> all sentences of each video, in the file's order."""
    splits: Splits = {}
    for split in ("train", "val", "test"):
        texts: dict[str, list[str]] = {}
        for moment in read_json(public.find(split, f"{split}_data.json", f"*{split}*.json")):
            texts.setdefault(file_id(moment["video"]), []).append(" ".join(moment["description"].split()))
        splits[split] = [{"video": video, "caption": sentences} for video, sentences in texts.items()]
    return splits
