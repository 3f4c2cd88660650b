"""Use a checkpoint from Python: match videos with texts, answer questions, make embeddings.

    from violet import load

    violet = load("_snapshot/mine")
    video = violet.encode_video("clip.mp4")
    print(violet.match(video, ["a red star turns", "a blue circle moves left"]))
    print(violet.answer(video, "what color is the star ?"))

`embed_video` and `embed_text` make unit vectors for search, which are compared by their inner product.
`_snapshot/mine` may be a checkpoint's file, the folder of a run, or one that `_tools/weights.py export`
wrote. In under a minute on a laptop, after `make demo`:

    python violet.py _snapshot/demo/pretraining/_pretrain_TIME clip.mp4 "a star turns" "what color is it ?"
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from engine.arguments import load_config, parse_with_keys
from engine.processes import choose_device
from layers.embedding import Embedding
from lib import Config, UserError, log, lookup, run_script
from media.decoding import SAME, is_picture, to_rgb
from media.files import read_json
from media.frames import Linked, Transform, even_frames, normalise
from media.tokens import Tokens
from media.tsv import BadRow
from model import check_trained, encoder_arguments, matching_head
from tasks.qa.kinds import FillInTheBlank, OpenEnded, OptionNumber
from tasks.qa.model import TASK_ROWS, MaskModel
from tasks.qa.texts import RULES, Ids, Text
from weights.checkpoint import Report, load_checkpoint
from weights.tensor_files import checkpoint_in, read_tensors

Frames = np.ndarray | Sequence[Image.Image] | Sequence[np.ndarray]
Video = str | Path | bytes | Frames
BEST = 5  # answers that are given
BATCH = 16  # clips that are encoded at a time
FEATURES = ("embedding", "pooled", "frames")  # what `embed_video` gives


class _Network(MaskModel):
    """VIOLET with both heads, of which a checkpoint may hold one; with those of embeddings if it `embeds`."""

    def __init__(self, embeds: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.fc = matching_head(arguments["fusion"])
        if embeds:
            self.fc_vtc = Embedding(arguments["fusion"].hidden_size)


class Pretrained:
    """The network of a checkpoint in evaluation mode, with its tokenizer and transform; see `load`.

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
    def encode_video(
        self, video: Video | Sequence[Video], start: float = 0.0, end: float | None = None
    ) -> Tensor:
        """A video -> its tokens (V, D); a list of videos -> (B, V, D). A picture is a clip of one frame.

        A video is the path of a file, its bytes, its frames as an array (T, H, W, 3) of uint8, or a list of
        pictures. `start` and `end`, in seconds after the first frame, give the part of a file that is looked
        at. Raises `UserError` for what cannot be read.
        """
        if is_batch(video):
            clips = [self.clip(one, start, end) for one in cast(Sequence[Video], video)]
            if not clips:
                raise UserError("the batch is empty.")
            if len({len(clip) for clip in clips}) != 1:
                raise UserError("a batch holds only videos or only pictures: encode the two apart.")
            return self.network.enc_img(normalise(torch.stack(clips).to(self.device)))
        return self.encode_clip(self.clip(video, start, end))

    @torch.inference_mode()
    def encode_clip(self, clip: Tensor) -> Tensor:
        """What `clip` gave of a video (T, 3, size, size) -> its tokens (V, D)."""
        return self.network.enc_img(normalise(clip.to(self.device))[None])[0]

    def clip(self, video: Any, start: float = 0.0, end: float | None = None) -> Tensor:
        """The frames of a video that are looked at: (T, 3, size, size) uint8, T 1 for a picture."""
        if start < 0 or (end is not None and end <= start):
            raise UserError(f"start {start} and end {end} are to be 0 <= start < end, in seconds.")
        if isinstance(video, bytes):
            with tempfile.NamedTemporaryFile(prefix="violet-") as file:
                file.write(video)
                file.flush()
                return self.clip(Path(file.name), start, end)
        if isinstance(video, str | Path):
            pictures, is_still = read_file(Path(video), start, end, self.config.size_frame)
        else:
            if start or end is not None:
                raise UserError("start and end are of files: frames have no times, cut them yourself.")
            frames = as_frames(video)
            is_still = len(frames) == 1
            pictures = [frames[i] for i in even_frames(len(frames), self.config.size_frame).tolist()]
        return self.transform(pictures[:1] if is_still else pictures, None)

    @torch.inference_mode()
    def encode_text(self, text: str) -> Tensor:
        """A text -> its tokens (X, D), [CLS] first, [SEP] last; no padding."""
        ids, mask = (row[None].to(self.device) for row in self.tokens(text))
        return self.network.enc_txt(ids, mask)[0, : int(mask.sum())]

    def embed_video(
        self,
        videos: Video | Sequence[Video],
        start: float = 0.0,
        end: float | None = None,
        features: str = "",
    ) -> np.ndarray:
        """One video or a list of N, as for `encode_video` -> float32 features, a row for each.

        `features`: "embedding", unit vectors (N, 256) to compare with those of `embed_text`; "pooled", the
        mean (N, C) of the video encoder's features over frames and patches; "frames", their mean (N, T, C)
        over the patches of each frame. Left out: the embedding, or "pooled" where there is no `fc_vtc`.
        Raises `UserError` for what cannot be read, and for embeddings that the checkpoint does not have.
        """
        kind = self.features_of(features)
        given = list(cast(Sequence[Video], videos)) if is_batch(videos) else [cast(Video, videos)]
        parts = [given[first : first + BATCH] for first in range(0, len(given), BATCH)]
        found = [self.embed_clips([self.clip(one, start, end) for one in part], kind) for part in parts]
        if not found:
            raise UserError("the batch is empty.")
        if len({rows.shape[1:] for rows in found}) != 1:
            raise UserError("features of frames: a batch holds only videos or only pictures.")
        return np.concatenate(found)

    def features_of(self, wanted: str) -> str:
        """The kind of features that `embed_video` gives; see there."""
        if not wanted and "fc_vtc" not in self.heads:
            log.warning(
                "%s has no fc_vtc: the features are those of the video encoder, which fit no text",
                self.config.path_ckpt,
            )
        kind = lookup(FEATURES, wanted, "features") if wanted else FEATURES["fc_vtc" not in self.heads]
        if kind == "embedding":
            self._require("fc_vtc", "make embeddings")
        return kind

    @torch.inference_mode()
    def embed_clips(self, clips: Sequence[Tensor], features: str) -> np.ndarray:
        """Clips (T, 3, size, size) of uint8, encoded at once -> their features; see `embed_video`."""
        rows: list[Tensor] = [torch.empty(0)] * len(clips)
        for length in {len(clip) for clip in clips}:  # pictures have one frame
            places = [i for i, clip in enumerate(clips) if len(clip) == length]
            img = normalise(torch.stack([clips[i] for i in places]).to(self.device))
            for place, row in zip(places, self._features(img, features), strict=True):
                rows[place] = row.float().cpu()
        if len({row.shape for row in rows}) != 1:
            raise UserError("features of frames: a batch holds only videos or only pictures.")
        return torch.stack(rows).numpy()

    def _features(self, img: Tensor, features: str) -> Tensor:
        """img: (B, T, 3, S, S), normalised -> (B, 256), (B, C) or (B, T, C)."""
        if features == "embedding" and self.network.fc_vtc is not None:
            return self.network.fc_vtc.of_video(self.network.enc_img(img), img.shape[1])
        patches = self.network.enc_img.swin(rearrange(img, "b t c h w -> b c t h w"))
        frames = rearrange(patches.mean(dim=(3, 4)), "b c t -> b t c")
        return frames if features == "frames" else frames.mean(dim=1)

    @torch.inference_mode()
    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """One text or a list of N -> unit vectors (N, 256), float32.

        Their inner products with the embeddings of videos say how well the two match. Raises `UserError` if
        the checkpoint has no `fc_vtc`.
        """
        self._require("fc_vtc", "make embeddings")
        given = [texts] if isinstance(texts, str) else list(texts)
        if not given or not all(isinstance(text, str) for text in given):
            raise UserError("texts are a string or a list of strings, and one at least.")
        found = []
        for first in range(0, len(given), 16 * BATCH):
            rows = [self.tokens(text) for text in given[first : first + 16 * BATCH]]
            ids, mask = (torch.stack(part).to(self.device) for part in zip(*rows, strict=True))
            found.append(self.network.embed_text(self.network.enc_txt(ids, mask), mask).float().cpu())
        return torch.cat(found).numpy()

    @torch.inference_mode()
    def match(self, video: Video | Tensor, texts: str | Tensor | Sequence[str | Tensor]) -> list[float]:
        """How well each text (or what `encode_text` made of it) fits a video, higher = better; one is a list.

        `video` is as for `encode_video`, or what that made of it. Scores compare texts with one video, and
        videos with one text. Raises `UserError` if the checkpoint has no `fc`, such as one of open-ended
        questions.
        """
        self._require("fc", "match")
        texts = [texts] if isinstance(texts, str | Tensor) else list(texts)
        if not texts:
            return []
        if wrong := [text for text in texts if not isinstance(text, str | Tensor)]:
            raise UserError(f"{wrong[0]!r} is no text.")
        words = [self.encode_text(text) if isinstance(text, str) else text for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(words, batch_first=True)
        lengths = torch.tensor([len(word) for word in words])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(self.device)
        seen = self._video(video)[None].expand(len(words), -1, -1)
        cls = torch.full((len(words), 1), seen.shape[1], device=self.device)
        return self.network.fc(self.network.fuse(seen, padded, mask, cls)).flatten().tolist()

    @torch.inference_mode()
    def answer(
        self, video: Video | Tensor, question: str, options: Sequence[str] = (), best: int = BEST
    ) -> list[tuple[str, float]]:
        """The likeliest answers to a question about a video, the best first, each with its probability.

        An answer is a word of the vocabulary. A question with its own [MASK] is completed there. With
        `options` they are put to the network by number, as in tgif-action, and the answers are those.
        Raises `UserError` if the checkpoint has no `fc_mtm`, such as one of retrieval.
        """
        given, choices = self._question(question, options)
        logits = self.network.name_word(self._video(video)[None], *given)[0].float()
        shares, picks = (logits[choices] if choices else logits).softmax(dim=0).sort(descending=True)
        picked = picks[:best].tolist()
        names = (
            [options[i] for i in picked] if options else self.tokens.tokenizer.convert_ids_to_tokens(picked)
        )
        return list(zip(names, shares[:best].tolist(), strict=True))

    @torch.inference_mode()
    def attention(self, video: Video | Tensor, question: str, options: Sequence[str] = ()) -> np.ndarray:
        """Where on the frames the answer looks -> (T, h, w), the share of [MASK]'s attention to each patch.

        The mean over heads and layers of the cross-modal transformer. See `answer`.
        """
        seen = self._video(video)
        side = self.config.size_img // self.config.size_patch
        found = self.network.attention_to_video(seen[None], *self._question(question, options)[0])[0]
        return rearrange(found, "(t n) -> t n", n=1 + side**2)[:, 1:].unflatten(1, (side, side)).cpu().numpy()

    def _question(
        self, question: str, options: Sequence[str]
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], list[int]]:
        """The text tokens, their mask, the place of [MASK] and the prompt; the tokens of the options."""
        self._require("fc_mtm", "answer")
        if isinstance(options, str) or not all(isinstance(text, str) for text in [question, *options]):
            raise UserError("a question is a text, and its options are a list of texts.")
        text, between, choices, task = self._ask(question, list(options))
        ids, prompt = (torch.tensor([i], device=self.device) for i in (text.ids[0], between))
        mask, place = (ids != self.tokens.special.pad).long(), torch.tensor([text.place], device=self.device)
        rows = TASK_ROWS[self.config.text_rules]
        self.network.task_row = rows[task] if self.config.enable_task_token else None
        return (self.network.enc_txt(ids, mask), mask, place, prompt if between else None), choices

    def _ask(self, question: str, options: list[str]) -> tuple[Text, Ids, list[int], str]:
        """The text, the prompt's sequence, the tokens among which the answer is sought, the task's name."""
        masked = str(self.tokens.tokenizer.mask_token)
        kind = OptionNumber if options else FillInTheBlank if masked in question else OpenEnded
        numbers = [f"option {i}:" for i in range(len(options))]
        prompt = kind.prompt if self.config.enable_prompt else ""
        table = self.tokens.words([prompt, question, OpenEnded.ending, *numbers, *options])
        special, size = self.tokens.special, self.config.size_txt
        make = RULES[self.config.text_rules]
        rules = make(special, size, self.config.mask_pos, tuple(table[prompt]))
        if options:
            heads, offered = ([table[piece] for piece in pieces] for pieces in (numbers, options))
            text, task = rules.number(table[question], heads, offered), "multiple choice"
        elif kind is FillInTheBlank:
            text, task = rules.complete(table[question]), "fill in the blank"
        else:
            text, task = rules.ask(table[question], table[OpenEnded.ending]), "open-ended"
        if not text.answerable:
            raise UserError(f"the text is longer than size_txt {size} and loses its [MASK]: shorten it.")
        return text, rules.between, OptionNumber.choices(self.tokens, len(options)) if options else [], task

    def _video(self, video: Video | Tensor) -> Tensor:
        if isinstance(video, Tensor) and video.is_floating_point() and video.ndim == 2:
            return video.to(self.device)
        if isinstance(video, Tensor) or is_batch(video):
            raise UserError("one video is matched or asked: a file, frames, or one row of a batch.")
        return self.encode_video(video)

    def _require(self, head: str, use: str) -> None:
        if head not in self.heads:
            raise UserError(
                f"{self.config.path_ckpt} has no {head}, without which it cannot {use}: it was trained for "
                f"{self.config.task}, take a checkpoint of another task or of pre-training."
            )


def is_batch(video: Any) -> bool:
    """Whether this is a list of videos, and not one: the frames of one are pictures."""
    if not isinstance(video, list | tuple):
        return False
    return not video or not all(isinstance(v, Image.Image) or np.ndim(v) == 3 for v in map(bare, video))


def bare(video: Any) -> Any:
    """A stand-in of one dimension for what is neither a picture nor an array."""
    return video if isinstance(video, Image.Image | np.ndarray) else [0]


def as_frames(video: Any) -> list[Tensor]:
    """An array (T, H, W, 3) of uint8, or a list of pictures -> (3, H, W) each; else raises `UserError`."""
    given = [video] if isinstance(video, Image.Image) else video if np.iterable(video) else []
    frames = [np.array(to_rgb(f) if isinstance(f, Image.Image) else f) for f in given]
    if not frames or any(f.dtype != np.uint8 or f.ndim != 3 or f.shape[2] != 3 or not f.size for f in frames):
        raise UserError(
            "a video is a path, the bytes of a file, an array of frames (T, H, W, 3) of uint8, or a list of "
            f"pictures; this is {type(video).__name__} {getattr(video, 'shape', '')} "
            f"{getattr(video, 'dtype', '')}".rstrip()
            + "."
        )
    return [torch.from_numpy(f).permute(2, 0, 1) for f in frames]


def read_file(path: Path, start: float, end: float | None, size_frame: int) -> tuple[list[Tensor], bool]:
    """Frames of a part of a file, even, (3, H, W) uint8 each; and whether it is a picture of one."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        frames = Linked(path, None)
        first = frames.times[0] if len(frames) else 0.0
        last = float("inf") if end is None else first + end - SAME
        inside = [time for time in frames.times if first + start - SAME <= time < last]
        if not inside:
            raise BadRow(f"{path}: it has no frame in its part from {start} to {end or 'its end'} seconds")
        is_still = len(frames) == 1 and is_picture(path)
        frames.times = inside
        return frames.read(even_frames(len(inside), size_frame).tolist()), is_still
    except BadRow as error:
        raise UserError(f"{error}: it cannot be read as a video or a picture.") from error


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
    keys = read_tensors(file).keys()
    heads = [head for head in ("fc", "fc_mtm", "fc_vtc") if any(key.startswith(f"{head}.") for key in keys)]
    with torch.random.fork_rng(devices=[]):  # whoever uses it keeps their own random numbers
        network = _Network("fc_vtc" in heads, **encoder_arguments(settings))
    report = load_checkpoint(network, str(file))
    check_trained(report, dataclasses.replace(settings, size_epoch=0), [])
    return Pretrained(network.to(choose_device(settings.device)).eval(), settings, heads, report)


def read_config(folder: Path, given: Path | None = None, changes: dict[str, Any] | None = None) -> Config:
    """The config of a checkpoint in `folder`: `given`, or the one that lies there, with some keys changed.

    The folders `text` and `fusion` of an export take precedence over the BERTs that the config names.
    """
    path = given or next((p for p in (folder / "args.json", folder / "config.json") if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no args.json: name the config, such as one of _args/.")
    content = read_json(path, "name a config by --config", most=1 << 20)
    kind = content.get("type", "pretrain") if isinstance(content, dict) else "pretrain"
    beside = {"txt_backbone": folder / "text", "fusion_encoder": folder / "fusion"}
    own = {key: str(place) for key, place in beside.items() if place.is_dir()}
    if "txt_backbone" in own:
        own["tokenizer"] = ""
    arguments = [f"--{key}={value}" for key, value in {**own, **(changes or {})}.items()]
    return load_config(kind, ["--config", str(path), *arguments])


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The command line, and the config's keys that it changes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoint", help="checkpoint, run folder or exported folder")
    parser.add_argument("video", help="a video or a picture")
    parser.add_argument(
        "text", nargs="+", help='texts to match with the video; a text that ends with "?" is a question'
    )
    parser.add_argument("--config", default="", help="config (default: the one in the checkpoint's folder)")
    return parse_with_keys(parser, arguments)


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
    run_script(main)
