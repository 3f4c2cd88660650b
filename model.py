"""VIOLET: video and text encoders, the cross-modal transformer over both (fusion.py), the heads of the tasks.

Shapes: B clips, T frames, h x w patches of a frame, X text tokens, D the width, L = T(1+hw) + X.
Attributes carry the names of published checkpoints: enc_img, enc_txt, trsfr, fc, fc_mtm, decoder_*.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from batch import Batch, Mean, Output, best_alone
from engine.figures import (
    Balance,
    RunningMeans,
    diversity,
    input_figures,
    share_hidden,
    task_gradients,
    word_error,
    word_sums,
)
from engine.parallel import choose_checkpoint, gather
from engine.processes import choose_device
from layers.embedding import Embedding, draw_hard, info_nce
from layers.fusion import FusionEncoder, FusionLayer, initialise_bert, put, visible
from layers.norm import LayerNorm
from lib import Config, UserError, World, log
from masking import hide_patches
from mvm_targets import Target, make_targets, name_heads
from teachers.base import Teacher
from teachers.make import make_teachers
from video_swin import SIZES, Block, Size, VideoSwin
from weights.bert import bert_config, read_bert
from weights.checkpoint import Report, load_checkpoint
from weights.swin import load_backbone, weights_path

MVM_HEADS = ("decoder_", "fc_mvm")  # how the names of their heads begin in checkpoints


# ------------------------------------------------------------------------------------------- encoders


class VideoEncoder(nn.Module):
    """Video tokens: Video Swin's patches, a learned token before each frame's, position and frame added."""

    compiled = False

    def __init__(
        self,
        size: Size,
        hidden_size: int,
        max_frames: int = 6,
        max_patches: int = 14,
        init_std: float = 0.02,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.swin = VideoSwin(size, use_checkpoint)
        self.fc = nn.Identity() if self.swin.width == hidden_size else nn.Linear(self.swin.width, hidden_size)

        def embedding(*shape: int) -> nn.Parameter:
            return nn.Parameter(init_std * torch.randn(*shape, hidden_size))

        self.emb_cls = embedding(1, 1, 1)
        self.emb_pos = embedding(1, 1, 1 + max_patches**2)
        self.emb_len = embedding(1, max_frames, 1)
        # of the frame-order task, which published checkpoints carry and nothing here uses
        self.emb_odr = embedding(1, 1, 1).requires_grad_(False)
        self.norm = LayerNorm(hidden_size)

    def __call__(self, img: Tensor) -> Tensor:
        """As `forward`. A compiled graph is of any B and of one T, H and W, whose windows have many cases."""
        if self.compiled and not torch.compiler.is_compiling():
            torch._dynamo.maybe_mark_dynamic(img, 0)
            torch._dynamo.mark_static(img, [1, 2, 3, 4])
        return super().__call__(img)

    def compile(self, **options: Any) -> None:
        """See `nn.Module.compile`."""
        super().compile(**options)
        self.compiled = True

    def forward(self, img: Tensor) -> Tensor:
        """img: (B, T, 3, H, W), normalised -> (B, T(1+hw), D)."""
        patches = self.swin(rearrange(img, "b t c h w -> b c t h w"))
        patches = self.fc(rearrange(patches, "b c t h w -> b t (h w) c"))
        batch, frames, length = patches.shape[:3]
        cls = self.emb_cls.expand(batch, frames, 1, -1)
        tokens = torch.cat([cls.to(patches.dtype), patches], dim=2)
        tokens = tokens + (self.emb_pos[:, :, : 1 + length] + self.emb_len[:, :frames]).to(tokens.dtype)
        return rearrange(self.norm(tokens), "b t n d -> b (t n) d")


class TextEncoder(nn.Module):
    """BERT's embeddings, or, with `embed_only` off, its whole encoder."""

    def __init__(self, bert: BertConfig, embed_only: bool = True) -> None:
        super().__init__()
        self.embed_only = embed_only
        self.vocabulary, self.positions = bert.vocab_size, bert.max_position_embeddings
        self.emb_txt = BertEmbeddings(bert) if embed_only else BertModel(bert, add_pooling_layer=False)

    def forward(self, txt: Tensor, mask: Tensor) -> Tensor:
        """txt: (B, X) ids; mask: (B, X), 1 = a token -> (B, X, D)."""
        if self.embed_only:
            return self.emb_txt(txt)
        return self.emb_txt(txt, attention_mask=mask).last_hidden_state


# ---------------------------------------------------------------------------------------------- heads


class MlmHead(nn.Module):
    """BERT's head of masked language modelling: keys `predictions.transform.dense` and so on."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        self.predictions = _MlmPredictions(bert)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> logits (..., vocabulary)."""
        return self.predictions(x)


class _MlmPredictions(nn.Module):
    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        width = bert.hidden_size
        self.transform = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "LayerNorm": LayerNorm(width, bert.layer_norm_eps)}
        )
        self.bias = nn.Parameter(torch.zeros(bert.vocab_size))
        self.decoder = nn.Linear(width, bert.vocab_size)
        self.decoder.bias = self.bias  # published checkpoints hold it under both names

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform["LayerNorm"](F.gelu(self.transform["dense"](x))))


def matching_head(bert: BertConfig) -> nn.Sequential:
    """`fc`: a score of how well the text fits the video, from the output at the text's [CLS]."""
    width = bert.hidden_size
    return nn.Sequential(
        nn.Dropout(bert.hidden_dropout_prob), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1)
    )


# --------------------------------------------------------------------------------------------- models


class Violet(nn.Module):
    """The two encoders and the transformer over both; a task's model adds its heads.

    `fusion` and `text` are the BERTs whose encoder and whose embeddings are used.
    """

    fsdp_units: ClassVar[tuple[type[nn.Module], ...]] = (Block, FusionLayer)  # joined one at a time
    extra_weights: tuple[str, ...] = ()  # parameters outside heads that the task reads

    def __init__(
        self,
        fusion: BertConfig,
        text: BertConfig,
        vis_size: Size,
        max_frames: int = 6,
        max_patches: int = 14,
        embed_only: bool = True,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        width, std = fusion.hidden_size, fusion.initializer_range
        self.enc_img = VideoEncoder(vis_size, width, max_frames, max_patches, std, use_checkpoint)
        self.enc_txt = TextEncoder(text, embed_only)
        self.trsfr = FusionEncoder(fusion, use_checkpoint)
        self.fc_vtc: Embedding | None = None  # the heads of embeddings, which a task may add
        initialise_bert(self.enc_txt, text.initializer_range)
        initialise_bert(self.trsfr, std)

    def encode(self, img: Tensor, txt: Tensor, txt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """img: (B, T, 3, H, W); txt, txt_mask: (B, X) -> video tokens (B, V, D), text tokens (B, X, D)."""
        return self.enc_img(img), self.enc_txt(txt, txt_mask)

    def fuse(self, video: Tensor, text: Tensor, txt_mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Video (B, V, D), text (B, X, D) -> output (B, V+X, D), or (B, K, D) at `positions` (B, K)."""
        x = torch.cat([video, text.to(video.dtype)], dim=1)
        return self.trsfr(x, visible(txt_mask, video.shape[1]), positions)

    def embed(self, video: Tensor, frames: int, text: Tensor, txt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Video (B, V, D) of so many frames and text (B, X, D) -> the unit vectors (B, E) of each."""
        assert self.fc_vtc is not None
        return self.fc_vtc.of_video(video, frames), self.embed_text(text, txt_mask)

    def embed_text(self, text: Tensor, txt_mask: Tensor) -> Tensor:
        """Text tokens (B, X, D) -> unit vectors (B, E); the transformer sees the text alone."""
        assert self.fc_vtc is not None
        cls = torch.zeros_like(txt_mask[:, :1], dtype=torch.long)  # not by its length: that would be exported
        return self.fc_vtc.of_text(self.trsfr(text, visible(txt_mask, 0), cls)[:, 0])

    def contrast(
        self, video: Tensor, text: Tensor, batch: Batch, output: Output, world: World | None
    ) -> tuple[Tensor, Tensor]:
        """VTC: the contrastive loss of the embeddings of a batch, in training of all processes' batches.

        video: (B, V, D); text: (B, X, D). Another caption of the same video is no negative (Deviation 14).
        Returns the logits (B, B) of this process's videos with its texts, and which texts are of the same
        video, bool (B, B).
        """
        assert self.fc_vtc is not None
        world = world if self.training else None  # in evaluation processes have different numbers of batches
        videos, texts = self.embed(video, batch["img"].shape[1], text, batch["mask"])
        numbers = batch["video"][:, None] == gather(batch["video"], world)
        own = torch.arange(len(videos), device=videos.device)
        first = world.rank * len(own) if world else 0
        same = numbers.scatter(1, (first + own)[:, None], False)
        by_video = self.fc_vtc.logits(videos, gather(texts, world)).masked_fill(same, -torch.inf)
        by_text = self.fc_vtc.logits(texts, gather(videos, world)).masked_fill(same, -torch.inf)
        count = torch.full((), len(own), device=own.device)
        output.losses["vtc"] = Mean(info_nce(by_video, by_text, first + own), count)
        right = best_alone(by_text, first + own) & batch["valid"]
        output.scores["vtc_acc"] = Mean(right.sum(), count)
        here = slice(first, first + len(own))
        return by_video[:, here], same[:, here]

    @torch.no_grad()
    def attention_received(self, img: Tensor, txt: Tensor, txt_mask: Tensor) -> Tensor:
        """(B, V+X): the attention that each position receives, without dropout, for attended masking."""
        training = self.training
        self.eval()
        video, text = self.encode(img, txt, txt_mask)
        mask = visible(txt_mask, video.shape[1])
        received = self.trsfr.attention_received(torch.cat([video, text.to(video.dtype)], dim=1), mask)
        self.train(training)
        return received


class PretrainModel(Violet):
    """Masked language modelling, video-text matching and masked visual modelling on one pass of a pair.

    With the task `vtc` the embeddings of the masked video and of the whole text are contrasted too, over all
    processes of `world`; `hard_negatives` then draws the texts of video-text matching by their similarities.
    """

    def __init__(
        self,
        fusion: BertConfig,
        text: BertConfig,
        vis_size: Size,
        tasks: Sequence[str] = ("mlm", "vtm", "mvm"),
        targets: Sequence[str] = ("pixel",),
        temperature: float = 0.05,
        patch_size: int = 32,
        teachers: Mapping[str, Teacher] | None = None,
        mvm_weight: Mapping[str, float] | str | None = None,
        mvm_share: float = 1.0,
        mvm_on_images: bool = True,
        hard_negatives: bool = False,
        world: World | None = None,
        **encoders: Any,
    ) -> None:
        super().__init__(fusion, text, vis_size, **encoders)
        self.tasks, self.temperature, self.mvm_on_images = tuple(tasks), temperature, mvm_on_images
        self.hard_negatives, self.world = hard_negatives, world
        fixed = {} if mvm_weight is None or isinstance(mvm_weight, str) else mvm_weight
        self.weights = {f"mvm_{name}": weight for name, weight in fixed.items()}
        self.fc = matching_head(fusion)
        self.fc_mtm = MlmHead(text)
        self.targets = make_targets(targets, fusion.hidden_size, patch_size, teachers)
        self.mvm_heads = name_heads(self.targets.values())
        for name, head in self.mvm_heads.items():
            self.add_module(name, head)
        heads_of: dict[str, list[nn.Module]] = {
            "vtm": [self.fc],
            "mlm": [self.fc_mtm],
            "mvm": list(self.mvm_heads.values()),
        }
        for task, heads in heads_of.items():
            for head in heads:  # DistributedDataParallel waits for the gradients of a head that trains
                head.requires_grad_(task in self.tasks)
        if "vtc" in self.tasks:  # published checkpoints have no such heads
            self.fc_vtc = Embedding(fusion.hidden_size)
        channels = {f"mvm_{name}": target.channels for name, target in self.targets.items()}
        # in a dict, for they are in no checkpoint
        self.state_of_run: dict[str, nn.Module] = {
            "running": RunningMeans({"mlm": self.enc_txt.vocabulary, **channels})
        }
        if mvm_weight == "balanced" and "mvm" in self.tasks:
            self.state_of_run["balance"] = Balance("mlm", list(channels), mvm_share)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The state of the run goes where the model goes: processes add it up, on GPUs by NCCL alone."""
        for state in self.state_of_run.values():
            state._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @classmethod
    def from_config(cls, config: Config, world: World | None = None) -> "PretrainModel":
        """Built and started as `config` says."""
        if config.vtm_negatives == "hard" and "vtc" not in config.pretrain_tasks:
            raise UserError(
                "vtm_negatives hard draws texts by the embeddings of vtc: add vtc to pretrain_tasks."
            )
        model = cls(
            **encoder_arguments(config),
            tasks=config.pretrain_tasks,
            targets=config.mvm_target,
            temperature=config.temp,
            patch_size=config.size_patch,
            teachers=make_teachers(config) if "mvm" in config.pretrain_tasks else None,
            mvm_weight=config.mvm_weight,
            mvm_share=config.mvm_share,
            mvm_on_images=config.mvm_on_images,
            hard_negatives=config.vtm_negatives == "hard",
            world=world,
        )
        used = {"vtm": ["fc"], "mlm": ["fc_mtm"], "mvm": list(model.mvm_heads), "vtc": ["fc_vtc"]}
        heads = [name for task in config.pretrain_tasks for name in used[task]]
        start(model, config, heads, model.match_heads)
        model.follow(0.0)  # also where nothing is trained, such as for a picture
        return model

    def match_heads(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors, its MVM heads given to the targets here (an `adapt` of `load_checkpoint`).

        A head goes to that of the same name. `fc_mvm`, which several kinds of target share, also goes to
        the first of them that it fits. One that fits none is another target's, and left out.
        """
        taken = {key: tensor for key, tensor in tensors.items() if not key.startswith(MVM_HEADS)}
        stored: dict[str, dict[str, Tensor]] = {}
        for key in tensors.keys() - taken.keys():
            part, _, rest = key.partition(".")
            stored.setdefault(part, {})[rest] = tensors[key]
        shapes = {part: {k: v.shape for k, v in head.items()} for part, head in stored.items()}
        for name, head in self.mvm_heads.items():
            wanted = {k: v.shape for k, v in head.state_dict().items()}
            alike = [part for part in sorted(stored) if {part[:6], name[:6]} == {"fc_mvm"}]
            fitting = [part for part in (name, *alike) if part in stored and shapes[part] == wanted]
            if not fitting:
                continue
            taken |= {f"{name}.{rest}": tensor for rest, tensor in stored.pop(fitting[0]).items()}
            if fitting[0] != name:
                log.info("checkpoint: its %s becomes %s", fitting[0], name)
        return taken

    def forward(self, batch: Batch) -> Output:
        """A batch with its masks (see `masking.mask_batch`) -> the losses and accuracies of the tasks."""
        shown = hide_patches(batch["img"], batch["mvm_mask"])
        video, text = self.encode(shown, batch["masked_txt"], batch["mask"])
        output = Output(losses={}, weights=self.weights | self.balanced_weights())
        if "vtc" in self.tasks:
            whole = self.enc_txt(batch["txt"], batch["mask"])
            similar = self.contrast(video, whole, batch, output, self.world)
            if self.hard_negatives and self.training:
                batch = {**batch, "negatives": draw_hard(*similar, batch["negatives"].shape[1])}
        read, others = self.fuse_with_others(video, text, batch)
        fused = put(read, batch["positions"], video.shape[1] + text.shape[1])
        visual, words = fused[:, : video.shape[1]], fused[:, video.shape[1] :]
        if "mlm" in self.tasks:
            self.name_words(words, batch, output)
        if "vtm" in self.tasks:
            self.match(torch.cat([words[:, :1], others], dim=1), batch, output)
        if "mvm" in self.tasks:
            self.reconstruct(visual, shown, batch, output)
        if self.training:
            self.look_at_encoders(video, text, batch, output)
        if batch.get("probe"):
            output.scores |= task_gradients(output.losses, read)
        return output

    def fuse_with_others(self, video: Tensor, text: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The output of each pair at its `positions` (B, K, D), and at [CLS] with N other texts (B, N, D).

        One pass of (1 + N) B pairs: two passes would start twice the kernels, and add up their gradients. In
        its last layer the other pairs read [CLS] K times, which is cheaper.
        """
        others, mask = self.other_texts(text, batch)
        own, each = batch["positions"][:, None], 1 + others.shape[1]
        cls = torch.full_like(own, video.shape[1]).expand(-1, each - 1, -1)
        texts, masks, positions = (
            torch.cat(parts, dim=1).flatten(0, 1)
            for parts in ([text[:, None], others], [batch["mask"][:, None], mask], [own, cls])
        )
        fused = self.fuse(video.repeat_interleave(each, dim=0), texts, masks, positions)
        fused = fused.unflatten(0, (-1, each))
        return fused[:, 0], fused[:, 1:, 0]

    def other_texts(self, text: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """text: (B, X, D) -> for VTM N texts of other samples, (B, N, X, D), and their masks (B, N, X).

        They are texts of the batch in training (`negatives`), of the whole split in evaluation (`other_txt`).
        """
        if "vtm" not in self.tasks:
            return text[:, None][:, :0], batch["mask"][:, None][:, :0]
        if "other_txt" in batch:
            ids, mask = batch["other_txt"], batch["other_mask"]
            return self.enc_txt(ids.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, ids.shape[:2]), mask
        at = batch["negatives"]
        text, mask = (x.index_select(0, at.flatten()).unflatten(0, at.shape) for x in (text, batch["mask"]))
        return text, mask

    def look_at_encoders(self, video: Tensor, text: Tensor, batch: Batch, output: Output) -> None:
        """Figures of the inputs, and of the pooled tokens of both encoders, (B, V, D) and (B, X, D)."""
        pooled = {"video": video.sum(dim=1), "text": torch.einsum("bxd,bx->bd", text, batch["mask"].to(text))}
        for name, vectors in pooled.items():
            found = diversity(vectors)
            output.scores |= {f"{name}_{figure}": found[figure] for figure in ("rank", "similarity")}
        output.scores |= input_figures(batch)

    def compare_with_constant(
        self, name: str, sums: Tensor, error: Callable[[Tensor], Mean], output: Output
    ) -> None:
        """`NAME_constant`: the loss of the best constant before this step, whose `sums` then count too."""
        running = cast(RunningMeans, self.state_of_run["running"])
        output.scores[f"{name}_constant"] = error(running.sums(name))
        running.add(name, sums)

    def weigh(self, output: Output, means: dict[str, Mean]) -> dict[str, Mean]:
        """Called in training between forward and backward pass with the means over all processes.

        Balances the weights of the output's losses, and returns the means with `gradient_LOSS` of the
        weighted losses.
        """
        if (balance := self.state_of_run.get("balance")) is not None and "gradient_mlm" in means:
            cast(Balance, balance).measure(means)
            output.weights |= self.balanced_weights()
        if balance is not None:
            one = torch.ones_like(means["mlm"].count)
            means |= {f"{name}_weight": Mean(weight, one) for name, weight in self.balanced_weights().items()}
        measured = {f"gradient_{name}": output.weight(name) for name in output.losses}
        return {n: Mean(measured[n] * m.total, m.count) if n in measured else m for n, m in means.items()}

    def balanced_weights(self) -> dict[str, Tensor]:
        """The weights that `mvm_weight` balanced gives now, empty without it."""
        balance = self.state_of_run.get("balance")
        return {} if balance is None else cast(Balance, balance).weights()

    def teacher_seconds(self) -> dict[str, float]:
        """Seconds of the teachers since the last call; empty without teachers."""
        clocks = [t.teacher.stopwatch for t in self.targets.values() if isinstance(t.teacher, Teacher)]
        return {"teacher_seconds": sum(clock.take() for clock in clocks)} if clocks else {}

    def reads(self, patch_mask: Tensor) -> Tensor:
        """bool (B, T, h, w), True = masked -> at which patches some target reads the output."""
        read = patch_mask.clone()
        for target in self.targets.values():
            read |= target.reads(patch_mask)
        return read

    def places(self, patch_mask: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """As `reads`, valid (B,) -> `mvm_at_TARGET` (M,) of each target, the patches that it reconstructs."""
        return {f"mvm_at_{name}": target.places(patch_mask, valid) for name, target in self.targets.items()}

    def follow(self, progress: float, world: World | None = None) -> None:
        """Called before the first step (0) and after each, with the share of the run that is done (to 1)."""
        cast(RunningMeans, self.state_of_run["running"]).merge(world)
        for target in self.targets.values():
            target.follow(self.enc_img.swin, progress)

    def followers(self) -> dict[str, nn.Module]:
        """State of the run, in no checkpoint: running means, and networks that follow the video encoder."""
        follow = {name: t.teacher for name, t in self.targets.items() if type(t).follow is not Target.follow}
        networks = {name: t.network for name, t in follow.items() if t is not None and t.network is not None}
        return {**self.state_of_run, **networks}

    def reconstruct(self, visual: Tensor, shown: Tensor, batch: Batch, output: Output) -> None:
        """MVM: visual (B, V, D) -> the loss of each target at its patches, `mvm_at_TARGET`."""
        if batch["img"].shape[1] == 1 and not self.mvm_on_images:
            # DistributedDataParallel waits for the gradients of the heads
            nothing = torch.stack([p.sum() for head in self.mvm_heads.values() for p in head.parameters()])
            for name in self.targets:
                output.losses[f"mvm_{name}"] = Mean(0.0 * nothing.sum(), nothing.new_zeros(()))
            return
        for name, target in self.targets.items():
            places = batch.get(f"mvm_at_{name}")
            if places is None:  # a batch that was masked without `places`: on a device the host waits here
                places = target.places(batch["mvm_mask"], batch["valid"])
            grid, given = batch["mvm_mask"].shape[1:], batch.get(f"truth_{name}")
            predicted, truth = target.compare(visual, batch["img"], grid, places, given)
            output.losses[f"mvm_{name}"] = target.error(predicted, truth)
            figures = target.scores(predicted, truth)
            if self.training:
                figures = {**figures, **diversity(predicted)}
                error = functools.partial(target.constant_error, truth=truth)
                self.compare_with_constant(f"mvm_{name}", target.sums(truth), error, output)
            output.scores |= {f"mvm_{name}_{figure}": mean for figure, mean in figures.items()}
        if self.training:
            output.scores["video_hidden"] = share_hidden(shown, batch["img"])

    def name_words(self, words: Tensor, batch: Batch, output: Output) -> None:
        """MLM: words (B, X, D) -> cross-entropy and accuracy at the hidden words, `mlm_at`."""
        at = batch["mlm_at"]
        logits = self.fc_mtm(words.flatten(0, 1).index_select(0, at)).float()
        answers = batch["ans_mlm"].flatten().index_select(0, at)
        right = best_alone(logits, answers) & batch["valid"].index_select(0, at // words.shape[1])
        count = torch.full((), len(at), device=at.device)
        output.losses["mlm"] = Mean(F.cross_entropy(logits, answers, reduction="sum"), count)
        output.scores["mlm_acc"] = Mean(right.sum(), count)
        if self.training:
            error = functools.partial(word_error, words=answers)
            self.compare_with_constant("mlm", word_sums(answers, logits.shape[1]), error, output)
        else:
            output.predictions["mlm"] = logits.argmax(dim=-1)

    def match(self, pairs: Tensor, batch: Batch, output: Output) -> None:
        """VTM: each video picks its own text among others.

        pairs: (B, 1 + N, D), the outputs at [CLS] with its own text and with the others. Without others there
        is nothing to learn and nothing to count.
        """
        scores, number = self.fc(pairs).float().squeeze(2), pairs.shape[1] - 1
        own = first_option(scores)
        right = best_alone(scores, own) & batch["valid"]
        count = torch.full((), len(scores) if number else 0, device=scores.device)
        loss = F.cross_entropy(scores / self.temperature, own, reduction="sum")
        output.losses["vtm"] = Mean(loss, count)
        output.scores["vtm_acc"] = Mean(right.sum(), count)
        if self.training and number:
            margins = (scores[:, 0] - scores[:, 1:].mean(dim=1)).detach() / self.temperature
            output.scores["vtm_margin"] = Mean(margins.sum(), count)
            output.scores["vtm_constant"] = Mean(count * math.log(1 + number), count)
        elif number:
            output.predictions["vtm"] = right


def first_option(scores: Tensor) -> Tensor:
    """Scores (B, 1 + N) of `PretrainModel.match` -> (B,): the place of each video's own text."""
    return scores.new_zeros(len(scores), dtype=torch.long)


# -------------------------------------------------------------------------------------------- weights


def encoder_arguments(config: Config) -> dict[str, Any]:
    """The arguments of `Violet` that `config` gives; the BERTs' sizes are read."""
    fusion, text = bert_config(config.fusion_encoder), bert_config(config.txt_backbone)
    if fusion.hidden_size != text.hidden_size:
        raise UserError(
            f"txt_backbone {config.txt_backbone} is {text.hidden_size} wide, "
            f"fusion_encoder {config.fusion_encoder} {fusion.hidden_size}: they must be equally wide."
        )
    return {
        "fusion": fusion,
        "text": text,
        "vis_size": SIZES[config.vis_backbone_size],
        "max_frames": config.max_size_frame,
        "max_patches": config.max_size_patch,
        "embed_only": config.txt_backbone_embed_only,
        "use_checkpoint": choose_checkpoint(config, choose_device(config.device)),
    }


def load_encoders(model: Violet, config: Config) -> None:
    """Give the encoders, the cross-modal transformer and an MLM head their published weights."""
    if config.vis_backbone_init != "random":
        path = config.vis_backbone_path or weights_path(
            config.vis_backbone_size, config.vis_backbone_init, config.kinetics
        )
        load_backbone(model.enc_img.swin, config.vis_backbone_init, path)
    berts: dict[str, BertForMaskedLM] = {}
    for name, random in [
        (config.txt_backbone, config.txt_backbone_rand_init),
        (config.fusion_encoder, config.fusion_encoder_rand_init),
    ]:
        if not random and name not in berts:
            berts[name] = read_bert(name)
    if not config.fusion_encoder_rand_init:
        bert = berts[config.fusion_encoder].bert
        model.trsfr.load_state_dict(bert.encoder.state_dict())
    if not config.txt_backbone_rand_init:
        masked_lm = berts[config.txt_backbone]
        source = masked_lm.bert.embeddings if config.txt_backbone_embed_only else masked_lm.bert
        model.enc_txt.emb_txt.load_state_dict(source.state_dict())
        if isinstance(head := getattr(model, "fc_mtm", None), MlmHead):
            head.load_state_dict(masked_lm.cls.state_dict())


def start(
    model: Violet,
    config: Config,
    heads: Sequence[str],
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors,
) -> None:
    """Give a task's model the checkpoint's weights, or else the encoders' published ones.

    `reinit_head` then starts `heads` from random weights, `freeze_violet` trains nothing but heads. Raises
    `UserError` where weights that the checkpoint lacks would be evaluated untrained. `adapt`: see
    `load_checkpoint`.
    """
    if not config.size_epoch and (config.reinit_head or not config.path_ckpt):
        why = "reinit_head is set" if config.reinit_head else "path_ckpt is empty"
        raise UserError(f"{why}, and size_epoch 0 trains nothing: scores would be those of random weights.")
    fresh = {name: copy.deepcopy(model.get_submodule(name).state_dict()) for name in heads}
    if config.path_ckpt:
        report = load_checkpoint(model, config.path_ckpt, adapt)
        check_trained(report, config, [*heads, *model.extra_weights])
    else:
        load_encoders(model, config)
    if config.reinit_head:
        for name, state in fresh.items():
            model.get_submodule(name).load_state_dict(state)
            log.info("reinit_head: %s starts from random weights", name)
    if config.freeze_violet:
        for part in (model.enc_img, model.enc_txt, model.trsfr):
            part.requires_grad_(False)


def check_trained(report: Report, config: Config, needed: Sequence[str]) -> None:
    """Weights that the model reads and the checkpoint lacks: an error in evaluation, else a warning.

    `needed` are modules and parameters of the task; positions of `emb_len` and `emb_pos` are looked at too.
    """
    lost = [name for name in needed if any(f"{key}.".startswith(f"{name}.") for key in report.missing)]
    frames = report.places.get("enc_img.emb_len", config.size_frame)
    if config.size_frame > frames:
        lost.append(f"emb_len for more than {frames} frames (size_frame {config.size_frame})")
    patches = (config.size_img // config.size_patch) ** 2
    if patches + 1 > report.places.get("enc_img.emb_pos", patches + 1):
        lost.append(f"emb_pos for {patches} patches of a frame (size_img {config.size_img})")
    if not lost:
        return
    lacking = f"{config.path_ckpt} has no {', no '.join(lost)}"
    if not config.size_epoch:  # the scores would be noise, and look like a result
        raise UserError(
            f"{lacking}: {config.task} cannot be evaluated with it, and size_epoch 0 trains nothing."
        )
    log.warning("%s: trained from random weights", lacking)
