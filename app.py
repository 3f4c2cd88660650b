"""A page in the browser: find videos by words, ask a video a question, hide patches and see them rebuilt.

    pip install -r requirements-app.txt
    python app.py --checkpoint _snapshot/_pretrain_TIME --videos FOLDER

A checkpoint of pre-training serves all three tabs; one of a task serves those that it was trained for. The
page is at http://127.0.0.1:7860, for this machine alone unless `--host` says otherwise. After `make demo`:

    python app.py --checkpoint _snapshot/demo/pretraining/_pretrain_TIME --videos _data/demo/test
"""

import argparse
import base64
import dataclasses
import functools
import html
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from lib import UserError, run_script
from media.kinds import as_arguments
from model import PretrainModel
from tasks.pictures import hide_and_rebuild, over_frames, strip
from tasks.retrieval.library import CACHE, Library
from tasks.retrieval.sources import open_source
from violet import Pretrained, load

SHOWN = 6  # videos that a search shows
HEIGHT = 192  # of a picture, pixels
MASKS = {"random patches": "rm", "blocks": "bm"}
FONTS = ["system-ui", "sans-serif"]  # no font is fetched from elsewhere


class Page:
    """The answers of the page's tabs."""

    def __init__(self, violet: Pretrained, library: Library) -> None:
        self.violet, self.library = violet, library

    @functools.cached_property
    def pretrained(self) -> PretrainModel:
        """The model with its targets, loaded when first asked for. Raises `UserError` for other tasks."""
        if self.violet.config.type != "pretrain" or "mvm" not in self.violet.config.pretrain_tasks:
            raise UserError(
                f"this checkpoint was trained for {self.violet.config.task}: only one of pre-training with "
                "targets rebuilds hidden patches."
            )
        config = dataclasses.replace(self.violet.config, size_epoch=0)
        return PretrainModel.from_config(config).to(self.violet.device).eval()

    def clip(self, uploaded: str | None, name: str | None) -> Tensor:
        """The frames (T, 3, size, size) of the uploaded file, else of the video of that name."""
        if not uploaded and not name:
            raise UserError("Choose a video of the folder, or upload one.")
        return self.violet.clip(uploaded or self.library.source.file(str(name)))

    def search(self, text: str) -> list[tuple[str, str]]:
        """The files of the best videos for a text, each with its name and score."""
        if not text.strip():
            raise UserError("Type the words to search for.")
        (found,) = self.library.search([text], SHOWN)
        files = ((name, score, self.library.source.file(name)) for name, score in found)
        return [(str(file), f"{name} ({score:.2f})") for name, score, file in files]

    def ask(
        self, uploaded: str | None, name: str | None, question: str, options: str
    ) -> tuple[dict[str, float], list[np.ndarray]]:
        """The five best answers with their probabilities, and the frames with the attention of the answer."""
        if not question.strip():
            raise UserError("Type a question.")
        given = [line.strip() for line in options.splitlines() if line.strip()]
        clip = self.clip(uploaded, name)
        video = self.violet.encode_clip(clip)
        answers = dict(self.violet.answer(video, question, given))
        return answers, over_frames(clip, self.violet.attention(video, question, given))

    def rebuild(self, uploaded: str | None, name: str | None, mask: str, share: float) -> str:
        """HTML of the frames, hidden frames, and of each target the reconstruction and the truth."""
        clip, violet = self.clip(uploaded, name), self.violet
        rows = hide_and_rebuild(self.pretrained, violet.config, violet.tokens, clip, MASKS[mask], share)
        return "".join(figure(label, strip(pictures, HEIGHT)) for label, pictures in rows)


def figure(label: str, picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 with its label, as HTML."""
    png = base64.b64encode(cv2.imencode(".png", picture[..., ::-1])[1].tobytes()).decode()
    text = html.escape(label)
    picture_tag = f'<img alt="{text}" src="data:image/png;base64,{png}" style="width:100%">'
    return f'<figure style="margin:0 0 .6em"><figcaption>{text}</figcaption>{picture_tag}</figure>'


def build(page: Page) -> Any:
    """The page as gradio's blocks; a `UserError` becomes a message on it."""
    import gradio as gr

    names = list(page.library.source.stamps)

    def told(answer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(answer)
        def guarded(*given: Any) -> Any:
            try:
                return answer(*given)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return guarded

    def chosen() -> list[Any]:
        """A video of the folder, or an uploaded one."""
        uploaded = gr.File(label="Upload a video", type="filepath", height=150)
        return [uploaded, gr.Dropdown(names, value=names[0], label="or a video of the folder")]

    def search(text: str) -> list[Any]:
        found = page.search(text)
        shown = [gr.Video(value=file, label=label, visible=True) for file, label in found]
        return shown + [gr.Video(value=None, visible=False)] * (SHOWN - len(shown))

    with gr.Blocks(title="VIOLET", analytics_enabled=False) as blocks:
        gr.Markdown(f"# VIOLET\n{len(names)} videos of `{page.library.source.path.name}`")
        with gr.Tab("Search"):
            with gr.Row():
                text = gr.Textbox(label="Words", placeholder="a red star turns", scale=4)
                button = gr.Button("Search", variant="primary", scale=1)
            with gr.Row():
                players = [gr.Video(visible=False, min_width=300, height=240) for _ in range(SHOWN)]
            for asked in (button.click, text.submit):
                asked(told(search), text, players)
        with gr.Tab("Ask"):
            with gr.Row():
                with gr.Column():
                    given = chosen()
                    question = gr.Textbox(label="Question", placeholder="what color is the star ?")
                    options = gr.Textbox(label="Options, one a line (may be empty)", lines=3)
                    button = gr.Button("Ask", variant="primary")
                with gr.Column():
                    answers = gr.Label(label="Answers", num_top_classes=5)
                    looks = gr.Gallery(label="Where the answer looked", columns=2, height="auto")
            button.click(told(page.ask), [*given, question, options], [answers, looks])
        with gr.Tab("Hide and rebuild"):
            with gr.Row():
                with gr.Column(scale=1):
                    given = chosen()
                    mask = gr.Radio(list(MASKS), value="random patches", label="Kind of mask")
                    share = gr.Slider(0.05, 0.9, value=0.3, step=0.05, label="Share of random patches")
                    button = gr.Button("Rebuild", variant="primary")
                with gr.Column(scale=2):
                    rows = gr.HTML(label="Frames and targets")
            button.click(told(page.rebuild), [*given, mask, share], rows)
    return blocks


def launch(page: Page, host: str, port: int | None, **options: Any) -> Any:
    """Serve the page; returns what gradio's `launch` does."""
    import gradio as gr

    theme = gr.themes.Default(font=FONTS, font_mono=["monospace"])
    return build(page).launch(
        server_name=host,
        server_port=port,
        allowed_paths=[str(page.library.source.path.resolve())],
        theme=theme,
        share=False,
        ssr_mode=False,
        footer_links=[],
        **options,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of this program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="checkpoint, run folder or exported folder")
    parser.add_argument("--videos", type=Path, required=True, help="folder of video files")
    parser.add_argument("--config", default="", help="config (default: the one in the checkpoint's folder)")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of indices (default: {CACHE})")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser.parse_args(as_arguments(sys.argv[1:] if arguments is None else arguments))


def main(arguments: list[str] | None = None) -> None:
    """Load, bring the index up to date, serve until the program is stopped."""
    options = parse(arguments)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the page sends nothing anywhere
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the page needs gradio: pip install -r requirements-app.txt.") from error
    if not options.videos.is_dir():
        raise UserError(f"{options.videos} is no folder: the page plays video files.")
    violet = load(options.checkpoint, options.config, device=options.device)
    library = Library(violet, open_source(options.videos), options.cache)
    for fault in library.update():
        print(f"left out: {fault}", file=sys.stderr)
    launch(Page(violet, library), options.host, options.port)


if __name__ == "__main__":
    run_script(main)
