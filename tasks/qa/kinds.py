"""Kinds of question: what the text is that the model reads, and what it is to answer.

A text keeps [MASK], [SEP] and every option when it is cut to `size_txt`: options are shortened evenly first,
then the question.
"""

from collections.abc import Sequence

from batch import SpecialTokens
from dataset import Tokens
from lib import UserError
from tasks.qa.questions import Ids, Item, Questions, Text

INSERT_AT = 10  # the token before which `mask_pos` insert puts [MASK]
FLOOR = 4  # tokens below which an option is not shortened while the question can be


def fit(question: Ids, options: Sequence[Ids], room: int, together: bool) -> tuple[Ids, list[Ids]]:
    """Shorten the options evenly, then the question, until they fit into `room` tokens.

    `together`: all options are in one text; else each has its own, beside the question. What ends a text
    or is read in it is not theirs to shorten: it is not counted in `room` (Deviation 8).
    """

    def length(most: int) -> int:
        used = [min(len(option), most) for option in options]
        return sum(used) if together else max(used, default=0)

    most = max((len(option) for option in options), default=0)
    while most > FLOOR and len(question) + length(most) > room:
        most -= 1
    while most > 1 and length(most) > room:
        most -= 1
    if length(most) > room:
        raise UserError(f"size_txt leaves {room} tokens for {len(options)} options: raise it.")
    return question[: room - length(most)], [option[:most] for option in options]


def put_mask(ids: Ids, mask: int, mask_pos: str) -> tuple[Ids, int]:
    """[CLS] ... [SEP] with [MASK] where `mask_pos` says; and its place."""
    place = {"append": len(ids) - 1, "prepend": 1, "insert": min(INSERT_AT, len(ids) - 1), "replace": 0}
    at = place[mask_pos]
    return [*ids[:at], mask, *ids[at + (mask_pos == "replace") :]], at


def ask(special: SpecialTokens, size: int, parts: Sequence[Ids], mask_pos: str) -> Text:
    """`parts` prompt, question, what leads to the answer -> [CLS] question answer: [MASK] [SEP]."""
    lead, question, ending = parts
    specials = 2 + (mask_pos != "replace")
    cut = fit(question, [], size - specials - len(lead) - len(ending), together=True)[0]
    ids, place = put_mask([special.cls, *lead, *cut, *ending, special.sep], special.mask, mask_pos)
    return Text([ids], place, shortened=cut != question)


def ask_number(
    special: SpecialTokens, size: int, parts: Sequence[Ids], options: Sequence[Ids], mask_pos: str
) -> Text:
    """`parts` prompt, question, an "option i:" for each of `options` -> one text with all of them.

    [CLS] question [SEP] option 0: TEXT [SEP] option 1: TEXT ... [MASK] [SEP].
    """
    lead, question, *heads = parts
    specials = 2 + (mask_pos != "replace")
    room = size - specials - len(lead) - sum(1 + len(head) for head in heads)
    cut, cuts = fit(question, options, room, together=True)
    ids = [special.cls, *lead, *cut]
    for head, option in zip(heads, cuts, strict=True):
        ids += [special.sep, *head, *option]
    ids, place = put_mask([*ids, special.sep], special.mask, mask_pos)
    return Text([ids], place, shortened=(cut, cuts) != (question, list(options)))


def complete(special: SpecialTokens, size: int, parts: Sequence[Ids]) -> Text:
    """`parts` prompt, sentence with a [MASK] -> [CLS] sentence [SEP].

    When cut, its beginning is kept if [MASK] is in it, else what is around.
    """
    lead, sentence = parts
    room = size - 2 - len(lead)
    at = sentence.index(special.mask) if special.mask in sentence else -1
    if room < 1:
        raise UserError(f"size_txt {size} leaves no room for a sentence: raise it.")
    start = 0 if at < room else min(at - room // 2, len(sentence) - room)
    cut = sentence[start : start + room]
    ids = [special.cls, *lead, *cut, special.sep]
    return Text([ids], 1 + len(lead) + at - start if at >= 0 else 0, cut != sentence, at >= 0)


class MultipleChoice(Questions):
    """A text per option, "question option"; the answer is the option's number."""

    prompt = "which answer to the question about the video is right?"
    text_per_option, has_options = True, True

    def options(self, item: Item) -> list[str]:
        """Its options, as many as `size_option`."""
        names = [key for key in item if key.startswith("option_")]
        wanted = [f"option_{i}" for i in range(self.size_option)]
        if sorted(names) != sorted(wanted):
            raise self.fail(
                item, f"it has {len(names)} options, size_option is {self.size_option}; set that."
            )
        return [str(item[name]) for name in wanted]

    def pieces(self, item: Item) -> list[str]:
        """The prompt, the question and the options."""
        return [self.lead(), self.asked(item), *self.options(item)]

    def compose(self, item: Item) -> Text:
        """O texts: [CLS] question option [SEP]."""
        lead, question, *options = (self.table[piece] for piece in self.pieces(item))
        cut, cuts = fit(question, options, self.tokens.size - 2 - len(lead), together=False)
        ids = [[self.special.cls, *lead, *cut, *option, self.special.sep] for option in cuts]
        return Text(ids, shortened=(cut, cuts) != (question, options))

    def answer(self, item: Item) -> tuple[int, int]:
        """The number of the right option, twice."""
        answer = item.get("answer")
        if type(answer) is not int or not 0 <= answer < self.size_option:
            raise self.fail(
                item, f"answer {answer!r} is none of its {self.size_option} options (0 is the first)."
            )
        return answer, answer

    def name(self, item: Item, pick: int) -> str:
        """The option's text."""
        return str(item[f"option_{pick}"])

    def answer_name(self, item: Item) -> str:
        """The right option's text."""
        return self.name(item, int(item["answer"]))


class OptionNumber(MultipleChoice):
    """One text with all options numbered; the answer is the number's token at [MASK]."""

    text_per_option = False

    def pieces(self, item: Item) -> list[str]:
        """The prompt, the question, the options and their numbers."""
        return [*super().pieces(item), *(f"option {i}:" for i in range(self.size_option))]

    def compose(self, item: Item) -> Text:
        """See `ask_number`."""
        lead, question, *rest = (self.table[piece] for piece in self.pieces(item))
        options, heads = rest[: self.size_option], rest[self.size_option :]
        return ask_number(self.special, self.tokens.size, (lead, question, *heads), options, self.mask_pos)

    @staticmethod
    def choices(tokens: Tokens, size_option: int) -> Ids:
        """The tokens of the numbers."""
        ids = [tokens.one(str(i)) for i in range(size_option)]
        if -1 in ids:
            raise UserError(f"the tokenizer has no token for the number {ids.index(-1)} of an option.")
        return ids

    def __post_init__(self) -> None:
        """The numbers' tokens first."""
        self.numbers = self.choices(self.tokens, self.size_option)
        super().__post_init__()

    def answer(self, item: Item) -> tuple[int, int]:
        """The token of the right option's number, and the number."""
        answer, _ = super().answer(item)
        return self.numbers[answer], answer


class OpenEnded(Questions):
    """One text, "question answer: [MASK]"; the answer is a word of the vocabulary."""

    prompt = "answer the question about the video."
    ending = "answer:"

    def __post_init__(self) -> None:
        """The answers are looked up once each."""
        self.known: dict[str, int] = {}
        super().__post_init__()

    def pieces(self, item: Item) -> list[str]:
        """The prompt, the question and what leads to the answer."""
        if not self.asked(item):
            raise self.fail(item, "it has no question.")
        return [self.lead(), self.asked(item), self.ending]

    def compose(self, item: Item) -> Text:
        """See `ask`."""
        parts = [self.table[piece] for piece in self.pieces(item)]
        return ask(self.special, self.tokens.size, parts, self.mask_pos)

    def answer_name(self, item: Item) -> str:
        """The answer's word; empty for -1, an answer that is not on the published list."""
        answer = item.get("answer")
        text = item.get("answer_text", answer)
        if isinstance(text, str):
            return text
        if type(answer) is not int:
            raise self.fail(item, "it has neither an answer nor an answer_text.")
        if not self.annotation.words:
            raise self.fail(
                item, f"answer {answer} is a number, and the file has neither ans2label nor vocab."
            )
        if answer != -1 and answer not in self.annotation.words:
            raise self.fail(item, f"answer {answer} is none of the {len(self.annotation.words)} of the file.")
        return self.annotation.words.get(answer, "")

    def answer(self, item: Item) -> tuple[int, int]:
        """The token of the answer, twice; -1 where it is not one token."""
        word = self.answer_name(item)
        if word not in self.known:
            self.known[word] = self.tokens.one(word)
        return self.known[word], self.known[word]

    def name(self, item: Item, pick: int) -> str:
        """The token."""
        return str(self.tokens.tokenizer.convert_ids_to_tokens(pick))


class FillInTheBlank(OpenEnded):
    """A sentence with its own [MASK]; the answer is its word."""

    prompt = "fill in the mask to complete the sentence."

    def pieces(self, item: Item) -> list[str]:
        """The prompt and the sentence."""
        return super().pieces(item)[:2]

    def compose(self, item: Item) -> Text:
        """See `complete`."""
        return complete(self.special, self.tokens.size, [self.table[piece] for piece in self.pieces(item)])
