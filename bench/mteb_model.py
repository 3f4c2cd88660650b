"""A checkpoint on the video benchmark MVEB of `mteb`, or on that package's own tasks of generated videos.

    pip install mteb
    python -m bench.mteb_model --checkpoint _snapshot/_msrvtt-retrieval_TIME --mock
    python -m bench.mteb_model --checkpoint _snapshot/_msrvtt-retrieval_TIME --benchmark "MVEB(text, video)"

`--mock` needs no data and no network: it shows that everything fits together, and its scores mean nothing.
The other command downloads the videos of a benchmark (`--tasks` names single tasks instead) and writes the
results to `_snapshot/mteb`. Videos are decoded as for training. A checkpoint without embeddings (`fc_vtc`)
runs the tasks of videos alone, on the features of the video encoder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets import Video
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from lib import UserError, run_script
from violet import BATCH, Pretrained, load

CACHE = Path("_snapshot/mteb")


class MtebModel(AbsEncoder):
    """`embed_video` and `embed_text` of a checkpoint under the names that `mteb` calls."""

    def __init__(self, violet: Pretrained) -> None:
        self.violet = violet
        modalities = ["video", "text"] if "fc_vtc" in violet.heads else ["video"]
        name = f"violet/{Path(violet.config.path_ckpt).parent.name}"
        own = {"name": name, "revision": "checkpoint", "modalities": modalities}
        self.mteb_model_meta = ModelMeta.create_empty(own)  # no similarity function: mteb takes the cosine

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """The inputs of a task (N rows with `video`, `text` or both) -> (N, 256) or (N, C), float32.

        Of a row that has both, the sum of the two embeddings, which `mteb` compares by their angle.
        """
        rows, parts = inputs.dataset, []
        if "video" in rows.column_names:  # the bytes of the files: mteb's decoder is another one
            batches = rows.cast_column("video", Video(decode=False)).iter(batch_size=BATCH)
            parts.append(np.concatenate([self.embed(batch["video"]) for batch in batches]))
        if "text" in rows.column_names:
            parts.append(self.violet.embed_text([str(text) for text in rows["text"]]))
        return np.sum(parts, axis=0)

    def embed(self, files: list[dict[str, Any]]) -> np.ndarray:
        """Videos by the bytes or the paths of their files -> (N, 256) or (N, C)."""
        return self.violet.embed_video([file["bytes"] or file["path"] for file in files])


def main(arguments: list[str] | None = None) -> None:
    """Run the tasks, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="checkpoint, run folder or exported folder")
    parser.add_argument("--config", default="", help="config (default: the one in the checkpoint's folder)")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--mock", action="store_true", help="mteb's own tasks of generated videos")
    chosen.add_argument("--benchmark", help='such as "MVEB(text, video)"')
    chosen.add_argument("--tasks", nargs="+", help="names of tasks of mteb")
    options = parser.parse_args(arguments)
    model = MtebModel(load(options.checkpoint, options.config))
    if options.mock:
        found = mteb.mock_run(model)
        print(found.to_markdown())
        if not found.all_passed:
            raise UserError("some tasks failed.")
        return
    tasks = mteb.get_benchmark(options.benchmark) if options.benchmark else mteb.get_tasks(options.tasks)
    results = mteb.evaluate(model, tasks, cache=ResultCache(CACHE))
    for result in results:
        print(json.dumps({"task": result.task_name, "score": result.get_score()}))


if __name__ == "__main__":
    run_script(main)
