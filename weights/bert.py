"""BERTs that others publish: sizes and weights by name or folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging

from lib import UserError, log
from media.files import read_json, why, words_of
from weights.checkpoint import Report
from weights.tensor_files import load_data

SIZES = {  # of a BERT's config, with the most that any has by far: more is damage, and would take all memory
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 14,
    "num_hidden_layers": 256,
    "num_attention_heads": 1 << 10,
    "intermediate_size": 1 << 16,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 10,
}


def bert_config(name: str) -> BertConfig:
    """The sizes of a BERT by its name or folder."""
    file = Path(name) / "config.json"
    if file.is_file() and not isinstance(read_json(file, most=1 << 20), dict):
        raise UserError(f"{file} is not a JSON object with the sizes of a BERT; download it again.")
    try:
        config = BertConfig.from_pretrained(name)
    except OSError as error:
        raise UserError(
            f"BERT {name!r} is neither a folder with a config.json nor a model that can be downloaded "
            f"({str(error).splitlines()[0]}). Set txt_backbone and fusion_encoder to a folder that holds one."
        ) from error
    except Exception as error:  # a config of other types raises any kind
        raise UserError(f"BERT {name!r}: its config.json is not a BERT's ({words_of(error)}).") from error
    for key, most in SIZES.items():
        if type(getattr(config, key)) is not int or not 0 < getattr(config, key) <= most:
            raise UserError(f"BERT {name!r}: {key} {str(getattr(config, key))[:20]} is not 1 to {most}.")
    return config


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without what transformers says of a file's keys: our report says it, and calls no file corrupted.

    BERTs of sentence embeddings have no MLM head, and nothing is wrong with them.
    """
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def read_bert(name: str) -> BertForMaskedLM:
    """A BERT with its MLM head by name or folder.

    Where the folder holds no MLM head, its decoder is the word embeddings (BERT ties them) and its
    transform starts anew. Raises `UserError` if a part of its embeddings or encoder is missing.
    """
    files = [Path(name) / file for file in ("model.safetensors", "pytorch_model.bin")]
    file = next((file for file in files if file.exists()), None)
    try:
        bert_config(name)
        if file:
            load_data(file)  # which verifies its checksums
        with quiet_transformers():
            bert, found = cast(Any, BertForMaskedLM).from_pretrained(name, output_loading_info=True)
    except UserError:
        raise
    except Exception as error:  # the library raises any kind
        reason = why(file, error) if file else words_of(error)
        raise UserError(
            f"BERT {name!r} has no weights that can be read ({reason}); to train without, set "
            "txt_backbone_rand_init and fusion_encoder_rand_init."
        ) from error
    missing = sorted(found["missing_keys"])
    report = Report(
        f"BERT {name}",
        loaded=[key for key in bert.state_dict() if key not in missing],
        missing=missing,
        unexpected=sorted(found["unexpected_keys"]),
    )
    report.check(may_lack=[key for key in missing if key.startswith("cls.")])
    log.info("%s", report)
    return bert
