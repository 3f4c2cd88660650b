"""Models of question answering, a score per option or the answer's word at [MASK], and their run.

Shapes: B questions, O options, X text tokens, V video tokens, D the width.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig

from agent import Agent
from batch import Batch, Mean, Output, rank_of
from dataset import Loader
from layers.fusion import visible
from lib import Config, World
from media.tokens import Tokens
from model import MlmHead, Violet, encoder_arguments, matching_head, start
from tasks.qa.metric import accuracy
from tasks.qa.questions import BEST, describe
from video_swin import Size

TASK_ROWS = {  # of `emb_task`, which has ten
    "published": {"multiple choice": 0, "open-ended": 2, "fill in the blank": 2},
    "fixed": {"multiple choice": 0, "open-ended": 1, "fill in the blank": 2},
}


class QuestionModel(Violet):
    """Base of the models of question answering: initial weights, loss and predictions."""

    heads: ClassVar[tuple[str, ...]] = ()

    def load(self, config: Config) -> None:
        """See `model.start`."""
        start(self, config, self.heads)

    def with_prompt(self, video: Tensor, prompt: Tensor | None) -> Tensor:
        """Video tokens (B, V, D) and behind them those of a prompt (B, P), whose positions begin at 0."""
        if prompt is None:
            return video
        return torch.cat([video, self.enc_txt(prompt, torch.ones_like(prompt)).to(video.dtype)], dim=1)

    def choose(self, logits: Tensor, batch: Batch, among: Sequence[int] = ()) -> Output:
        """The loss of picking `answer` (B,) of the batch, -1 = none, by `logits` (B, picks); the best picks.

        `rank` is that of the answer, 1 the first; ties and scores that are not finite never help. With
        `among` the best are sought among those picks alone, and reported by their places there.
        """
        logits, answers = logits.float(), batch["answer"].masked_fill(~batch["valid"], -1)
        loss = F.cross_entropy(logits, answers, ignore_index=-1, reduction="sum")
        output = Output(losses={"answer": Mean(loss, (answers >= 0).sum())})
        if not self.training:
            own = logits.gather(1, answers.clamp(min=0)[:, None])[:, 0]
            logits = logits[:, list(among)] if among else logits
            shares, best = logits.softmax(dim=1).topk(min(BEST, logits.shape[1]))
            output.predictions |= {
                "rank": rank_of(logits, own),
                "best": best,
                "probabilities": shares,
            }
        return output


class ChoiceModel(QuestionModel):
    """Multiple choice: `fc` scores each option's text against the video."""

    heads = ("fc",)

    def __init__(self, fusion: BertConfig, text: BertConfig, vis_size: Size, **encoders: Any) -> None:
        super().__init__(fusion, text, vis_size, **encoders)
        self.fc = matching_head(fusion)

    @classmethod
    def from_config(cls, config: Config) -> "ChoiceModel":
        """Built and started as `config` says."""
        model = cls(**encoder_arguments(config))
        model.load(config)
        return model

    def scores(self, img: Tensor, txt: Tensor, mask: Tensor, prompt: Tensor | None = None) -> Tensor:
        """img: (B, T, 3, H, W); txt, mask: (B, O, X); prompt: (B, P) or None -> (B, O).

        A video is encoded once for its options.
        """
        options = txt.shape[1]
        txt, mask = rearrange(txt, "b o x -> (b o) x"), rearrange(mask, "b o x -> (b o) x")
        video, text = self.encode(img, txt, mask)
        video = self.with_prompt(video, prompt)
        cls = torch.full((len(txt), 1), video.shape[1], device=txt.device)
        fused = self.fuse(repeat(video, "b v d -> (b o) v d", o=options), text, mask, cls)
        return rearrange(self.fc(fused), "(b o) 1 1 -> b o", o=options)

    def forward(self, batch: Batch) -> Output:
        """A batch of `questions.MultipleChoice` -> its loss and the best options."""
        scores = self.scores(batch["img"], batch["txt"], batch["mask"], batch.get("prompt"))
        return self.choose(scores, batch)


class MaskModel(QuestionModel):
    """The answer is the word that `fc_mtm` names at [MASK].

    `choices` are the tokens among which it is sought, the whole vocabulary if there are none; the loss is
    over the vocabulary in either case, as published. With `task_row`, that row of `emb_task` is a token
    behind those of the video.
    """

    heads = ("fc_mtm",)

    def __init__(
        self,
        fusion: BertConfig,
        text: BertConfig,
        vis_size: Size,
        choices: Sequence[int] = (),
        task_row: int | None = None,
        **encoders: Any,
    ) -> None:
        super().__init__(fusion, text, vis_size, **encoders)
        self.choices, self.task_row = list(choices), task_row
        self.extra_weights = () if task_row is None else ("emb_task",)
        self.fc_mtm = MlmHead(text)
        self.emb_task = nn.Parameter(fusion.initializer_range * torch.randn(10, fusion.hidden_size))
        self.emb_task.requires_grad_(task_row is not None)

    @classmethod
    def from_config(cls, config: Config, task: str, choices: Sequence[int] = ()) -> "MaskModel":
        """Built and started as `config` says; `task` is a key of `TASK_ROWS`."""
        row = TASK_ROWS[config.text_rules][task] if config.enable_task_token else None
        model = cls(choices=choices, task_row=row, **encoder_arguments(config))
        model.load(config)
        return model

    def logits(
        self, img: Tensor, txt: Tensor, mask: Tensor, place: Tensor, prompt: Tensor | None = None
    ) -> Tensor:
        """img: (B, T, 3, H, W); txt, mask: (B, X); place: (B,), that of [MASK] -> (B, vocabulary)."""
        return self.name_word(*self.encode(img, txt, mask), mask, place, prompt)

    def name_word(
        self, video: Tensor, text: Tensor, mask: Tensor, place: Tensor, prompt: Tensor | None = None
    ) -> Tensor:
        """video: (B, V, D); text: (B, X, D); mask: (B, X); place: (B,); prompt: (B, P) -> (B, vocabulary)."""
        video = self.with_task(video, prompt)
        fused = self.fuse(video, text, mask, video.shape[1] + place[:, None])
        return self.fc_mtm(rearrange(fused, "b 1 d -> b d"))

    def attention_to_video(
        self, video: Tensor, text: Tensor, mask: Tensor, place: Tensor, prompt: Tensor | None = None
    ) -> Tensor:
        """As `name_word` -> (B, V): the share of [MASK]'s attention that each video token gets."""
        seen = self.with_task(video, prompt)
        x, sees = torch.cat([seen, text], dim=1), visible(mask, seen.shape[1])
        return self.trsfr.attention_given(x, sees, seen.shape[1] + place)[:, : video.shape[1]]

    def with_task(self, video: Tensor, prompt: Tensor | None) -> Tensor:
        """Video tokens (B, V, D) and behind them the task's token and the prompt, where there are any."""
        if self.task_row is not None:
            token = self.emb_task[self.task_row].to(video.dtype)
            video = torch.cat([video, repeat(token, "d -> b 1 d", b=len(video))], dim=1)
        return self.with_prompt(video, prompt)

    def forward(self, batch: Batch) -> Output:
        """A batch of `questions.py` with its [MASK] at `place` -> its loss and the best words."""
        img, txt, mask, place = (batch[name] for name in ("img", "txt", "mask", "place"))
        logits = self.logits(img, txt, mask, place, batch.get("prompt"))
        return self.choose(logits, batch, self.choices)  # Deviation 7


def run(
    config: Config, world: World, tokens: Tokens, model: QuestionModel, loaders: Mapping[str, Loader]
) -> None:
    """Train, evaluating after each epoch, or evaluate alone; the best epoch is that on val (Deviation 10)."""
    tokens.check(model.enc_txt.vocabulary, model.enc_txt.positions)
    agent = Agent(
        config,
        world,
        model,
        describe=functools.partial(describe, splits=loaders),
        metric=functools.partial(accuracy, size_test=config.size_test, seed=config.seed),
    )
    agent.fit(loaders.get("train"), loaders.get("val"), loaders.get("test"), best="acc")
