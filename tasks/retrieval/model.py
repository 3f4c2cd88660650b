"""The model of text-to-video retrieval, trained on all pairs of a batch.

Shapes: N videos, M texts, X text tokens, V video tokens, D the width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig

from batch import Batch, Mean, Output, best_alone
from engine.parallel import gather
from layers.embedding import Embedding
from lib import Config, World
from model import Violet, encoder_arguments, matching_head, start
from video_swin import Size


class RetrievalModel(Violet):
    """`fc` scores every text of a batch with every video; each is to find its own among the others.

    With `pair_batch` so many pairs are fused at a time and their activations computed again in the backward
    pass, and videos are encoded `sqrt(pair_batch)` at a time in the same way: a batch of any size trains in
    about the memory of one of that many clips. With a `world`, the other processes' videos and texts are
    paired too. With `vtc` embeddings are trained too (`fc_vtc`), on the batches of all processes of
    `vtc_world`.
    """

    def __init__(
        self,
        fusion: BertConfig,
        text: BertConfig,
        vis_size: Size,
        temperature: float = 0.05,
        pair_batch: int = 0,
        world: World | None = None,
        vtc: bool = False,
        vtc_world: World | None = None,
        **encoders: Any,
    ) -> None:
        super().__init__(fusion, text, vis_size, **encoders)
        self.temperature, self.pair_batch, self.world = temperature, pair_batch, world
        self.fc = matching_head(fusion)
        if vtc:
            self.fc_vtc, self.vtc_world = Embedding(fusion.hidden_size), vtc_world

    @classmethod
    def from_config(cls, config: Config, world: World | None = None) -> "RetrievalModel":
        """Built as `config` says, with the checkpoint's weights, or else the encoders' published ones."""
        model = cls(
            **encoder_arguments(config),
            temperature=config.temp,
            pair_batch=config.pair_batch,
            world=world if config.gather_negatives else None,
            vtc=config.vtc,
            vtc_world=world,
        )
        start(model, config, ["fc", "fc_vtc"] if config.vtc else ["fc"])
        return model

    def videos(self, img: Tensor) -> Tensor:
        """(N, T, 3, H, W) -> video tokens (N, V, D), encoded in parts where `pair_batch` asks for it."""
        clips = math.isqrt(self.pair_batch)
        if not clips or len(img) <= clips:
            return self.enc_img(img)
        return torch.cat([self.again(self.enc_img, part) for part in img.split(clips)])

    def average(self, img: Tensor, clips: int) -> Tensor:
        """img: (N, C, T, 3, H, W), C clips of each video -> the mean of their tokens (N, V, D).

        At most `clips` are encoded at a time.
        """
        parts = rearrange(img, "n c t a h w -> (n c) t a h w").split(clips)
        tokens = torch.cat([self.enc_img(part) for part in parts])
        return rearrange(tokens, "(n c) v d -> n c v d", n=len(img)).mean(dim=1)

    def scores(self, video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """video: (N, V, D); text: (M, X, D); mask: (M, X) -> `fc` of all pairs (N, M)."""
        pairs = torch.cartesian_prod(
            torch.arange(len(video), device=video.device), torch.arange(len(text), device=video.device)
        )
        size = self.pair_batch or len(pairs)
        parts = [self.again(self.pair_scores, video, text, mask, part) for part in pairs.split(size)]
        return torch.cat(parts).view(len(video), len(text))

    def pair_scores(self, video: Tensor, text: Tensor, mask: Tensor, pairs: Tensor) -> Tensor:
        """pairs: (P, 2), numbers of a video and a text -> `fc` of each (P,)."""
        videos, texts = pairs.unbind(dim=1)
        cls = torch.full((len(pairs), 1), video.shape[1], device=video.device)
        video, text = video.index_select(0, videos), text.index_select(0, texts)
        return self.fc(self.fuse(video, text, mask.index_select(0, texts), cls)).flatten()

    def again(self, function: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """`function(*given)`; with `pair_batch` what it computes is not kept for the backward pass."""
        if self.pair_batch and torch.is_grad_enabled():
            return checkpoint(function, *given, use_reentrant=False)
        return function(*given)

    def forward(self, batch: Batch) -> Output:
        """A batch of `captions.Pairs` -> the loss and the accuracy within the batch."""
        video, text = self.videos(batch["img"]), self.enc_txt(batch["txt"], batch["mask"])
        world = self.world if self.training and self.world and self.world.size > 1 else None
        own = torch.arange(len(video), device=video.device)
        if world is None:
            by_video = self.scores(video, text, batch["mask"])
            by_text, videos = by_video.T, batch["video"]
        else:  # a process fuses its own videos with all texts: every pair is fused once
            mask, videos = gather(batch["mask"], world), gather(batch["video"], world)
            by_video = self.scores(video, gather(text, world), mask)
            own = own + world.rank * len(video)
            by_text = gather(by_video, world)[:, own].T
        # Deviation 14: published, another caption of the same video is one that it must not find
        other = own[:, None] != torch.arange(len(videos), device=own.device)
        same = (batch["video"][:, None] == videos) & other
        by_video, by_text = (s.float().masked_fill(same, -torch.inf) for s in (by_video, by_text))
        output = self.judge(by_video, by_text, own, batch["valid"])
        if self.fc_vtc is not None:
            self.contrast(video, text, batch, output, self.vtc_world)
        return output

    def judge(self, by_video: Tensor, by_text: Tensor, own: Tensor, valid: Tensor) -> Output:
        """The sum of the softmax losses both ways.

        by_video: (N, texts); by_text: (N, videos); own: (N,), where the right one is.
        """
        count = torch.full((), len(own), device=own.device)
        losses = [
            F.cross_entropy(scores / self.temperature, own, reduction="sum") for scores in (by_video, by_text)
        ]
        right = [best_alone(scores, own) & valid for scores in (by_text, by_video)]
        output = Output(losses={"match": Mean(losses[0] + losses[1], count)})
        for name, hits in zip(("acc_t2v", "acc_v2t"), right, strict=True):
            output.scores[name] = Mean(hits.sum(), count)
        if not self.training:
            output.predictions |= {
                "t2v": right[0],
                "v2t": right[1],
                "among": [by_text.shape[1]] * len(own),
            }
        return output
