"""The demo's report, of made-up runs."""

import base64
import html.parser
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo import report as demo_report
from lib import UserError

TASKS = ("demo-qa", "demo-action", "demo-fib", "demo-retrieval")
VOID = {"meta", "img", "br"}


def jpeg(shade: int) -> bytes:
    return base64.b64encode(cv2.imencode(".jpg", np.full((24, 32, 3), shade, np.uint8))[1].tobytes())


def write_rows(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_world(folder: Path) -> None:
    folder.mkdir()
    videos = [f"clip{i}".encode() + b"\tdemo\t" + b"\t".join([jpeg(20 * i + 5)] * 8) for i in range(6)]
    (folder / "img_demo.tsv").write_bytes(b"\n".join(videos) + b"\n")
    pairs = [{"video": f"clip{i}", "caption": f"a <red> thing {i}"} for i in range(6)]
    (folder / "txt_demo-retrieval.json").write_text(json.dumps({"test": pairs}))


def question(number: int, right: bool, kind: str) -> dict:
    picks = [(f"word{i}", 0.5 / 2**i) for i in range(5)]
    return {
        "id": f"clip{number}",
        "question": f"question {number} of {kind} & more?",
        "answer": "word0" if right else "word9",
        "best": [{"answer": word, "probability": share} for word, share in picks],
        "right": right,
        "type": kind,
    }


def write_task(output: Path, start: str, task: str, loss: float) -> dict[str, str]:
    run = f"{start}/_{task}_1"
    rows = [{"step": step, "loss": loss / step} for step in (20, 40, 60)]
    write_rows(output / run / "metrics.jsonl", rows)
    (output / run / "best.json").write_text(json.dumps({"epoch": 1}))
    kinds = [(i, i % 2 == 0, ("colour", "shape")[i // 3]) for i in range(6)]
    write_rows(output / run / "predictions_test_1.jsonl", [question(*kind) for kind in kinds])
    if task != "demo-retrieval":
        return {"training": run}
    ranking = f"{start}/ranking/_{task}_2"
    texts = []
    for i, rank in enumerate((1, 1, 1, 2, 3, 6)):
        best = [{"video": f"clip{j}", "score": 5.0 - j} for j in range(5)]
        row = {"direction": "t2v", "text": f"text {i}", "video": f"clip{rank - 1}", "rank": rank}
        texts.append({**row, "score": 5.0 - rank, "best": best})
    write_rows(output / ranking / "ranks.jsonl", [*texts, {"direction": "v2t", "rank": 1}])
    return {"training": run, "ranking": ranking}


@pytest.fixture
def output(tmp_path) -> Path:
    output = tmp_path / "demo"
    write_world(tmp_path / "world")
    run = output / "pretraining" / "_pretrain_1"
    figures = {"mlm": 2.0, "vtm": 1.2, "mvm_pixel": 0.25, "mlm_acc": 0.3}
    logged = [{"step": s, "loss": 9.0, "lr": 1.0, **{k: v / s for k, v in figures.items()}} for s in (10, 20)]
    write_rows(run / "metrics.jsonl", logged)
    write_rows(run / "eval.jsonl", [{"step": 0, **figures}, {"step": 20, **figures}])
    cv2.imwrite(str(run / "mvm_pixel.png"), np.random.default_rng(0).integers(255, size=(90, 2000, 3)))
    starts = {"pretrained": 3.0, "encoder_only": 4.0}
    runs = {s: {task: write_task(output, s, task, loss) for task in TASKS} for s, loss in starts.items()}
    after = {"mlm_acc": 0.3456, "vtm_acc": 0.832, "mvm_pixel": 0.127}
    chance = {"mlm_acc": 0.146, "vtm_acc": 0.25, "mvm_pixel": 0.205}
    before = {"mlm_acc": 0.0, "vtm_acc": 0.23, "mvm_pixel": 0.277}
    result = {
        "seed": 89,
        "data": str(tmp_path / "world"),
        "pretraining": {"before": before, "after": after, "chance": chance},
        "tasks": {
            "open-ended questions": {"accuracy": 0.471, "no_pre-training": 0.377, "chance": 0.048},
            "text-to-video retrieval, R@1": {"accuracy": 0.211, "no_pre-training": 0.004, "chance": 0.0039},
        },
        "runs": {"pretraining": "pretraining/_pretrain_1", **runs},
    }
    (output / "demo.json").write_text(json.dumps(result))
    return output


class Checker(html.parser.HTMLParser):
    """Every tag is closed in its order; what a page refers to is collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def page(output: Path) -> str:
    return demo_report.write(output).read_text()


def test_the_page_is_whole_and_refers_to_nothing_outside(output):
    text = page(output)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    pictures = ("data:image/jpeg;base64,", "data:image/svg+xml;base64,")
    assert checker.references and all(r.startswith(pictures) for r in checker.references)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert 'name="viewport"' in text and "@media print" in text
    assert len(text) < 400_000


def test_figures_are_those_of_the_files(output):
    text = page(output)
    for figure in ("47.1 %", "37.7 %", "4.8 %", "21.1 %", "34.6 %", "83.2 %", "0.127", "0.205", "seed 89"):
        assert figure in text, figure


def svg(uri: str) -> str:
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def test_curves_are_those_of_the_runs(output):
    text = page(output)
    titles = re.findall(r'alt="([^"]*) over the steps" src="data:image/svg', text)
    assert titles == ["mlm", "vtm", "mvm_pixel", *demo_report.TASKS.values()]
    drawn = svg(demo_report.chart("loss", {"ours": [(0, 4.0), (50, 3.0), (100, 2.0)]}, level=2.0))
    assert ">loss<" in drawn
    [way] = [w for w in re.findall(r'd="(M[^"]*)"', drawn) if w.count("L") == 2 and "z" not in w][:1]
    places = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", way), float)
    assert places[0, 0] < places[1, 0] < places[2, 0] and places[0, 1] < places[1, 1] < places[2, 1]
    np.testing.assert_allclose(places[1], (places[0] + places[2]) / 2, atol=0.01)
    level = re.search(r'd="M [\d.]+ ([\d.]+) \nL [\d.]+ \1 \n?"[^>]*stroke-dasharray', drawn)
    assert float(level[1]) == pytest.approx(places[2, 1], abs=0.01)


def test_questions_show_right_and_wrong_answers_of_each_type(output):
    text = page(output)
    for number, kind in ((0, "colour"), (1, "colour"), (4, "shape"), (3, "shape")):
        assert text.count(f"question {number} of {kind} &amp; more?") == 3, number  # three tasks of questions
    assert "question 2 of" not in text and "question 5 of" not in text
    [right, wrong, *_] = re.findall(r'<article class="is-.*?</article>', text, re.S)
    assert right.startswith('<article class="is-right">') and wrong.startswith('<article class="is-wrong">')
    assert re.search(r'class=truth style="--share:50.0%"><span>word0 ✓</span><span>50.0 %', right)
    assert "word0 ✗" in wrong and "word9 ✓" in wrong  # what was right is said, though not among the five
    assert right.count("<li") == 5 and wrong.count("<li") == 6


def test_best_and_worst_retrievals(output):
    text = page(output)
    best = text.index("Best queries"), text.index("text 0 (rank 1)"), text.index("Worst queries")
    worst = text.index("text 5 (rank 6)"), text.index("text 4 (rank 3)"), text.index("text 3 (rank 2)")
    assert sorted(best) == list(best) and sorted(worst) == list(worst) and best[-1] < worst[0]
    assert "its own, at 6: clip5" in text
    assert text.count('<figure class="right">') == 6


def test_without_the_world_the_page_has_no_frames(output, tmp_path):
    (tmp_path / "world" / "img_demo.tsv").unlink()
    text = page(output)
    assert "it cannot be read" in text and "47.1 %" in text


def test_a_folder_without_a_demo(tmp_path):
    with pytest.raises(UserError, match=r"demo\.json does not exist: run make demo"):
        demo_report.write(tmp_path)
