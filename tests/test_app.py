"""The page in a headless browser: each tab answers, and what is no video gets a message."""

import dataclasses
import re
import shutil

import cv2
import numpy as np
import pytest
import torch

import app
from lib import Config, UserError
from model import PretrainModel
from tasks.retrieval.library import Library
from tasks.retrieval.sources import open_source
from tests.conftest import demo_network
from violet import load

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(tmp_path, question_bert):
    """Two videos, and a checkpoint of pre-training with embeddings."""
    folder, run = tmp_path / "videos", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    for number, name in enumerate(["one.mp4", "two.mp4"]):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64))
        for i in range(6):
            writer.write(np.full((64, 64, 3), 60 + 90 * number + 5 * i, np.uint8))
        writer.release()
    config = Config(
        **demo_network(question_bert),
        size_img=64,
        size_frame=2,
        size_txt=20,
        device="cpu",
        pretrain_tasks=["mlm", "vtm", "mvm", "vtc"],
        mvm_target=["pixel", "hog"],
    )
    torch.save(PretrainModel.from_config(config).state_dict(), run / "ckpt_violet_pretrain_1.pt")
    (run / "args.json").write_text(config.to_json())
    library = Library(load(run), open_source(folder), tmp_path / "cache")
    library.update()
    return app.Page(library.violet, library)


def test_the_tabs_answer_without_a_browser(page, tmp_path):
    found = page.search("a red star")
    assert [file[-7:] for file, _ in found] in (["one.mp4", "two.mp4"], ["two.mp4", "one.mp4"])
    answers, looks = page.ask(None, "one.mp4", "what color is the star ?", "")
    assert len(answers) == 5 and [picture.shape for picture in looks] == [(64, 64, 3)] * 2
    shares = page.violet.attention(tmp_path / "videos" / "one.mp4", "what color is the star ?")
    assert shares.shape == (2, 2, 2) and 0 < shares.sum() < 1
    answers, _ = page.ask(None, "one.mp4", "what color is the star ?", "red\n\nblue\n")
    assert answers.keys() == {"red", "blue"} and sum(answers.values()) == pytest.approx(1)
    html = page.rebuild(None, "two.mp4", "blocks", 0.3)
    labels = re.findall(r"<figcaption>([^<]*)", html)
    targets = [f"{name}, {kind}" for name in ("pixel", "hog") for kind in ("reconstructed", "target")]
    assert labels == ["frames", "hidden", *targets]


def test_what_cannot_be_answered_is_a_message(page, tmp_path):
    with pytest.raises(UserError, match="Type the words"):
        page.search(" ")
    with pytest.raises(UserError, match="Choose a video"):
        page.rebuild(None, None, "blocks", 0.3)
    page.violet.config = dataclasses.replace(page.violet.config, type="retrieval", task="found")
    with pytest.raises(UserError, match="only one of pre-training with targets rebuilds"):
        page.rebuild(None, "one.mp4", "blocks", 0.3)
    with pytest.raises(UserError, match="is no folder"):
        pytest.importorskip("gradio", reason="gradio is installed by requirements-app.txt alone")
        app.main(["--checkpoint", str(tmp_path / "run"), "--videos", str(tmp_path / "none")])


def test_the_page_in_a_browser(page, tmp_path):
    reason = "the page's test needs gradio and playwright (pip install -r requirements-app.txt playwright)"
    gradio = pytest.importorskip("gradio", reason=reason)
    sync = pytest.importorskip("playwright.sync_api", reason=reason)
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    (tmp_path / "notes.mp4").write_text("no video")
    _, address, _ = app.launch(page, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
    try:
        with sync.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for width in (1200, 390):
                visit(browser.new_page(viewport={"width": width, "height": 900}), address, tmp_path)
    finally:
        gradio.close_all()


def visit(tab, address: str, folder) -> None:
    """Use each tab once, and upload a file that is no video."""
    outside = []
    tab.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
    tab.goto(address)
    tab.get_by_label("Words").fill("a red star")
    tab.get_by_role("button", name="Search").click()
    tab.locator("video").nth(1).wait_for(timeout=60_000)
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]
    tab.get_by_role("tab", name="Ask").click()
    tab.get_by_label("Question").fill("what color is the star ?")
    tab.get_by_role("button", name="Ask").click()
    tab.locator(".thumbnail-item img, .grid-container img").first.wait_for(timeout=60_000)
    tab.get_by_role("tab", name="Hide and rebuild").click()
    tab.get_by_role("button", name="Rebuild").click()
    tab.locator("figure img").nth(5).wait_for(timeout=60_000)
    tab.locator("input[type=file]:visible, input[type=file]").last.set_input_files(str(folder / "notes.mp4"))
    tab.get_by_text("notes.mp4").last.wait_for(timeout=60_000)
    tab.get_by_role("button", name="Rebuild").click()
    tab.get_by_text("cannot be read").first.wait_for(timeout=60_000)
    assert not tab.get_by_text("Traceback").count()
    assert not [url for url in outside if url.startswith("http")]
