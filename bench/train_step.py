"""One pre-training step at published size: seconds, share of the machine's matrix rate, peak memory.

    python -m bench.train_step
    python -m bench.train_step --use_checkpoint --amp bf16

Each run is a process of its own, since its peak memory is that of the process. Swin-B, BERT-base, batch 4,
4 frames of 224 px, 32 tokens, target pixel; random weights and inputs, so nothing is downloaded.
"""

import argparse
import time
from typing import Any

import torch
from transformers import BertConfig

from batch import SpecialTokens
from bench.measure import flops, matrix_rate
from engine.parallel import AMP
from engine.processes import choose_device
from engine.profiling import peak_memory
from engine.step import seeded
from lib import run_script
from masking import mask_batch
from model import PretrainModel
from video_swin import SIZES


def make_batch(batch: int, frames: int, pixels: int, text: int, device: torch.device) -> dict[str, Any]:
    """Random clips and captions, masked as in training."""
    generator = seeded(0)
    txt = torch.randint(1000, 30000, (batch, text), generator=generator)
    txt[:, 0], txt[:, -1] = 101, 102
    data = {
        "img": torch.randn(batch, frames, 3, pixels, pixels, generator=generator).to(device),
        "txt": txt.to(device),
        "mask": torch.ones_like(txt).to(device),
        "valid": torch.ones(batch, dtype=torch.bool, device=device),
    }
    special = SpecialTokens(pad=0, cls=101, sep=102, mask=103)
    return mask_batch(data, ["rm", "bm"], 0.15, special, 32, generator)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--text", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="number of steps; the fastest is reported")
    parser.add_argument("--amp", choices=["off", *AMP], default="off")
    parser.add_argument("--use_checkpoint", action="store_true")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    dtype = AMP.get(options.amp, torch.float32)
    ceiling = matrix_rate(device, dtype)
    bert = BertConfig()
    model = PretrainModel(bert, bert, SIZES["base"], use_checkpoint=options.use_checkpoint).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    batch = make_batch(options.batch, options.frames, options.pixels, options.text, device)
    needed = 3 * flops(lambda: model(batch))  # the backward pass is two products for each of the forward's
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=options.amp != "off"):
            losses = model(batch).losses
        loss = torch.stack([mean.value for mean in losses.values()]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - start)
    rate = needed / min(seconds)
    print(
        f"{options.amp:>4} checkpoint {options.use_checkpoint!s:>5}: {min(seconds):.1f} s a step of "
        f"{needed / 1e12:.2f} TFLOP, {rate / ceiling:.0%} of the matrix ceiling {ceiling / 1e9:.0f} GFLOP/s, "
        f"{peak_memory(device):.2f} GiB at most"
    )


if __name__ == "__main__":
    run_script(main)
