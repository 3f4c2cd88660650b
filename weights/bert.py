"""BERTs that others publish: sizes and weights by name or folder."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging

from lib import UserError, log
from weights.checkpoint import Report
from weights.tensor_files import UNREADABLE, reason


def bert_config(name: str) -> BertConfig:
    """The sizes of a BERT by its name or folder."""
    try:
        return BertConfig.from_pretrained(name)
    except OSError as error:
        raise UserError(
            f"BERT {name!r} is neither a folder with a config.json nor a model that can be downloaded "
            f"({str(error).splitlines()[0]}). Set txt_backbone and fusion_encoder to a folder that holds one."
        ) from error


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
    try:
        with quiet_transformers():
            bert, found = cast(Any, BertForMaskedLM).from_pretrained(name, output_loading_info=True)
    except UNREADABLE as error:
        raise UserError(
            f"BERT {name!r} has no weights that can be read ({reason(error)}); to train without, set "
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
