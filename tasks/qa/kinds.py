"""Kinds of question: which pieces of text make a question, and which answer is expected."""

from lib import UserError
from media.tokens import Tokens
from tasks.qa.questions import Item, Questions
from tasks.qa.texts import Ids, Text


class MultipleChoice(Questions):
    """A text per option, "question option"; the answer is the option's number."""

    prompt = "which answer to the question about the video is right?"
    text_per_option, has_options = True, True

    def lead(self) -> str:
        """The prompt, which published texts per option do not have."""
        return self.prompt if self.text_rules == "fixed" or not self.text_per_option else ""

    def options(self, item: Item) -> list[str]:
        """Its options, as many as `size_option`."""
        names = [key for key in item if key.startswith("option_")]
        wanted = [f"option_{i}" for i in range(self.size_option)]
        if sorted(names) != sorted(wanted):
            raise self.fail(item, f"it has {len(names)} options, not {self.size_option}; set size_option.")
        return [str(item[name]) for name in wanted]

    def pieces(self, item: Item) -> list[str]:
        """The question and the options."""
        return [self.asked(item), *self.options(item)]

    def compose(self, item: Item) -> Text:
        """A sequence per option."""
        question, *options = (self.table[piece] for piece in self.pieces(item))
        return self.rules.choose(question, options)

    def answer(self, item: Item) -> int:
        """The number of the right option."""
        answer = item.get("answer")
        if type(answer) is not int or not 0 <= answer < self.size_option:
            raise self.fail(
                item, f"answer {answer!r} is none of its {self.size_option} options (0 is the first)."
            )
        return answer

    def name(self, item: Item, pick: int) -> str:
        """The option's text."""
        return str(item[f"option_{pick}"])

    def answer_name(self, item: Item) -> str:
        """The right option's text."""
        return self.name(item, int(item["answer"]))


class OptionNumber(MultipleChoice):
    """One text with all options numbered; the answer is the number's token at [MASK]."""

    text_per_option = False

    def lead(self) -> str:
        """The prompt, which as published names the numbers."""
        numbers = list(range(self.size_option))
        return f"which answer is correct, from {numbers}?" if self.text_rules == "published" else self.prompt

    def pieces(self, item: Item) -> list[str]:
        """The question, the options and their numbers."""
        return [*super().pieces(item), *(f"option {i}:" for i in range(self.size_option))]

    def compose(self, item: Item) -> Text:
        """One sequence with all options."""
        question, *rest = (self.table[piece] for piece in self.pieces(item))
        return self.rules.number(question, rest[self.size_option :], rest[: self.size_option])

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

    def answer(self, item: Item) -> int:
        """The token of the right option's number."""
        return self.numbers[super().answer(item)]


class OpenEnded(Questions):
    """One text, "question answer: [MASK]"; the answer is a word of the vocabulary."""

    prompt = "answer the question about the video."
    ending = "answer:"

    def __post_init__(self) -> None:
        """The answers are looked up once each."""
        self.known: dict[str, int] = {}
        super().__post_init__()

    def pieces(self, item: Item) -> list[str]:
        """The question, and the words that lead to the answer."""
        if not self.asked(item):
            raise self.fail(item, "it has no question.")
        return [self.asked(item), self.ending]

    def compose(self, item: Item) -> Text:
        """One sequence with a [MASK] for the answer."""
        question, ending = (self.table[piece] for piece in self.pieces(item))
        return self.rules.ask(question, ending)

    def answer_name(self, item: Item) -> str:
        """The answer's word; empty for -1, an answer that is not on the published list."""
        answer = item.get("answer")
        text = item.get("answer_text", answer)
        listed = self.annotation.words.get(answer) if type(answer) is int else answer
        if isinstance(text, str):
            if isinstance(listed, str) and listed.strip().lower() != text.strip().lower():
                raise self.fail(item, f"answer {answer!r} ({listed!r}) is not its answer_text {text!r}.")
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

    def answer(self, item: Item) -> int:
        """The token of the answer; -1 if the answer is not one token.

        As published a word is looked up as it is written, so that "TV" is none of an uncased vocabulary.
        """
        word = self.answer_name(item)
        if word not in self.known:
            look_up = self.tokens.exact if self.text_rules == "published" else self.tokens.one
            self.known[word] = look_up(word)
        return self.known[word]

    def name(self, item: Item, pick: int) -> str:
        """The token."""
        return str(self.tokens.tokenizer.convert_ids_to_tokens(pick))


class FillInTheBlank(OpenEnded):
    """A sentence with its own [MASK]; the answer is its word."""

    prompt = "fill in the mask to complete the sentence."

    def pieces(self, item: Item) -> list[str]:
        """The sentence."""
        return super().pieces(item)[:1]

    def compose(self, item: Item) -> Text:
        """One sequence with its own [MASK]."""
        return self.rules.complete(self.table[self.asked(item)])
