"""Token sequences of questions, by two sets of rules.

`Published`: the rules with which released checkpoints were trained. Around a [MASK] for the answer stand up
to `size_txt` - 1 words: a long text loses its last words or options. The other texts, [CLS] words [SEP], are
cut to `size_txt` - 1 tokens: a long one loses its [SEP], and a sentence its own [MASK]. A prompt is another
sequence.
`Fixed`: every text keeps [MASK], [SEP] and every option. Options are shortened evenly first, then the
question; a prompt goes before the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from batch import SpecialTokens
from lib import UserError

Ids = list[int]
INSERT_AT = 10  # the token before which `mask_pos` insert puts [MASK]
FLOOR = 4  # tokens below which an option is not shortened while the question can be


@dataclass
class Text:
    """The tokens of a question: one sequence, or one per option."""

    ids: list[Ids]
    place: int = 0
    """that of [MASK]"""
    shortened: bool = False
    answerable: bool = True
    """False: it has no [MASK]"""


@dataclass(frozen=True)
class Settings:
    """What both sets of rules go by."""

    special: SpecialTokens
    size: int
    mask_pos: str = "append"
    prompt: tuple[int, ...] = ()


class Published(Settings):
    """The rules of the published code."""

    @property
    def between(self) -> Ids:
        """The sequence between video and text: [CLS] prompt [SEP], if there is a prompt."""
        return [self.special.cls, *self.prompt, self.special.sep] if self.prompt else []

    def choose(self, question: Ids, options: Sequence[Ids]) -> Text:
        """A sequence per option: [CLS] question option [SEP], cut at its end."""
        ids = [self.framed([*question, *option]) for option in options]
        return Text([i[: self.size - 1] for i in ids], shortened=any(len(i) >= self.size for i in ids))

    def number(self, question: Ids, heads: Sequence[Ids], options: Sequence[Ids]) -> Text:
        """All options in one: question [SEP] option 0: TEXT [SEP] option 1: TEXT ..., and [MASK]."""
        words = list(question)
        for head, option in zip(heads, options, strict=True):
            words += [self.special.sep, *head, *option]
        return self.with_mask(words, [])

    def ask(self, question: Ids, ending: Ids) -> Text:
        """A question and [MASK]; `ending` leads to an answer that is appended, and to no other."""
        return self.with_mask(question, ending)

    def complete(self, sentence: Ids) -> Text:
        """[CLS] sentence [SEP], cut at its end, where the sentence has its own [MASK]."""
        ids = self.framed(sentence)
        cut, mask = ids[: self.size - 1], self.special.mask
        return Text([cut], cut.index(mask) if mask in cut else 0, len(ids) >= self.size, mask in cut)

    def framed(self, words: Ids) -> Ids:
        """[CLS] words [SEP]."""
        return [self.special.cls, *words, self.special.sep]

    def with_mask(self, words: Ids, ending: Ids) -> Text:
        """[CLS] words [SEP] with [MASK] where `mask_pos` says: up to `size` - 1 words, and what frames them.

        insert puts [MASK] at position 10 whatever is there, behind [SEP] and padding in a short text.
        """
        cut, mask = words[: self.size - 1], self.special.mask
        if self.mask_pos == "append":
            ids = [*self.framed([*cut, *ending])[:-1], mask, self.special.sep]
            place = len(ids) - 2
        elif self.mask_pos == "prepend":
            ids, place = [mask, *self.framed(cut)], 0
        elif self.mask_pos == "replace":
            ids, place = [mask, *self.framed(cut)[1:]], 0
        else:
            text = self.framed(cut)
            text += [self.special.pad] * (min(INSERT_AT, self.size + 2) - len(text))
            ids, place = [*text[:INSERT_AT], mask, *text[INSERT_AT:]], min(INSERT_AT, len(text))
        return Text([ids], place, cut != words)


class Fixed(Settings):
    """Rules under which no text loses its [MASK], its [SEP] or an option (Deviation 8)."""

    @property
    def between(self) -> Ids:
        """The sequence between video and text: none, for the prompt is part of the text."""
        return []

    def choose(self, question: Ids, options: Sequence[Ids]) -> Text:
        """A sequence per option: [CLS] question option [SEP]."""
        cut, cuts = self.fit(question, options, self.size - 2 - len(self.prompt), together=False)
        ids = [[self.special.cls, *self.prompt, *cut, *option, self.special.sep] for option in cuts]
        return Text(ids, shortened=(cut, cuts) != (question, list(options)))

    def number(self, question: Ids, heads: Sequence[Ids], options: Sequence[Ids]) -> Text:
        """All options in one: [CLS] question [SEP] option 0: TEXT [SEP] option 1: TEXT ... [MASK] [SEP]."""
        room = self.size - self.specials - len(self.prompt) - sum(1 + len(head) for head in heads)
        cut, cuts = self.fit(question, options, room, together=True)
        ids = [self.special.cls, *self.prompt, *cut]
        for head, option in zip(heads, cuts, strict=True):
            ids += [self.special.sep, *head, *option]
        ids, place = self.put_mask([*ids, self.special.sep])
        return Text([ids], place, shortened=(cut, cuts) != (question, list(options)))

    def ask(self, question: Ids, ending: Ids) -> Text:
        """[CLS] question answer: [MASK] [SEP]."""
        room = self.size - self.specials - len(self.prompt) - len(ending)
        cut = self.fit(question, [], room, together=True)[0]
        ids, place = self.put_mask([self.special.cls, *self.prompt, *cut, *ending, self.special.sep])
        return Text([ids], place, shortened=cut != question)

    def complete(self, sentence: Ids) -> Text:
        """[CLS] sentence [SEP], where the sentence has its own [MASK].

        When cut, its beginning is kept if [MASK] is in it, else the words around [MASK].
        """
        room = self.size - 2 - len(self.prompt)
        at = sentence.index(self.special.mask) if self.special.mask in sentence else -1
        if room < 1:
            raise UserError(f"size_txt {self.size} leaves no room for a sentence: raise it.")
        start = 0 if at < room else min(at - room // 2, len(sentence) - room)
        cut = sentence[start : start + room]
        ids = [self.special.cls, *self.prompt, *cut, self.special.sep]
        return Text([ids], 1 + len(self.prompt) + at - start if at >= 0 else 0, cut != sentence, at >= 0)

    @property
    def specials(self) -> int:
        """How many of [CLS], [SEP] and [MASK] a text has."""
        return 2 + (self.mask_pos != "replace")

    def put_mask(self, ids: Ids) -> tuple[Ids, int]:
        """[CLS] ... [SEP] with [MASK] where `mask_pos` says; and its place."""
        places = {"append": len(ids) - 1, "prepend": 1, "insert": min(INSERT_AT, len(ids) - 1), "replace": 0}
        at = places[self.mask_pos]
        return [*ids[:at], self.special.mask, *ids[at + (self.mask_pos == "replace") :]], at

    @staticmethod
    def fit(question: Ids, options: Sequence[Ids], room: int, together: bool) -> tuple[Ids, list[Ids]]:
        """Shorten the options evenly, then the question, until they fit into `room` tokens.

        `together`: all options are in one text; else each has its own, beside the question.
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


Rules = Published | Fixed
RULES: dict[str, type[Rules]] = {"published": Published, "fixed": Fixed}
