"""Which words and patches are hidden: functions of shapes, probabilities and a generator.

Shapes: B clips, T frames of h x w patches, X text tokens, V = T(1+hw) video tokens, L = V + X.
Everything is drawn on the CPU: in training by one generator for the whole batch, in evaluation by one for
each sample, so that a figure does not depend on which samples share a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Generator, Tensor
from torch.nn import functional as F

from batch import SpecialTokens

TEXTS = ("txt", "mask", "other_txt", "other_mask")  # keys of a batch, equally long
NEGATIVES = 3  # wrong texts of a video in video-text matching, at most
Grid = tuple[int, int, int]  # frames, rows and columns of patches
Source = Generator | Sequence[Generator]  # of random numbers: a batch's, or one of each of its samples


def uniform(source: Source, batch: int, *shape: int) -> Tensor:
    """(B, *shape) numbers in [0, 1)."""
    if isinstance(source, Generator):
        return torch.rand(batch, *shape, generator=source)
    return torch.stack([torch.rand(*shape, generator=own) for own in source])


def random_mask(batch: int, grid: Grid, p: float, source: Source) -> Tensor:
    """`rm`: each patch with probability `p` -> bool (B, T, h, w)."""
    return uniform(source, batch, *grid) < p


def block_mask(batch: int, grid: Grid, source: Source) -> Tensor:
    """`bm`: T boxes per clip, each at a random place -> bool (B, T, h, w).

    A box lasts 1 to T-1 frames and is 1 to int(2h/3) - 1 patches high, 1 to int(2w/3) - 1 wide: at most 3 of
    7. Where that leaves nothing, at small h, w and T, it is one (Deviation 11).
    """
    frames, height, width = grid
    boxes = torch.ones(batch, frames, *grid, dtype=torch.bool)
    most = (frames - 1, 2 * height // 3 - 1, 2 * width // 3 - 1)
    for axis, (size, largest) in enumerate(zip(grid, most, strict=True)):
        extent = 1 + _below(torch.full((batch, frames), max(1, largest)), source)
        start = _below(size - extent + 1, source)
        place = torch.arange(size)
        inside = (place >= start[..., None]) & (place < (start + extent)[..., None])  # (B, boxes, size)
        boxes &= inside.view(batch, frames, *(size if a == axis else 1 for a in range(3)))
    return boxes.any(dim=1)


def attended_mask(attention: Tensor, maskable: Tensor, p: float, source: Source) -> Tensor:
    """`am`: int(L * p) positions without replacement, in proportion to their attention -> bool (B, L).

    attention: (B, L) >= 0; maskable: bool (B, L), False at special tokens. Fewer where there are not
    that many maskable ones.
    """
    # a position's place in line by its exponential waiting time: drawing without replacement at once
    patience = -torch.log1p(-uniform(source, *attention.shape))
    waiting = (patience / attention.clamp(min=1e-12)).masked_fill(~maskable, torch.inf)
    first = waiting.argsort(dim=1).argsort(dim=1) < int(attention.shape[1] * p)
    return first & maskable


def patch_mask(
    masks: Sequence[str], batch: int, grid: Grid, p: float, source: Source
) -> tuple[Tensor, Tensor]:
    """One of `masks` (rm, bm, am) per sample -> bool (B, T, h, w), and which samples drew `am`, bool (B,).

    Samples with `am` have the patches of `rm` here, as long as `attended_mask` gives them no others. Without
    any `masks` nothing is hidden.
    """
    if not masks:
        return torch.zeros(batch, *grid, dtype=torch.bool), torch.zeros(batch, dtype=torch.bool)
    choice = (uniform(source, batch, 1)[:, 0] * len(masks)).long()
    random = random_mask(batch, grid, p, source)
    drawn = {"rm": random, "bm": block_mask(batch, grid, source), "am": random}
    mask = torch.stack([drawn[name] for name in masks])[choice, torch.arange(batch)]
    return mask, torch.tensor([name == "am" for name in masks])[choice]


def word_mask(txt: Tensor, special: SpecialTokens, p: float, source: Source) -> Tensor:
    """Each word of txt (B, ..., X) with probability `p` -> bool of that shape."""
    return (uniform(source, *txt.shape) < p) & is_word(txt, special)


def is_word(txt: Tensor, special: SpecialTokens) -> Tensor:
    """Ids (..., X) -> bool: not [PAD], [CLS], [SEP] or [MASK]."""
    ids = torch.tensor([special.pad, special.cls, special.sep, special.mask], device=txt.device)
    return ~torch.isin(txt, ids)


def hide_patches(frames: Tensor, mask: Tensor) -> Tensor:
    """frames: (B, T, 3, H, W) -> the same with 0 in the patches of mask (B, T, h, w), on the same device."""
    p, q = frames.shape[-2] // mask.shape[-2], frames.shape[-1] // mask.shape[-1]
    pixels = repeat(mask, "b t h w -> b t 1 (h p) (w q)", p=p, q=q)
    return frames.masked_fill(pixels, 0.0)


def negative_texts(batch: int, source: Source, most: int = NEGATIVES) -> Tensor:
    """For each of B videos min(B, 4) - 1 other texts, drawn without replacement -> (B, min(B, 4) - 1)."""
    order = uniform(source, batch, batch).fill_diagonal_(2.0).argsort(dim=1)
    return order[:, : min(batch - 1, most)]


def mask_batch(
    batch: dict[str, Any],
    masks: Sequence[str],
    p: float,
    special: SpecialTokens,
    patch_size: int,
    source: Source,
    attention: Tensor | None = None,
    reads: Callable[[Tensor], Tensor] = lambda patches: patches,
    places: Callable[[Tensor, Tensor], dict[str, Tensor]] = lambda patches, valid: {},
    cut: bool = False,
) -> dict[str, Any]:
    """Add what pre-training hides and asks to a batch of `img` (B, T, 3, H, W), `txt` (B, X), `valid` (B,).

    Added: `masked_txt`, `ans_mlm` (B, X) with the hidden ids and -1 elsewhere, `mlm_at` (M,), the numbers of
    the hidden words among the B X, `mvm_mask` (B, T, h, w), `negatives` (B, N), `positions` (B, K): [CLS],
    every hidden word and, of the patches, those that `reads` makes of the hidden ones, which is all of the
    output that a loss reads, and the numbers of patches that `places` makes of the hidden ones. `other_txt`,
    if the batch has it, loses words as `txt` does, or a whole text would be known as a wrong one.
    `attention` (B, L) is needed for `am` alone. With `cut` the columns behind the longest text, one's own or
    another, go once everything is drawn: the same is hidden, and no loss reads padding.

    The batch is on the CPU and is moved afterwards: a device that is asked how many words are hidden makes
    the host wait, and then waits for the host.
    """
    img, txt = batch["img"], batch["txt"]
    size, frames = len(img), img.shape[1]
    grid = (frames, img.shape[-2] // patch_size, img.shape[-1] // patch_size)
    patches, attended = patch_mask(masks, size, grid, p, source)
    words = word_mask(txt, special, p, source)
    others: dict[str, Tensor] = {}
    if "other_txt" in batch:
        ids = batch["other_txt"]
        others["other_txt"] = ids.masked_fill(word_mask(ids, special, p, source), special.mask)
    else:
        others["negatives"] = negative_texts(size, source)
    # last, for it draws only where a sample of the batch asks for it
    if attended.any():
        if attention is None:
            raise ValueError("attended masking (am) needs the attention that each position receives")
        maskable = torch.cat([is_patch(grid).expand(size, -1), is_word(txt, special)], dim=1)
        drawn = attended_mask(attention.cpu().float(), maskable, p, source)
        hidden_patches, hidden_words = split_positions(drawn, grid)
        attended &= hidden_words.any(
            dim=1
        )  # as published: without a word, patches and words are drawn as by rm
        patches = torch.where(attended[:, None, None, None], hidden_patches, patches)
        words = torch.where(attended[:, None], hidden_words, words)
    patches &= batch["valid"][:, None, None, None]  # there is nothing to see in a blank
    texts = torch.cat([txt, batch["other_txt"].flatten(0, 1)]) if "other_txt" in batch else txt
    longest = int((texts != special.pad).sum(dim=1).max()) if cut else txt.shape[1]
    added: dict[str, Tensor] = {
        **others,
        **{name: value[..., :longest] for name, value in (batch | others).items() if name in TEXTS},
        "masked_txt": txt.masked_fill(words, special.mask)[:, :longest],
        "ans_mlm": txt.masked_fill(~words, -1)[:, :longest],
        "mlm_at": numbers_of(words[:, :longest]),
        "mvm_mask": patches,
        "positions": read_positions(reads(patches), words),
        **places(patches, batch["valid"]),
    }
    return {**batch, **added}


def numbers_of(chosen: Tensor) -> Tensor:
    """bool of any shape -> (M,): the numbers of its True places, counted in the order of memory."""
    return chosen.flatten().nonzero()[:, 0]


def is_patch(grid: Grid) -> Tensor:
    """bool (V,): True at the video tokens that are patches, False at the one before each frame."""
    return F.pad(torch.ones(grid[0], grid[1] * grid[2], dtype=torch.bool), (1, 0)).flatten()


def split_positions(drawn: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """bool (B, L) -> patches (B, T, h, w) and words (B, X)."""
    frames, height, width = grid
    length = frames * (1 + height * width)
    video = rearrange(drawn[:, :length], "b (t n) -> b t n", t=frames)[:, :, 1:]
    return video.unflatten(2, (height, width)), drawn[:, length:]


def read_positions(patches: Tensor, words: Tensor) -> Tensor:
    """Patches to read (B, T, h, w) and hidden words (B, X) -> (B, K) positions among the L, [CLS] included.

    K is that of the sample with the most; the others are filled up with positions that nobody reads.
    """
    video = F.pad(patches.flatten(2), (1, 0)).flatten(1)
    text = words.clone()
    text[:, 0] = True  # [CLS], which video-text matching reads
    read = torch.cat([video, text], dim=1)
    most = int(reduce(read.int(), "b l -> b", "sum").max())
    return read.int().argsort(dim=1, descending=True, stable=True)[:, :most].contiguous()


def _below(high: Tensor, source: Source) -> Tensor:
    """Whole numbers in [0, high), evenly, each with its own `high`."""
    return (uniform(source, *high.shape) * high).long().clamp(max=high - 1)
