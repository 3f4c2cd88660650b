"""Files that are as they should be, files that are not, and batches under any number of processes."""

import base64
import itertools
import json
import multiprocessing
import pickle
import shutil
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from dataset import Loader, Mixture, PretrainCorpus, data_workers, pretrain_loader
from lib import Config, UserError, World
from media.batches import Batches
from media.frames import (
    STD,
    Transform,
    decode_frame,
    even_frames,
    every_clip,
    jpeg_sides,
    normalise,
    random_frames,
    read_clip,
)
from media.tokens import Tokens
from media.tsv import BadRow, Tsv, lineidx_path
from tests.conftest import write_corpus
from weights.needs import named_in


@pytest.fixture(scope="module")
def tokens(bert_folder):
    return Tokens(str(bert_folder), 12)


def make_corpus(path, tokens, frames=4, name="clips"):
    return PretrainCorpus(path, name, tokens, Transform(["img_rand_crop"], 32), frames)


def make_loader(corpora, train, workers=0, batch=4, max_bad_ratio=0.01, processes=1, rank=0):
    sizes = {name: len(corpus) for name, corpus in corpora.items()}
    batches = Batches(sizes, dict.fromkeys(sizes, batch), train, seed=1, rank=rank, processes=processes)
    return Loader(Mixture(corpora, seed=1, train=train), batches, workers, max_bad_ratio)


# -- TSV files


def test_rows_by_an_index_that_is_built_when_missing(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"one\t1\ntwo\t2\t22\r\n\nlast\t3")
    tsv = Tsv(path)
    assert [tsv[i] for i in range(len(tsv))] == [
        [b"one", b"1"],
        [b"two", b"2", b"22"],
        [b""],
        [b"last", b"3"],
    ]
    assert lineidx_path(path).read_text() == "0\n6\n16\n17\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lineidx", "a.tsv"]
    with pytest.raises(BadRow, match="no row 4"):
        tsv[4]


def test_an_empty_file_has_no_rows(tmp_path, tokens):
    (tmp_path / "a.tsv").write_bytes(b"")
    assert len(Tsv(tmp_path / "a.tsv")) == 0


def test_wrong_indices_are_noticed(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"one\t1\ntwo\t2\nlast\t3\n")
    lineidx_path(path).write_text("0\n7\n12\n")
    with pytest.raises(BadRow, match=r"a\.tsv row 1: its offset 7"):
        Tsv(path)[1]
    for wrong, message in [("0\n6\n", "ends before .* delete it"), ("0\n6\n12\n400\n", "it is truncated")]:
        lineidx_path(path).write_text(wrong)
        with pytest.raises(UserError, match=message):
            Tsv(path)
    lineidx_path(path).write_text("zero")
    with pytest.raises(UserError, match="as a list of byte offsets: byte 0 is neither"):
        Tsv(path)


def test_index_of_a_folder_that_cannot_be_written_is_built_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"one\ntwo\n")
    monkeypatch.setattr(
        "media.tsv.atomic_path", lambda _: (_ for _ in ()).throw(PermissionError("read-only"))
    )
    assert len(Tsv(path)) == 2


def read_first(tsv: Tsv) -> list[bytes]:
    return tsv[1]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_rows_are_read_in_other_processes(tmp_path, start):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"one\t1\ntwo\t2\n")
    tsv = Tsv(path)
    assert tsv[1] == [b"two", b"2"]
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.apply(read_first, (tsv,)) == [b"two", b"2"]
    assert len(pickle.dumps(Tsv(path))) < 1000


# -- samples


def test_a_pair(tmp_path, tokens):
    corpus = make_corpus(write_corpus(tmp_path, "clips"), tokens)
    sample = corpus.read(3, None)
    assert (sample["img"].shape, sample["img"].dtype) == ((4, 3, 32, 32), torch.uint8)
    assert sample["id"] == "clips3"
    special = tokens.special
    assert sample["txt"][0] == special.cls
    assert (sample["txt"] != special.pad).sum() == sample["mask"].sum() == 8


def test_rows_with_a_field_before_their_frames(tmp_path, tokens):
    path = write_corpus(tmp_path, "clips", rows=2)
    want = make_corpus(path, tokens).read(1, None)
    tsv = tmp_path / "clips.img.tsv"
    rows = [row.split(b"\t") for row in tsv.read_bytes().splitlines()]
    tsv.write_bytes(b"".join(b"\t".join([r[0], b"{}", *r[1:]]) + b"\n" for r in rows))
    lineidx_path(tsv).unlink()
    torch.testing.assert_close(make_corpus(path, tokens).read(1, None)["img"], want["img"])


def test_images_are_clips_of_one_frame(tmp_path, tokens):
    by_yaml = make_corpus(write_corpus(tmp_path, "pictures", image=True), tokens)
    assert by_yaml.read(0, None)["img"].shape == (1, 3, 32, 32)
    path = write_corpus(tmp_path, "cc3m", image=True)
    path.write_text(path.read_text().replace("image: true\n", ""))
    assert make_corpus(path, tokens, name="cc3m").is_image  # published YAMLs say nothing of it


def test_composite_corpora(tmp_path, tokens):
    for name in ("a", "b"):
        write_corpus(tmp_path, name, rows=3)
    (tmp_path / "pairs.tsv").write_text("1\t2\t0\n0\t1\t0\n")
    lists = "img: [a.img.tsv, b.img.tsv]\ncaption: [a.caption.tsv, b.caption.tsv]\n"
    path = tmp_path / "both.yaml"
    path.write_text(lists + "caption_linelist: pairs.tsv\ncomposite: true\n")
    corpus = make_corpus(path, tokens)
    assert [corpus.read(i, None)["id"] for i in range(len(corpus))] == ["b2", "a1"]
    (tmp_path / "all.tsv").write_text(
        (tmp_path / "a.caption.tsv").read_text() + (tmp_path / "b.caption.tsv").read_text()
    )
    path.write_text(path.read_text().replace("[a.caption.tsv, b.caption.tsv]", "all.tsv"))
    assert [make_corpus(path, tokens).read(i, None)["id"] for i in range(2)] == ["b2", "a1"]


def test_text_that_is_cut_keeps_its_end(tokens):
    ids, mask = tokens("red " * 30)
    assert (ids[0], ids[-1]) == (tokens.special.cls, tokens.special.sep)
    assert mask.all()


def published_clips(stored: int, wanted: int) -> list[list[int]]:
    """The rule: T indices evenly from each start s to min(s + (T-1) step, N-1), halves to even."""
    step, clips = -(-stored // wanted), []
    for start in range(step):
        way = min(start + (wanted - 1) * step, stored - 1) - start
        clips.append([round(start + Fraction(k * way, max(1, wanted - 1))) for k in range(wanted)])
    return clips


@pytest.mark.parametrize("wanted", range(1, 9))
def test_frames_are_those_of_the_published_code(wanted):
    for stored in range(1, 65):
        clips = published_clips(stored, wanted)
        assert every_clip(stored, wanted).tolist() == clips
        middle = [round(Fraction(stored - 1, 2))]
        evenly = [round(Fraction(k * (stored - 1), max(1, wanted - 1))) for k in range(wanted)]
        assert even_frames(stored, wanted).tolist() == (middle if wanted == 1 else evenly)
        draws = [random_frames(stored, wanted, np.random.default_rng(i)).tolist() for i in range(8)]
        assert all(draw in clips for draw in draws)


def test_frames_of_known_clips():
    assert every_clip(32, 5)[[0, 6]].tolist() == [[0, 7, 14, 21, 28], [6, 12, 18, 25, 31]]
    assert every_clip(6, 4).tolist() == [[0, 2, 3, 5], [1, 2, 4, 5]]
    seen = {tuple(random_frames(10, 4, np.random.default_rng(i))) for i in range(60)}
    assert seen == {(0, 3, 6, 9), (1, 4, 6, 9), (2, 4, 7, 9)}
    assert random_frames(2, 4, np.random.default_rng(0)).tolist() == [0, 0, 1, 1]


def test_several_transforms_are_drawn_per_frame_and_evaluated_by_the_centre_crop():
    ramp = torch.arange(200, dtype=torch.uint8).repeat(3, 40, 1)
    both = Transform(["pad_resize", "img_rand_crop"], 32)
    padded = both([ramp] * 40, np.random.default_rng(0))[:, 0, 0, 0] == 0  # only a bar is black
    assert 5 < padded.sum() < 35
    assert torch.equal(both([ramp], None), Transform(["img_center_crop"], 32)([ramp], None))


@pytest.mark.parametrize("name", ["img_rand_crop", "vid_rand_crop"])
def test_crops_are_drawn_per_frame_or_per_clip(name):
    ramp = torch.arange(200, dtype=torch.uint8).repeat(3, 40, 1)
    out = Transform([name], 32)([ramp] * 6, np.random.default_rng(0))
    assert out.shape == (6, 3, 32, 32)
    assert len(out[:, 0, 0, 0].unique()) == (6 if name == "img_rand_crop" else 1)


def test_padding_is_black_and_centred():
    out = Transform(["pad_resize"], 32)([torch.full((3, 32, 64), 255, dtype=torch.uint8)], None)[0]
    assert (out[:, 0] == 0).all()
    assert (out[:, 16] == 255).all()


def stored(width, height):
    """A smooth picture as a base64 JPEG, and as decoded whole."""
    small = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    field = base64.b64encode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    return field, decode_frame(field, 0)


@pytest.mark.parametrize(
    "width, height, factor",
    [(127, 80, 1), (160, 126, 1), (128, 160, 2), (253, 190, 2), (256, 256, 4), (253, 256, 2), (600, 512, 8)],
)
def test_a_jpeg_at_least_twice_too_large_is_decoded_smaller(width, height, factor):
    field, whole = stored(width, height)
    small = decode_frame(field, 0, least=64)
    assert small.shape == (3, -(-height // factor), -(-width // factor))
    assert factor > 1 or torch.equal(small, whole)
    transform = Transform(["img_center_crop"], 64)
    got, want = (normalise(transform([frame], None)) for frame in (small, whole))
    assert ((got - want) * STD * 255).abs().mean() < 4


def test_a_clip_of_large_jpegs_is_read_at_their_reduced_size(monkeypatch):
    field, _ = stored(256, 256)
    seen = []
    transform = Transform(["vid_rand_crop"], 64)
    monkeypatch.setattr(transform, "crop", lambda frame, place: seen.append(frame.shape) or frame)
    assert read_clip([b"a", field, field], 2, transform, None).dtype == torch.uint8
    assert seen == [(3, 64, 64)] * 2


@pytest.mark.parametrize("end", [0, 1, 2, 3, 8, 20])
def test_a_cut_header_gives_no_size(end):
    jpeg = base64.b64decode(stored(256, 256)[0])
    assert jpeg_sides(jpeg) == (256, 256)
    assert jpeg_sides(jpeg[:end]) == (0, 0)


# -- rows that are bad


FAULTS = {
    "not base64": lambda fields: [fields[0], fields[1], b"/9j/*", *fields[3:]],
    "frame 0 is not a JPEG": lambda fields: [fields[0], base64.b64encode(b"GIF89a" * 9)],
    "or is cut off": lambda fields: [fields[0], fields[1][: len(fields[1]) // 8 * 4]],
    "no frames": lambda fields: [fields[0]],
}


@pytest.fixture
def damaged(tmp_path):
    """A function that damages row 5 of a corpus of 12 and returns its YAML."""

    def damage(fault):
        path = write_corpus(tmp_path, "clips")
        tsv = tmp_path / "clips.img.tsv"
        rows = tsv.read_bytes().splitlines()
        rows[5] = b"\t".join(FAULTS[fault](rows[5].split(b"\t")))
        tsv.write_bytes(b"\n".join(rows) + b"\n")
        return path

    return damage


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_is_named(damaged, tokens, fault):
    corpus = make_corpus(damaged(fault), tokens, frames=6)
    with pytest.raises(BadRow, match=rf"clips\.img\.tsv row 5 \(clips5\): .*{fault}"):
        corpus.read(5, None)
    corpus.read(4, None)


def test_missing_captions_are_named(tmp_path, tokens):
    path = write_corpus(tmp_path, "clips")
    captions = tmp_path / "clips.caption.tsv"
    rows = captions.read_text().splitlines()
    rows[1], rows[2], rows[3] = "clips1\t[]", "other\t" + rows[2].split("\t")[1], "clips3\tnot JSON"
    captions.write_text("\n".join(rows[:6]) + "\n")
    corpus = make_corpus(path, tokens)
    for row, reason in [
        (1, "no caption 0"),
        (2, "belongs to 'other'"),
        (3, "no caption"),
        (9, "has no row 9"),
    ]:
        with pytest.raises(BadRow, match=reason):
            corpus.read(row, None)


def test_a_bad_row_is_replaced_in_training_and_reported_once(damaged, tokens, caplog):
    loader = make_loader({"clips": make_corpus(damaged("no frames"), tokens)}, train=True, max_bad_ratio=0.1)
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        assert sum(len(batch["id"]) for batch in batches) == 12
        assert all(name != "clips5" for batch in batches for name in batch["id"])
        assert all(batch["valid"].all() for batch in batches)
    assert len(loader.bad) == 1


def test_a_bad_row_is_blank_in_evaluation(damaged, tokens):
    loader = make_loader({"clips": make_corpus(damaged("no frames"), tokens)}, train=False, max_bad_ratio=0.1)
    valid = torch.cat([batch["valid"] for batch in loader.epoch(0)])
    assert valid.tolist() == [i != 5 for i in range(12)]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_rows_stop_the_run_with_the_list(damaged, tokens, workers):
    loader = make_loader({"clips": make_corpus(damaged("no frames"), tokens)}, train=True, workers=workers)
    with pytest.raises(UserError, match=r"8\.3% of the data.*max_bad_ratio 1\.0%:\n.*row 5 \(clips5\)"):
        for epoch in range(2):
            list(loader.epoch(epoch))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_without_a_readable_row_stops_at_once(tmp_path, tokens, workers):
    path = write_corpus(tmp_path, "clips")
    (tmp_path / "clips.img.tsv").write_text("".join(f"clips{i}\n" for i in range(12)))
    loader = make_loader({"clips": make_corpus(path, tokens)}, train=True, workers=workers, max_bad_ratio=0.2)
    with pytest.raises(UserError, match="3 bad rows are 25"):
        list(loader.epoch(0))


def test_bad_rows_are_counted_alike_on_many_processes(damaged, tokens):
    """After a few epochs every process has met the one bad row of 12."""
    corpus = make_corpus(damaged("not base64"), tokens, frames=6)
    for rank in range(3):
        loader = make_loader({"clips": corpus}, train=True, max_bad_ratio=0.09, processes=3, rank=rank)
        for epoch in range(12):
            list(loader.epoch(epoch))
        assert len(loader.bad) == 1


def test_corpora_that_cannot_be_used_say_why(tmp_path, tokens):
    with pytest.raises(UserError, match="does not exist"):
        make_corpus(tmp_path / "none.yaml", tokens)
    path = write_corpus(tmp_path, "clips")
    text = path.read_text()
    for wrong, message in [
        ("[", "as YAML: while parsing"),
        ("img: a.tsv", "keys img and caption"),
        (text.replace("clips.img", "none.img"), "none.img.tsv does not exist"),
    ]:
        path.write_text(wrong)
        with pytest.raises(UserError, match=message):
            make_corpus(path, tokens)
    path.write_text(text)
    (tmp_path / "clips.linelist.tsv").write_text("0\t0\n1\n")
    with pytest.raises(UserError, match="as rows of 2 whole numbers"):
        make_corpus(path, tokens)


# -- batches


def test_training_draws_the_same_whatever_the_workers(tmp_path, tokens):
    corpora = {"clips": make_corpus(write_corpus(tmp_path, "clips"), tokens)}
    first, second = (
        [b["img"] for b in make_loader(corpora, train=True, workers=workers).epoch(3)] for workers in (0, 2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    third = [b["img"] for b in make_loader(corpora, train=True).epoch(4)]
    assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=True))


def batches_of(processes, train, sizes, epoch=0, batch_size=4):
    parts = []
    for rank in range(processes):
        part = Batches(sizes, dict.fromkeys(sizes, batch_size), train, 0, rank, processes)
        part.epoch = epoch
        assert len(list(part)) == len(part)
        parts.append(list(part))
    return parts


def test_corpora_are_mixed_by_size_and_in_step_across_processes():
    first, second = batches_of(2, True, {"a": 160, "b": 43})
    assert [b[0].corpus for b in first] == [b[0].corpus for b in second]
    assert [b[0].corpus for b in first].count("a") == 20
    assert [b[0].corpus for b in first].count("b") == 5
    drawn = [draw.index for part in (first, second) for b in part for draw in b if draw.corpus == "a"]
    assert sorted(drawn) == list(range(160))
    assert batches_of(2, True, {"a": 160, "b": 43}, epoch=1)[0] != first


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 12, 13])
def test_fine_tuning_keeps_the_last_batch_as_published(size, processes):
    parts = []
    for rank in range(processes):
        batches = Batches({"train": size}, {"train": 4}, True, 0, rank, processes, keep_last=True)
        batches.epoch = 3
        rows = list(batches)
        share = -(-size // processes)
        assert len(batches) == len(rows) == -(-share // 4)
        assert sorted(map(len, rows), reverse=True)[:-1] == [4] * (len(rows) - 1)
        parts.append([draw.index for row in rows for draw in row])
        assert len(parts[-1]) == share
    assert {index for part in parts for index in part} == set(range(size))


def test_a_corpus_smaller_than_a_batch_is_drawn():
    (parts,) = batches_of(1, True, {"a": 40, "b": 3})
    assert sum(b[0].corpus == "b" for b in parts) == 1
    with pytest.raises(UserError, match="1 samples for 2 processes"):
        batches_of(2, True, {"a": 1})


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_takes_every_sample_once_in_the_same_batches(processes):
    parts = batches_of(processes, False, {"a": 13, "b": 6})
    (whole,) = batches_of(1, False, {"a": 13, "b": 6})
    joined = [part[i] for i in range(len(whole)) for part in parts if i < len(part)]
    assert joined == whole
    assert sum(len(b) for b in whole) == 19


def test_corpora_move(tmp_path, tokens):
    """Paths in a YAML are relative to it, so a folder can be moved."""
    (tmp_path / "here").mkdir()
    write_corpus(tmp_path / "here", "clips")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert len(make_corpus(tmp_path / "there" / "clips.yaml", tokens)) == 12


def write_composite(folder, rows):
    """A corpus of several files, {name: rows}; returns its YAML."""
    for name, number in rows.items():
        write_corpus(folder, name, number)
    files = {key: [f"{name}.{key}.tsv" for name in rows] for key in ("img", "caption")}
    (folder / "all.yaml").write_text(json.dumps({**files, "composite": True}))
    return folder / "all.yaml"


def test_each_machine_loads_its_own_files_alone_in_training(tmp_path, tokens):
    values = {"size_img": 32, "size_frame": 2, "size_batch": 2, "n_workers": 0}
    path = str(write_composite(tmp_path, {"a": 4, "b": 2, "c": 2}))
    config = Config(**values, train_yaml={"all": path}, val_yaml={"all": path})
    found = []
    for rank in range(4):
        world = World(torch.device("cpu"), rank, 4, nodes=2)
        for train in (True, False):
            loader = pretrain_loader(config, world, tokens, train)
            found.append("".join(sorted(name[0] for batch in loader.epoch(1) for name in batch["id"])))
    assert ["".join(sorted(set(names))) for names in found[::2]] == ["a", "a", "bc", "bc"]
    assert sorted("".join(found[::2])) == sorted("".join(found[1::2])) == list("aaaabbcc")


def test_a_node_reads_its_own_files_of_a_composite_corpus_alone(tmp_path):
    write_composite(tmp_path, {"a": 9, "b": 4, "c": 6})
    corpus = PretrainCorpus(tmp_path / "all.yaml", "all", None, Transform(["img_center_crop"], 32), 2)
    pools = corpus.by_node(2)
    sources = [set(corpus.pairs[pool, 0].tolist()) for pool in pools]
    assert sources == [{0}, {1, 2}]  # 9 pairs, and 10
    assert len(corpus.by_node(4)) == 1  # more nodes than files
    drawn = []
    for rank in range(4):
        batches = Batches({"all": 19}, {"all": 2}, True, 1, rank, 4, {"all": pools})
        batches.epoch = 5
        epoch = list(batches)
        assert len(epoch) == len(batches) == 2  # of the 9 pairs, two steps of two processes
        drawn.append([draw.index for batch in epoch for draw in batch])
        assert set(corpus.pairs[drawn[rank], 0].tolist()) <= sources[rank // 2]
    assert len(set(drawn[0] + drawn[1] + drawn[2] + drawn[3])) == 16


@pytest.mark.parametrize("caption", [None, float("nan"), 3, ["a star"], {"a": 1}])
def test_a_caption_that_is_no_text_is_named(tmp_path, bert_folder, caption):
    path = write_corpus(tmp_path, "clips", rows=2)
    lines = [f"clips{n}\t{json.dumps([{'caption': text}])}\n" for n, text in enumerate(["a star", caption])]
    (tmp_path / "clips.caption.tsv").write_text("".join(lines))
    transform = Transform(["img_center_crop"], 32)
    corpus = PretrainCorpus(path, "clips", Tokens(str(bert_folder), 10), transform, 2)
    assert corpus.read(0, None)["id"] == "clips0"
    with pytest.raises(BadRow, match=r"row 1: caption 0 is .*, not a string"):
        corpus.read(1, None)


# -- published forms of a corpus's YAML


@pytest.mark.parametrize("form", ["list", "text file", "text file with paths of its own folder"])
def test_a_composite_names_its_files_in_a_list_or_in_a_text_file(tmp_path, tokens, form):
    for name in ("one", "two"):
        write_corpus(tmp_path, name, 3)
    lines = [f"{source}\t{row}\t0" for source in range(2) for row in range(3)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    content: dict[str, object] = {"composite": True, "caption_linelist": "pairs.tsv"}
    for key, end in (("img", "img.tsv"), ("caption", "caption.tsv")):
        files = [f"one.{end}", f"two.{end}"]
        listed = files if form != "text file" else [str(tmp_path / file) for file in files]
        (tmp_path / f"{key}.txt").write_text("\n".join(listed) + "\n\n")
        content[key] = files if form == "list" else f"{key}.txt"
    path = tmp_path / "both.yaml"
    path.write_text(json.dumps(content))
    corpus = PretrainCorpus(path, "both", tokens, Transform(["img_center_crop"], 32), 2)
    assert [corpus.read(i, None)["id"] for i in range(6)] == [
        f"{n}{i}" for n in ("one", "two") for i in range(3)
    ]
    files = {file.name for file in named_in(path)}
    assert files == {"one.img.tsv", "two.img.tsv", "one.caption.tsv", "two.caption.tsv", "pairs.tsv"}


def test_a_yaml_is_sought_in_the_data_folder_too(tmp_path, tokens, monkeypatch):
    (tmp_path / "data").mkdir()
    write_corpus(tmp_path / "data", "clips", 3)
    monkeypatch.chdir(tmp_path)
    given = ("clips.yaml", "clips", tokens, Transform(["img_center_crop"], 32), 2)
    assert len(PretrainCorpus(*given, data_dir="data")) == 3
    with pytest.raises(UserError, match="does not exist"):
        PretrainCorpus(*given)


@pytest.mark.parametrize("name", ["vg", "coco", "cc3m"])
def test_videos_under_the_name_of_a_picture_corpus_are_no_pictures(tmp_path, tokens, name):
    path = write_corpus(tmp_path, name, 3)
    text = path.read_text().replace("image: false\n", "")
    path.write_text(text)
    with pytest.raises(UserError, match=rf"a corpus named '{name}' .* 6 frames: write `image: false`"):
        PretrainCorpus(path, name, tokens, Transform(["img_center_crop"], 32), 2)
    for image, frames in (("true", 1), ("false", 2)):
        path.write_text(f"{text}image: {image}\n")
        corpus = PretrainCorpus(path, name, tokens, Transform(["img_center_crop"], 32), 2)
        assert len(corpus.read(0, None)["img"]) == frames


def test_texts_of_other_clips_follow_from_the_pair_alone(tmp_path, tokens):
    corpus = PretrainCorpus(
        write_corpus(tmp_path, "clips", 6), "clips", tokens, Transform(["img_center_crop"], 32), 2
    )
    first = corpus.read(2, None)
    assert first["other_txt"].shape == (3, tokens.size)
    own = {tuple(row) for row in [first["txt"].tolist()]}
    assert not own & {tuple(row) for row in first["other_txt"].tolist()}
    assert torch.equal(corpus.read(2, None)["other_txt"], first["other_txt"])
    assert "other_txt" not in corpus.read(2, np.random.default_rng(0))
    alone = PretrainCorpus(
        write_corpus(tmp_path, "one", 1), "one", tokens, Transform(["img_center_crop"], 32), 2
    )
    assert alone.read(0, None)["other_txt"].shape == (0, tokens.size)


def test_shuffled_rows_stay_near_one_another():
    batches = Batches({"a": 103, "b": 40}, {"a": 4, "b": 2}, True, seed=3, shuffle_rows=20)
    rows = {"a": [], "b": []}
    for batch in batches:
        rows[batch[0].corpus] += [draw.index for draw in batch]
    for name, size in (("a", 103), ("b", 40)):
        groups = [index // 20 for index in rows[name]]
        starts = [first for first, second in itertools.pairwise(groups) if first != second]
        assert len(starts) == len(set(groups)) - 1  # each group is read to its end, then another
        assert rows[name] != sorted(rows[name]) and len(set(rows[name])) == len(rows[name])
        assert size - len(rows[name]) < 4
    corpora = [batch[0].corpus for batch in batches]
    assert len({*itertools.pairwise(corpora)}) == 4  # the corpora are mixed
    batches.epoch = 1
    assert [draw.index for batch in batches for draw in batch if draw.corpus == "a"] != rows["a"]


def test_no_more_workers_than_cores(monkeypatch, caplog):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    caplog.set_level("INFO")
    cases = (4, 1, 1, 4), (16, 1, 1, 8), (4, 8, 1, 1), (4, 8, 4, 4), (0, 1, 1, 0)
    for n_workers, size, nodes, expected in cases:
        world = World(torch.device("cpu"), 0, size, nodes)
        assert data_workers(Config(n_workers=n_workers), world) == expected
    assert "n_workers 16: reduced to 8" in caplog.text


def test_the_protocol_tells_corpora_of_the_same_size_apart(tmp_path, tokens):
    """Their lists of pairs are the same numbers."""
    one, other = (write_corpus(tmp_path, name, 5) for name in ("one", "other"))
    lists = [path.with_suffix(".linelist.tsv").read_bytes() for path in (one, other)]
    assert lists[0] == lists[1]
    first, second = (make_corpus(path, tokens).source() for path in (one, other))
    assert first == {"file": "one.yaml", "sha256": first["sha256"], "samples": 5}
    assert len(first["sha256"]) == 64 and first["sha256"] != second["sha256"]
    assert make_corpus(one, tokens).source() == first
