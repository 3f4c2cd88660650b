"""The run doctor: rules over the logged figures that say in words when a run goes wrong.

The rules read numbers on the host, at the time that a line is written. The verdicts are warnings in the log
when they first hold, are listed after every evaluation and at the end, and are kept in `doctor.json`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lib import World, log
from media.files import atomic_path

FILE = "doctor.json"
CONSTANT, SKILL, VARIANCE = "_constant", "_skill", "_variance"  # endings of figures
FLAT = 1e-4  # variance below which a head ignores its input
RECENT = 20  # steps over which a figure is averaged before it is judged
EARLY, LATE = 40, 2000  # steps after which a task must have learnt something: half of the run between these
Figures = dict[str, float]


def with_skills(figures: Figures) -> Figures:
    """Figures, each `NAME_constant`, the loss of the best constant, followed by `NAME_skill`.

    The skill is 1 - loss / loss of the constant: 1 for a loss of 0, 0 or less for no better than a constant.
    """
    found: Figures = {}
    for name, value in figures.items():
        found[name] = value
        loss = name.removesuffix(CONSTANT)
        if loss != name and loss in figures and value > 1e-5 * figures[loss]:
            found[loss + SKILL] = 1 - figures[loss] / value
    return found


@dataclass
class Verdict:
    """A finding: the rule, the first and last step at which it held, the sentence of the first."""

    rule: str
    step: int
    sentence: str
    until: int | None = None
    """last step at which it held, once that is `RECENT` steps ago"""


class History:
    """The figures of the last lines of a run of `total` steps, and the first value of each."""

    def __init__(self, total: int) -> None:
        self.rows: list[tuple[int, Figures]] = []
        self.first: Figures = {}
        self.due = max(EARLY, min(total // 2, LATE))

    def add(self, step: int, figures: Figures) -> None:
        """A line of figures."""
        self.first = {**figures, **self.first}
        self.rows = [row for row in self.rows if row[0] > step - self.due - RECENT] + [(step, figures)]

    @property
    def step(self) -> int:
        """The step of the last line."""
        return self.rows[-1][0]

    def names(self, ending: str) -> list[str]:
        """The names of the last figures with this ending, without it."""
        return [name.removesuffix(ending) for name in self.rows[-1][1] if name.endswith(ending)]

    def recent(self, name: str, ago: int = 0) -> float | None:
        """The mean of a figure over the last `RECENT` steps, or over those before the last `ago` steps."""
        end = self.step - ago
        values = [f[name] for step, f in self.rows if end - RECENT < step <= end and name in f]
        if not values and not ago:
            values = [figures[name] for _, figures in self.rows[-1:] if name in figures]
        return sum(values) / len(values) if values else None

    def gain(self, name: str) -> float:
        """By how much a figure has risen over the last steps, half as many as are `due`."""
        now, before = self.recent(name), self.recent(name, self.due // 2)
        return 0.0 if now is None or before is None else now - before


Findings = Iterator[tuple[str, str]]  # name of the finding, sentence


# -------------------------------------------------------------------------------------------------- rules


def inputs(history: History) -> Findings:
    """Videos and texts that hold nothing, are all alike, or are not masked."""
    contrast, repeats = history.recent("video_contrast"), history.recent("text_repeats")
    if contrast is not None and contrast < 0.02:
        yield "video_contrast", f"the frames are blank: the contrast of their pixels is {contrast:.3f}."
    if repeats is not None and repeats > 0.5:
        yield "text_repeats", f"captions repeat: {repeats:.0%} of the pairs of a batch have the same text."
    for name, unit in (("video_hidden", "patch"), ("text_hidden", "word")):
        if history.recent(name) == 0 and history.step >= RECENT:
            yield name, f"no {unit} has been hidden in the last {RECENT} steps: nothing is left to predict."


def collapse(history: History) -> Findings:
    """Encoders that give the same for every sample."""
    for name in ("video", "text"):
        similarity, rank = history.recent(f"{name}_similarity"), history.recent(f"{name}_rank")
        if similarity is None or rank is None or similarity < 0.999:
            continue
        text = f"the {name} features of all samples are nearly the same (mean cosine {similarity:.4f}, "
        text += f"effective rank {rank:.1f})"
        if (first := history.first[f"{name}_similarity"]) < 0.9:
            text += f", and were not at first ({first:.2f}): lr may be too high"
        yield f"{name}_similarity", f"{text}."


def teachers(history: History) -> Findings:
    """Targets that are the same everywhere."""
    for name in history.names(CONSTANT):
        constant, first = history.recent(name + CONSTANT), history.first.get(name, 0.0)
        if name.startswith("mvm_") and constant is not None and constant <= max(0.01 * first, 1e-6):
            text = f"{short(name)}: the teacher gives the same for every patch (a constant has a loss of "
            yield f"{name}_teacher", text + f"{constant:.2g}): check its weights and its input."


def heads(history: History) -> Findings:
    """Heads that ignore their input."""
    for name in history.names(VARIANCE):
        variance, skill = history.recent(name + VARIANCE), history.recent(name + SKILL)
        if variance is None or skill is None or history.step < EARLY:
            continue
        if variance < FLAT and skill < 0.02:
            text = f"{short(name)}: skill {skill:.2f} after {history.step} steps: the head predicts the same "
            yield f"{name}_head", text + f"for every patch (variance {variance:.1g})."


def divergence(history: History) -> Findings:
    """Losses that have risen beyond that of a constant."""
    for name in history.names(SKILL):
        loss, constant, first = history.recent(name), history.recent(name + CONSTANT), history.first[name]
        if loss is not None and constant is not None and loss > 1.2 * max(constant, first):
            text = (
                f"{short(name)}: the loss has risen from {first:.3g} to {loss:.3g}, above that of a constant "
            )
            yield f"{name}_divergence", text + f"({constant:.3g}): lr may be too high."


def skills(history: History) -> Findings:
    """Tasks that are no better than a constant and do not become better."""
    meanings = {"vtm": "texts are chosen by chance", "mlm": "frequent words are predicted"}
    for name in history.names(SKILL):
        skill = history.recent(name + SKILL)
        if skill is None or history.step < history.due or skill > 0.01 or history.gain(name + SKILL) > 0.01:
            continue
        variance = history.recent(name + VARIANCE)
        if variance is not None and variance < FLAT:
            continue  # see `heads`
        why = meanings.get(name, "it predicts no better than a constant")
        if skill < -0.2:
            why = "it is worse than a constant and does not improve; lr may be too high"
        yield name + SKILL, f"{short(name)}: skill {skill:.2f} after {history.step} steps: {why}."


def labels(history: History) -> Findings:
    """A loss of VTM that the scores of the videos' own texts cannot have.

    As the logarithm of a mean is no less than the mean of the logarithms, the cross-entropy of the first of n
    scores is at least log n - (n - 1) / n of the margin by which the first exceeds the mean of the others.
    """
    margin, loss, chance = (history.recent(name) for name in ("vtm_margin", "vtm", "vtm_constant"))
    if margin is None or loss is None or chance is None or history.step < RECENT:
        return
    least = min(chance - loss, 2 * (chance - loss))  # n / (n - 1) is at most 2
    if margin < least - 0.01:
        text = f"vtm: own texts score {margin:.3f} above others, and with a loss of {loss:.3f} that must be "
        yield "vtm_margin", text + f"{least:.3f} or more: the labels are those of other texts."


def gradients(history: History) -> Findings:
    """Parts that do not learn."""
    for part, words in {"video": "video encoder", "text": "text encoder", "fusion": "transformer"}.items():
        if history.recent(f"grad_norm_{part}") == 0 and history.step >= RECENT:
            yield f"grad_norm_{part}", f"the {words} receives no gradient: it is frozen or not connected."


def precision(history: History) -> Findings:
    """Steps of fp16 that are skipped after the loss scale has been found."""
    skipped = history.recent("skipped")
    if skipped is not None and skipped > 0.3 and history.step >= RECENT:
        yield (
            "skipped",
            f"fp16: {skipped:.0%} of the last steps were skipped: their gradients were not finite.",
        )


def short(name: str) -> str:
    """A target's loss by the name of the target."""
    return name.removeprefix("mvm_")


RULES: tuple[Callable[[History], Findings], ...] = (
    inputs,
    collapse,
    teachers,
    heads,
    divergence,
    skills,
    labels,
    precision,
)


# ------------------------------------------------------------------------------------------------- doctor


class Doctor:
    """Judges a run's figures, and keeps the verdicts in its folder; only the main process does."""

    def __init__(self, folder: Path, world: World, total: int, frozen: bool = False) -> None:
        """frozen: encoders are meant not to learn."""
        self.path, self.active = folder / FILE, world.is_main
        self.rules = RULES if frozen else (*RULES, gradients)
        self.history = History(total)
        self.verdicts: list[Verdict] = []
        self.held: dict[str, int] = {}  # rule -> the last step at which it held

    def resume(self) -> None:
        """Judge the lines that the run has written so far again, so that verdicts are as they were."""
        path = self.path.with_name("metrics.jsonl")
        if not self.active or not path.is_file():
            return
        for line in path.read_text().splitlines():
            row = json.loads(line)
            self.judge(row.pop("step"), row)

    def examine(self, step: int, figures: Figures) -> None:
        """Judge a new line; a verdict that appears is a warning in the log."""
        if not self.active or not figures:
            return
        before = [verdict.until for verdict in self.verdicts]
        for verdict in self.judge(step, figures):
            log.warning("doctor: %s", verdict.sentence)
        for verdict, until in zip(self.verdicts, before, strict=False):
            if until is None and verdict.until is not None:
                log.info("doctor: no longer so since step %d: %s", verdict.until, verdict.sentence)
        if before != [verdict.until for verdict in self.verdicts]:
            self.write()

    def judge(self, step: int, figures: Figures) -> list[Verdict]:
        """Take in a line; returns the verdicts that are new."""
        self.history.add(step, figures)
        found = {name: text for rule in self.rules for name, text in rule(self.history)}
        self.held |= dict.fromkeys(found, step)
        for verdict in self.verdicts:
            if verdict.until is None and step - self.held[verdict.rule] >= RECENT:
                verdict.until = self.held[verdict.rule]
        open_ones = {verdict.rule for verdict in self.verdicts if verdict.until is None}
        new = [Verdict(name, step, text) for name, text in found.items() if name not in open_ones]
        self.verdicts += new
        return new

    def overflow(self, step: int) -> None:
        """The loss scale of fp16 has vanished, with which the run ends."""
        sentence = "fp16: gradients are not finite with any loss scale; try amp bf16 or a smaller lr."
        if self.active:
            self.verdicts.append(Verdict("overflow", step, sentence))
            log.warning("doctor: %s", sentence)
            self.write()

    def report(self) -> None:
        """List in the log all that is wrong now, and write the file."""
        if not self.active:
            return
        now = [verdict for verdict in self.verdicts if verdict.until is None]
        log.info("doctor: %s", f"{len(now)} findings" if now else "nothing found")
        for verdict in now:
            log.warning("doctor: since step %d: %s", verdict.step, verdict.sentence)
        self.write()

    def write(self) -> None:
        """Write `doctor.json`; a run goes on where it cannot be written."""
        content = [dataclasses.asdict(verdict) for verdict in self.verdicts]
        try:
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            log.error("%s: verdicts could not be written (%s): the run continues.", self.path, error)
