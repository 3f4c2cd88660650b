"""What each MVM target adds to a published pre-training step, counted.

    python -m bench.targets

TFLOP of the products and convolutions of a batch of 20 clips of 4 frames of 224 px: of the teacher, which has
no backward pass, and of the head, forward and backward. They are counted on torch's `meta` device, at the
published sizes of the teachers; `share` is beside the 17.3 TFLOP of the rest of the step.
"""

import functools

import torch

from bench.measure import flops
from lib import Config, run_script
from mvm_targets import TARGETS, make_targets
from teachers.make import make_teachers

STEP = 17.3e12  # FLOP of a step without teachers, target pixel (python -m bench.gpu_count)
CLIPS, FRAMES, PIXELS, WIDTH = 20, 4, 224, 768
HIDDEN = 0.15  # share of the patches that are masked


def main() -> None:
    """Print a line per target."""
    frames = torch.empty(CLIPS, FRAMES, 3, PIXELS, PIXELS, device="meta")
    patches = CLIPS * FRAMES * (PIXELS // 32) ** 2
    print("| target | teacher, TFLOP | head, TFLOP | share of the step |\n| --- | --- | --- | --- |")
    for name in TARGETS:
        with torch.device("meta"):
            teachers = make_teachers(Config(mvm_target=[name], teacher_init="random"))
            target = make_targets([name], WIDTH, teachers=teachers)[name]
        read = target.tokens(torch.empty(1, FRAMES * 50, WIDTH, device="meta"), (FRAMES, 7, 7)).shape[-1]
        share = 1 - HIDDEN if name == "clip_visible" else HIDDEN
        tokens = torch.empty(round(share * patches), read, device="meta")
        taught = flops(functools.partial(teachers[name].compute, frames)) if teachers else 0
        headed = 3 * flops(functools.partial(target.predict, tokens))
        print(f"| `{name}` | {taught / 1e12:.2f} | {headed / 1e12:.3f} | {(taught + headed) / STEP:.1%} |")


if __name__ == "__main__":
    run_script(main)
