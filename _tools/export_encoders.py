"""Write a checkpoint's encoders as programs that run without this repository.

    python _tools/export_encoders.py --checkpoint _snapshot/_msrvtt-retrieval_TIME --output served --onnx

writes `video_features.pt2` (`torch.export`; frames of uint8 -> features of each patch) and, from a checkpoint
with embeddings, `video_embedding.pt2` and `text_embedding.pt2` (token ids and mask -> unit vectors), with
`--onnx` each as `.onnx` too (pip install onnx onnxscript), and `tokenizer/`. The numbers of frames, pixels
and text tokens are those of the config; `--KEY VALUE` overrides one. In under a minute on a laptop, after
`make demo`:

    python _tools/export_encoders.py --checkpoint CHECKPOINT --output served
"""

import argparse
from pathlib import Path

import root  # noqa: F401
from engine.arguments import parse_with_keys
from lib import run_script
from media.files import writing
from tasks.retrieval.serving import export
from violet import load


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options of this program, and the config's keys that are overridden."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="checkpoint, run folder or exported folder")
    parser.add_argument("--config", default="", help="config (default: the one in the checkpoint's folder)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--onnx", action="store_true", help="write ONNX files too")
    return parse_with_keys(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Load, export, tell."""
    options, changes = parse(arguments)
    violet = load(options.checkpoint, options.config, **{**changes, "device": "cpu"})
    config = violet.config
    sizes = (config.size_frame, config.size_img, config.size_txt)
    with writing(str(options.output)):
        for path in export(violet.network, *sizes, options.output, options.onnx):
            print(path)
        violet.tokens.tokenizer.save_pretrained(options.output / "tokenizer")


if __name__ == "__main__":
    run_script(main)
