"""Rates, boxes and special tokens of the masks, on every grid."""

import pytest
import torch
from torch import Generator

from batch import SpecialTokens
from masking import (
    attended_mask,
    block_mask,
    hide_patches,
    is_patch,
    mask_batch,
    negative_texts,
    patch_mask,
    random_mask,
    read_positions,
    split_positions,
    word_mask,
)

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4)
GRIDS = [(t, h, w) for t in (1, 2, 4) for h in (1, 2, 3, 7) for w in (1, 2, 3, 7)]


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make_batch(size: int = 6, frames: int = 4, pixels: int = 64, length: int = 10) -> dict:
    txt = torch.randint(5, 50, (size, length))
    txt[:, 0], txt[:, 6], txt[:, 7:], txt[0, 3] = 2, 3, 0, 4
    valid = torch.ones(size, dtype=torch.bool)
    return {"img": torch.randn(size, frames, 3, pixels, pixels), "txt": txt, "valid": valid}


@pytest.mark.parametrize("p", [0.0, 0.15, 0.5, 1.0])
def test_random_mask_hides_its_share(p):
    mask = random_mask(64, (4, 7, 7), p, generator())
    assert mask.float().mean() == pytest.approx(p, abs=0.015)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_block_mask_is_boxes_on_every_grid(grid):
    mask = block_mask(200, grid, generator())
    assert mask.shape == (200, *grid)
    assert mask.flatten(1).any(1).all()
    if grid[0] == 1:  # a single box, so its extent is that of the mask: at most 2/3 of a side
        for axis, size in enumerate(grid[1:]):
            extent = mask.any(dim=3 - axis).flatten(1).sum(dim=1)
            assert extent.max() <= max(1, 2 * size // 3 - 1)
            inside = mask.flatten(1).sum(1) == mask.any(2).flatten(1).sum(1) * mask.any(3).flatten(1).sum(1)
            assert inside.all()


def test_block_mask_reaches_every_patch_and_every_extent():
    mask = block_mask(3000, (1, 7, 7), generator())
    assert mask.any(0).all()
    assert mask.any(3).flatten(1).sum(1).unique().tolist() == [1, 2, 3]


def test_boxes_last_less_than_the_clip():
    """With T = 2 and h = w = 3 each of the two boxes is one patch of one frame."""
    mask = block_mask(500, (2, 3, 3), generator())
    assert (mask.flatten(1).sum(1) <= 2).all()


def test_attended_mask_draws_by_attention_without_replacement():
    attention = torch.tensor([[1.0, 2.0, 4.0, 0.0, 8.0]]).repeat(20000, 1)
    maskable = torch.tensor([[True, True, True, True, False]]).repeat(20000, 1)
    one = attended_mask(attention, maskable, 0.2, generator())
    assert (one.sum(1) == 1).all()
    torch.testing.assert_close(one.float().mean(0), torch.tensor([1, 2, 4, 0, 0]) / 7, atol=0.015, rtol=0)
    two = attended_mask(attention, maskable, 0.4, generator())
    assert (two.sum(1) == 2).all()


def test_attended_mask_stops_where_nothing_is_left():
    maskable = torch.tensor([[False, True, False, True]])
    assert torch.equal(attended_mask(torch.ones(1, 4), maskable, 1.0, generator()), maskable)


def test_only_words_are_masked():
    batch = make_batch()
    words = word_mask(batch["txt"], SPECIAL, 1.0, generator())
    assert torch.equal(words, batch["txt"] > 4)
    rate = word_mask(torch.full((400, 50), 9), SPECIAL, 0.3, generator()).float().mean()
    assert rate == pytest.approx(0.3, abs=0.01)


def test_each_sample_draws_one_kind():
    masks, attended = patch_mask(["rm", "bm", "am"], 3000, (4, 7, 7), 1.0, generator())
    full = masks.flatten(1).all(1)  # rm at p = 1; so is am, until attended masking draws
    for kind in (full & ~attended, attended, ~full):
        assert kind.float().mean() == pytest.approx(1 / 3, abs=0.03)
    assert (full | ~attended).all()


def test_a_sample_has_the_same_masks_whatever_batch_it_is_in():
    """Evaluation: one generator per sample."""
    special, kinds = SpecialTokens(0, 1, 2, 3), ["rm", "bm", "am"]
    img, txt = torch.randn(6, 2, 3, 64, 64), torch.randint(3, 50, (6, 8), generator=generator())
    attention = torch.rand(6, 2 * 5 + 8, generator=generator())

    def masked(part):
        batch = {"img": img[part], "txt": txt[part], "valid": torch.ones(len(img[part]), dtype=torch.bool)}
        batch |= {"other_txt": txt[part][:, None].repeat(1, 2, 1)}
        seeds = [torch.Generator().manual_seed(i) for i in range(6)[part]]
        return mask_batch(batch, kinds, 0.4, special, 32, seeds, attention[part])

    together = masked(slice(0, 6))
    for part in (slice(0, 1), slice(1, 3), slice(3, 6)):
        for key in ("masked_txt", "ans_mlm", "mvm_mask", "other_txt"):
            assert torch.equal(masked(part)[key], together[key][part])
    assert (together["other_txt"] == special.mask).any()


@pytest.mark.parametrize(("others", "longest"), [(None, 3), (5, 5), (2, 3), (0, 3)])
def test_texts_are_cut_to_the_longest_of_the_batch_others_included(others, longest):
    """Own and other texts go through the transformer in one batch. 0: a split with a single text."""
    txt = torch.tensor([[1, 7, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]])
    batch = {"img": torch.randn(2, 2, 3, 64, 64), "txt": txt, "valid": torch.ones(2, dtype=torch.bool)}
    if others is not None:
        ids = (torch.arange(6) < others).long().expand(2, 3 if others else 0, 6)
        batch |= {"other_txt": ids, "other_mask": ids}
    batch["mask"] = (txt != 0).long()
    found = mask_batch(batch, ["rm"], 0.5, SpecialTokens(0, 1, 2, 3), 32, generator(), cut=True)
    widths = {key: found[key].shape[-1] for key in ("txt", "mask", "masked_txt", "ans_mlm")}
    widths |= {key: found[key].shape[-1] for key in ("other_txt", "other_mask") if others is not None}
    assert set(widths.values()) == {longest}
    assert others is not None or found["negatives"].shape == (2, 1)


def test_attended_masking_without_a_word_falls_back_to_rm():
    """As published; no word can be drawn from a text without words."""
    special = SpecialTokens(0, 1, 2, 3)
    txt = torch.tensor([[1, 2, 0, 0], [1, 7, 8, 2]]).repeat(50, 1)
    batch = {"img": torch.randn(100, 2, 3, 64, 64), "txt": txt, "valid": torch.ones(100, dtype=torch.bool)}
    attention = torch.ones(100, 2 * 5 + 4)
    mask = mask_batch(batch, ["am"], 1.0, special, 32, generator(), attention)["mvm_mask"]
    assert mask[::2].all()  # rm at p = 1
    few = mask_batch(batch, ["am"], 0.3, special, 32, generator(), attention)["mvm_mask"]
    assert few[::2].flatten(1).sum(1).unique().numel() > 3  # a number that is drawn, not int(L p)


def test_without_kinds_nothing_is_hidden():
    mask, attended = patch_mask([], 5, (2, 3, 4), 0.5, Generator())
    assert mask.shape == (5, 2, 3, 4)
    assert not mask.any()
    assert not attended.any()


def test_hidden_patches_are_zero_and_the_rest_untouched():
    frames = torch.randn(2, 3, 3, 64, 96) + 5
    mask = random_mask(2, (3, 2, 3), 0.5, generator())
    hidden = hide_patches(frames, mask)
    pixels = mask.repeat_interleave(32, 2).repeat_interleave(32, 3)[:, :, None].expand_as(frames)
    assert (hidden[pixels] == 0).all()
    assert torch.equal(hidden[~pixels], frames[~pixels])


def test_negatives_are_others_each_once():
    for size, number in [(1, 0), (2, 1), (3, 2), (4, 3), (9, 3)]:
        negatives = negative_texts(size, generator())
        assert negatives.shape == (size, number)
        for i, row in enumerate(negatives.tolist()):
            assert i not in row
            assert len(set(row)) == number
    drawn = torch.cat([negative_texts(5, generator(seed)) for seed in range(400)])
    assert torch.bincount(drawn.flatten()).float().std() < 100


def test_positions_hold_cls_and_all_that_is_hidden():
    grid = (2, 2, 3)
    patches = random_mask(5, grid, 0.4, generator())
    words = torch.rand(5, 6, generator=generator(1)) < 0.3
    positions = read_positions(patches, words)
    length = 2 * 7
    read = torch.zeros(5, length + 6, dtype=torch.bool).scatter(1, positions, True)
    found_patches, found_words = split_positions(read, grid)
    assert found_patches[patches].all()
    assert found_words[words].all()
    assert read[:, length].all()
    assert positions.shape[1] == (patches.flatten(1).sum(1) + (words[:, 1:].sum(1)) + 1).max()


def test_batch_keeps_the_originals_and_names_the_answers():
    batch = make_batch()
    masked = mask_batch(batch, ["rm", "bm"], 0.5, SPECIAL, 32, generator())
    hidden = masked["ans_mlm"] >= 0
    assert (masked["masked_txt"][hidden] == SPECIAL.mask).all()
    assert torch.equal(masked["masked_txt"][~hidden], batch["txt"][~hidden])
    assert torch.equal(masked["ans_mlm"][hidden], batch["txt"][hidden])
    assert torch.equal(masked["img"], batch["img"])
    assert masked["mvm_mask"].shape == (6, 4, 2, 2)


@pytest.mark.parametrize("kind", ["rm", "am"])
def test_text_cut_to_the_longest_hides_the_same(kind):
    batch = make_batch()
    batch["txt"][:, 7:], batch["mask"] = SPECIAL.pad, torch.ones(6, 10)
    batch["txt"][2, 5:] = SPECIAL.pad
    attention, given = torch.rand(6, 4 * 5 + 10), (0.5, SPECIAL, 32)
    whole = mask_batch(batch, [kind], *given, generator(), attention)
    cut = mask_batch(batch, [kind], *given, generator(), attention, cut=True)
    assert cut["ans_mlm"].shape == (6, 7) and (whole["ans_mlm"] >= 0).any()
    words = cut.pop("mlm_at")
    assert torch.equal(cut["ans_mlm"].flatten()[words], whole["ans_mlm"].flatten()[whole["mlm_at"]])
    for name, value in cut.items():
        text = name in ("txt", "mask", "masked_txt", "ans_mlm")
        assert torch.equal(value, whole[name][:, :7] if text else whole[name]), name
    assert cut["positions"].max() < 4 * 5 + 7


def test_nothing_is_hidden_of_a_blank():
    batch = make_batch()
    batch["valid"][2] = False
    patches = mask_batch(batch, ["rm"], 1.0, SPECIAL, 32, generator())["mvm_mask"].flatten(1)
    assert patches.all(1).tolist() == batch["valid"].tolist()


def test_same_generator_same_masks():
    batch = make_batch()
    first, second = (mask_batch(batch, ["rm", "bm"], 0.3, SPECIAL, 32, generator(5)) for _ in range(2))
    for name in ("masked_txt", "mlm_at", "mvm_mask", "negatives", "positions"):
        assert torch.equal(first[name], second[name])


def test_attended_masking_hides_words_and_patches_but_nothing_special():
    batch = make_batch()
    video = 4 * 5
    attention = torch.rand(6, video + 10)
    attention[:, video:] += 2  # of each text some word is drawn
    masked = mask_batch(batch, ["am"], 0.3, SPECIAL, 32, generator(), attention)
    words, patches = masked["ans_mlm"] >= 0, masked["mvm_mask"].flatten(1)
    assert not words[batch["txt"] <= 4].any()
    assert (words.sum(1) + patches.sum(1) == int((video + 10) * 0.3)).all()
    assert is_patch((4, 2, 2)).sum() == 16
    with pytest.raises(ValueError, match="attention"):
        mask_batch(batch, ["am"], 0.3, SPECIAL, 32, generator())
