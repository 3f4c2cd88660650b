"""A checkpoint in use: videos, texts and questions from Python.

    from violet import load

    violet = load("_snapshot/mine")
    video = violet.encode_video("clip.mp4")
    print(violet.match(video, ["a red star turns", "a blue circle moves left"]))
    print(violet.answer(video, "what color is the star ?"))

`_snapshot/mine` may be a checkpoint's file, the folder of a run, or one that `_tools/weights.py export`
wrote. In under a minute on a laptop, after `make demo`:

    python violet.py _snapshot/demo/pretraining/_pretrain_TIME clip.mp4 "a star turns" "what color is it ?"
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset import Tokens
from engine.processes import choose_device
from lib import KEYS, Config, UserError, load_config
from media.decoding import is_picture
from media.frames import Linked, Transform, even_frames, normalise
from media.kinds import as_arguments
from media.tsv import BadRow
from model import encoder_arguments, matching_head
from tasks.qa.kinds import FillInTheBlank, OpenEnded, OptionNumber, ask, ask_number, complete
from tasks.qa.model import MaskModel
from tasks.qa.questions import Text
from weights.checkpoint import Report, load_checkpoint
from weights.tensor_files import checkpoint_in, read_tensors

Video = str | Path | Tensor
BEST = 5  # answers that are given


class _Network(MaskModel):
    """VIOLET with both heads; a checkpoint may hold one of them."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.fc = matching_head(arguments["fusion"])


class Pretrained:
    """What `load` returns: the network of a checkpoint, in evaluation mode, with what it needs to read.

    V video tokens, X text tokens, D the width. A text is cut to the config's `size_txt`, of a video
    `size_frame` frames are looked at, evenly from the first to the last.
    """

    def __init__(self, network: _Network, config: Config, heads: Sequence[str], report: Report) -> None:
        self.network, self.config, self.heads, self.report = network, config, tuple(heads), report
        self.tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
        self.tokens.check(network.enc_txt.vocabulary, network.enc_txt.positions)
        self.transform = Transform(config.img_transform, config.size_img)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.enc_img.emb_cls.device

    @torch.inference_mode()
    def encode_video(self, path: str | Path) -> Tensor:
        """A video file -> its tokens (V, D); a picture is a clip of one frame.

        Raises `UserError` for a file that cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path} does not exist.")
        try:
            frames = Linked(path, None)
            if not len(frames):
                raise BadRow(f"{path}: it has no frames")
            wanted = 1 if len(frames) == 1 and is_picture(path) else self.config.size_frame
            pictures = frames.read(even_frames(len(frames), wanted).tolist())
        except BadRow as error:
            raise UserError(f"{error}: it cannot be read as a video or a picture.") from error
        clip = normalise(self.transform(pictures, None).to(self.device))
        return self.network.enc_img(clip[None])[0]

    @torch.inference_mode()
    def encode_text(self, text: str) -> Tensor:
        """A text -> its tokens (X, D), [CLS] first, [SEP] last; no padding."""
        ids, mask = (row[None].to(self.device) for row in self.tokens(text))
        return self.network.enc_txt(ids, mask)[0, : int(mask.sum())]

    @torch.inference_mode()
    def match(self, video: Video, texts: Sequence[str | Tensor]) -> list[float]:
        """How well each text (or what `encode_text` made of it) fits a video, higher = better.

        Scores compare texts with one video, and videos with one text. Raises `UserError` if the
        checkpoint has no `fc`, such as one of open-ended questions.
        """
        self._require("fc", "match")
        if not texts:
            return []
        words = [self.encode_text(text) if isinstance(text, str) else text for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(words, batch_first=True)
        lengths = torch.tensor([len(word) for word in words])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(self.device)
        seen = self._video(video)[None].expand(len(words), -1, -1)
        cls = torch.full((len(words), 1), seen.shape[1], device=self.device)
        return self.network.fc(self.network.fuse(seen, padded, mask, cls)).flatten().tolist()

    @torch.inference_mode()
    def answer(
        self, video: Video, question: str, options: Sequence[str] = (), best: int = BEST
    ) -> list[tuple[str, float]]:
        """The likeliest answers to a question about a video, the best first, each with its probability.

        An answer is a word of the vocabulary. A question with its own [MASK] is completed there. With
        `options` they are put to the network by number, as in tgif-action, and the answers are those.
        Raises `UserError` if the checkpoint has no `fc_mtm`, such as one of retrieval.
        """
        self._require("fc_mtm", "answer")
        text, choices, task = self._ask(question, list(options))
        ids = torch.tensor(text.ids, device=self.device)
        mask, place = torch.ones_like(ids), torch.tensor([text.place], device=self.device)
        self.network.task = task if self.config.enable_task_token else ""
        seen = self._video(video)[None]
        logits = self.network.name_word(seen, self.network.enc_txt(ids, mask), mask, place)[0].float()
        shares, picks = (logits[choices] if choices else logits).softmax(dim=0).sort(descending=True)
        picked = picks[:best].tolist()
        names = (
            [options[i] for i in picked] if options else self.tokens.tokenizer.convert_ids_to_tokens(picked)
        )
        return list(zip(names, shares[:best].tolist(), strict=True))

    def _ask(self, question: str, options: list[str]) -> tuple[Text, list[int], str]:
        """The text that is read, the tokens among which the answer is sought, the name of the task."""
        special, size, place = self.tokens.special, self.config.size_txt, self.config.mask_pos
        masked = str(self.tokens.tokenizer.mask_token)
        kind = OptionNumber if options else FillInTheBlank if masked in question else OpenEnded
        numbers = [f"option {i}:" for i in range(len(options))]
        prompt = kind.prompt if self.config.enable_prompt else ""
        table = self.tokens.words([prompt, question, OpenEnded.ending, *numbers, *options])
        lead, asked = table[prompt], table[question]
        if options:
            parts = [lead, asked, *(table[number] for number in numbers)]
            text = ask_number(special, size, parts, [table[option] for option in options], place)
            return text, OptionNumber.choices(self.tokens, len(options)), "multiple choice"
        if kind is FillInTheBlank:
            return complete(special, size, [lead, asked]), [], "fill in the blank"
        return ask(special, size, [lead, asked, table[OpenEnded.ending]], place), [], "open-ended"

    def _video(self, video: Video) -> Tensor:
        return video.to(self.device) if isinstance(video, Tensor) else self.encode_video(video)

    def _require(self, head: str, use: str) -> None:
        if head not in self.heads:
            raise UserError(
                f"{self.config.path_ckpt} has no {head}, without which it cannot {use}: it was trained for "
                f"{self.config.task}, take a checkpoint of another task or of pre-training."
            )


def load(path: str | Path, config: str | Path = "", **changes: Any) -> Pretrained:
    """The network of a checkpoint's file, of a run's folder or of an exported one, ready to be used.

    Its sizes and its tokenizer are those of `config`, a JSON file; left out, of the args.json or config.json
    beside the checkpoint. `changes` are keys of the config with other values, such as `device="cpu"`,
    `txt_backbone=...`, `size_frame=5`. Only tensors are read from the checkpoint, no code in it is run.
    Raises `UserError` if anything is missing or does not fit.
    """
    file = checkpoint_in(Path(path))
    settings = dataclasses.replace(
        read_config(file.parent, Path(config) if config else None, changes), path_ckpt=str(file)
    )
    with torch.random.fork_rng(devices=[]):  # whoever uses it keeps their own random numbers
        network = _Network(**encoder_arguments(settings))
    keys = read_tensors(file).keys()
    heads = [head for head in ("fc", "fc_mtm") if any(key.startswith(f"{head}.") for key in keys)]
    report = load_checkpoint(network, str(file))
    return Pretrained(network.to(choose_device(settings.device)).eval(), settings, heads, report)


def read_config(folder: Path, given: Path | None = None, changes: dict[str, Any] | None = None) -> Config:
    """The config of a checkpoint in `folder`: `given`, or the one that lies there, with some keys changed.

    What an export put beside it, the folders `text` and `fusion`, goes before the BERTs that the config
    names.
    """
    path = given or next((p for p in (folder / "args.json", folder / "config.json") if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no args.json: name the config, such as one of _args/.")
    try:
        content = json.loads(path.read_text())
        kind = content.get("type", "pretrain")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a config ({error}).") from error
    beside = {"txt_backbone": folder / "text", "fusion_encoder": folder / "fusion"}
    own = {key: str(place) for key, place in beside.items() if place.is_dir()}
    if "txt_backbone" in own:
        own["tokenizer"] = ""
    arguments = [f"--{key}={value}" for key, value in {**own, **(changes or {})}.items()]
    return load_config(kind, ["--config", str(path), *arguments])


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The command line, and the config's keys that it changes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoint", help="a checkpoint, the folder of a run, or an exported one")
    parser.add_argument("video", help="a video or a picture")
    parser.add_argument("text", nargs="+", help='what is matched with it; what ends with "?" is asked')
    parser.add_argument("--config", default="", help="its config; default: the one beside the checkpoint")
    for key in KEYS:
        parser.add_argument(f"--{key}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(as_arguments(sys.argv[1:] if arguments is None else list(arguments))))
    return argparse.Namespace(**given), {key: given[key] for key in KEYS if key in given}


def main(arguments: Sequence[str] | None = None) -> None:
    """Match a video with a text and ask it a question, whichever the checkpoint can."""
    options, changes = parse(arguments)
    violet = load(options.checkpoint, options.config, **changes)
    video = violet.encode_video(options.video)
    for text in options.text:
        if text.rstrip().endswith("?"):
            found = ", ".join(f"{word} {share:.1%}" for word, share in violet.answer(video, text))
        else:
            found = f"{violet.match(video, [text])[0]:.3f}"
        print(f"{text}  ->  {found}")


if __name__ == "__main__":
    main()
