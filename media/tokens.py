"""Text -> token ids, by a BERT's tokenizer."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor
from transformers import AutoTokenizer

from batch import SpecialTokens
from lib import UserError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a worker's fork


class Tokens:
    """Text -> `size` token ids: [CLS] words [SEP] [PAD]..., the [SEP] kept when the text is cut."""

    def __init__(self, name: str, size: int) -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"tokenizer {name!r} is neither a folder with a tokenizer nor can it be downloaded; "
                "set tokenizer (or txt_backbone) to a folder with vocab.txt or tokenizer.json."
            ) from error
        self.size = size

    @property
    def special(self) -> SpecialTokens:
        """Ids of [PAD], [CLS], [SEP] and [MASK]."""
        t = self.tokenizer
        return SpecialTokens(t.pad_token_id, t.cls_token_id, t.sep_token_id, t.mask_token_id)

    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        """-> ids (X,), mask (X,) with 1 at tokens."""
        # Deviation 8: published, a text that is cut loses its [SEP]
        row = self.tokenizer(text, padding="max_length", truncation=True, max_length=self.size)
        return torch.tensor(row["input_ids"]), torch.tensor(row["attention_mask"])

    def words(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """{text: its ids} without [CLS] and [SEP], of any length; a [MASK] in a text is one."""
        texts = sorted(set(texts)) or [""]
        if not isinstance(self.tokenizer.backend_tokenizer.pre_tokenizer, BertPreTokenizer):
            return self._ids(texts)
        # BERT's words end at spaces: each word once takes a tenth of the time of each text
        table = self._ids(sorted({word for text in texts for word in text.split(" ")}))
        return {text: [i for word in text.split(" ") for i in table[word]] for text in texts}

    def _ids(self, texts: list[str]) -> dict[str, list[int]]:
        return dict(zip(texts, self.tokenizer(texts, add_special_tokens=False).input_ids, strict=True))

    def one(self, word: str) -> int:
        """The id of a word that is one token of the vocabulary; -1: it is not."""
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else -1

    def exact(self, word: str) -> int:
        """The id of a word that stands in the vocabulary just as it is written; -1: it does not."""
        found: Any = self.tokenizer.convert_tokens_to_ids(word)
        return -1 if found in (None, self.tokenizer.unk_token_id) else found

    def check(self, vocabulary: int, positions: int) -> None:
        """Raise `UserError` if a text encoder of that size has no embedding for some token or position."""
        if self.size > positions:
            raise UserError(f"size_txt {self.size} is more than the {positions} positions of txt_backbone.")
        if len(self.tokenizer) > vocabulary:
            raise UserError(
                f"the tokenizer has {len(self.tokenizer)} words, txt_backbone {vocabulary}: set tokenizer."
            )
