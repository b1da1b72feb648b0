"""Unanswerable questions made from answerable ones.

In: answerable questions. Out: questions that look like them and that the passage does not answer.
Neighbours: `trainer` mixes them in (`--negatives`).

The kinds follow the ones that Rajpurkar et al. (2018, table 2) found among the human-written
unanswerable questions of SQuAD 2.0: a swapped entity, a swapped number, an antonym, a negation, and
an impossible or other condition; and the answer's own sentence taken out of the passage. They are
noisy by nature; the share of true negatives was not measured.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from cloud_worker.training.squad_files import Question

SOURCE = "synthetic_negative"

_ANTONYMS = """
first last|before after|most least|more fewer|more less|largest smallest|highest lowest|north south
east west|northern southern|eastern western|increase decrease|increased decreased|high low
early late|earliest latest|old new|oldest newest|begin end|began ended|start stop|started stopped
win lose|won lost|large small|larger smaller|long short|longest shortest|maximum minimum|major minor
male female|men women|father mother|brother sister|son daughter|king queen|husband wife
above below|inside outside|accept reject|accepted rejected|agree disagree|allow forbid
allowed banned|attack defend|arrive leave|arrived left|buy sell|bought sold|create destroy
created destroyed|build demolish|built demolished|enter exit|gain lose|gained lost|help hinder
helped prevented|import export|include exclude|included excluded|join leave|joined left
legal illegal|love hate|open close|opened closed|possible impossible|public private
positive negative|present absent|rise fall|rose fell|support oppose|supported opposed
strong weak|stronger weaker|success failure
true false|upper lower|urban rural|visible invisible|war peace|wide narrow|young old|youngest oldest
domestic foreign|internal external|ancient modern|common rare|cheap expensive|expand shrink
always never|best worst|better worse|difficult easy|fast slow|fastest slowest|hot cold|warm cool
appear disappear|approve reject|approved rejected|encourage discourage|encouraged discouraged
employ dismiss|founded dissolved|permit prohibit|permitted prohibited|raise lower|raised lowered
succeed fail|succeeded failed|unite divide|united divided|victory defeat|wealthy poor|rich poor
"""
_STOP = frozenset(
    "about after again against among because before being between could does during every first "
    "from given have having into many much name named other over same should since some such than "
    "that their them then there these they this those through type under until used using very "
    "were what when where which while whom whose will with within without would kind year years "
    "people called known become became".split()
)
_APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
_NAME = re.compile(
    rf"\b[A-Z][\w{_APOSTROPHES}.-]*(?:\s+(?:of\s+|the\s+|de\s+)?[A-Z][\w{_APOSTROPHES}.-]*)*"
)
_NUMBER = re.compile(r"\b\d[\d,.]*\b")
_WORD = re.compile(r"[A-Za-z]+")
_AUXILIARY = re.compile(
    r"\b(did|does|do|is|are|was|were|has|have|had|can|could|would|should)\b(?!\s+not\b)", re.I
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")


def make_negatives(questions: Sequence[Question], *, seed: int) -> list[Question]:
    """At most one unanswerable question for each answerable one, in order; the rest yield none.

    Which kind a question gets is drawn by `seed` among those that apply to it.
    """
    words_by_title = _words_by_title(questions)
    made = []
    for question in questions:
        if question.is_impossible:
            continue
        chance = random.Random(f"{seed}:{question.id}")  # noqa: S311  # no secret hangs on it
        changed = _first_that_applies(question, words_by_title[question.title], chance)
        if changed is not None:
            made.append(
                replace(
                    changed,
                    id=f"{question.id}-negative",
                    answers=(),
                    is_impossible=True,
                    source=SOURCE,
                )
            )
    return made


def swap_name(question: Question, chance: random.Random) -> Question | None:
    """A name of the question that the passage holds becomes another name of the passage."""
    answers = {answer.text for answer in question.answers}
    present = [
        name
        for name in _names(question.question)
        if name in question.context and name.split()[0].lower() not in _QUESTION_WORDS
    ]
    others = [
        name
        for name in dict.fromkeys(_names(question.context))
        if name not in question.question
        and name.lower() not in _STOP
        and len(name) > 3
        and not any(name in answer or answer in name for answer in answers)
    ]
    if not present or not others:
        return None
    old = chance.choice(present)
    alike = [name for name in others if len(name.split()) == len(old.split())] or others
    return _with_text(question, question.question.replace(old, chance.choice(alike), 1))


def swap_number(question: Question, chance: random.Random) -> Question | None:
    """A number of the question becomes another number of the passage, or a near one."""
    numbers = _NUMBER.findall(question.question)
    if not numbers:
        return None
    old = chance.choice(numbers)
    others = [
        number
        for number in dict.fromkeys(_NUMBER.findall(question.context))
        if number not in question.question and len(number) == len(old)
    ]
    digits = old.replace(",", "").rstrip(".")
    near = str(int(digits) + chance.choice((-20, -7, -3, 4, 9, 30))) if digits.isdigit() else None
    new = chance.choice(others) if others else near
    if new is None or new == old or (new in question.context and not others):
        return None
    return _with_text(question, question.question.replace(old, new, 1))


def swap_antonym(question: Question, chance: random.Random) -> Question | None:
    """A word of the question becomes its opposite."""
    found = [word for word in _WORD.findall(question.question) if word.lower() in _OPPOSITES]
    if not found:
        return None
    old = chance.choice(found)
    new = chance.choice(_OPPOSITES[old.lower()])
    if old[0].isupper():
        new = new.capitalize()
    return _with_text(question, re.sub(rf"\b{old}\b", new, question.question, count=1))


def negate(question: Question, chance: random.Random) -> Question | None:
    """The question's verb is negated, or its negation taken out."""
    text = question.question
    without = re.sub(r"n't\b|\s+not\b|\bnever\s+", "", text, count=1)
    if without != text:
        return _with_text(question, without)
    verb = _AUXILIARY.search(text)
    if verb is None:
        return None
    negated = "can't" if verb[1].lower() == "can" else f"{verb[1]}n't"
    if chance.random() < 0.3:
        negated = f"{verb[1]} never" if chance.random() < 0.5 else f"{verb[1]} not"
    return _with_text(question, text[: verb.start()] + negated + text[verb.end() :])


def swap_word(
    question: Question, article_words: Sequence[str], chance: random.Random
) -> Question | None:
    """A word that question and passage share becomes one of the article's that they lack."""
    passage_words = {word.lower() for word in _WORD.findall(question.context)}
    shared = [
        word
        for word in _WORD.findall(question.question)
        if len(word) > 4 and word.islower() and word in passage_words and word not in _STOP
    ]
    if not shared:
        return None
    old = chance.choice(shared)
    alike = [
        word
        for word in chance.sample(article_words, min(len(article_words), 60))
        if word[-2:] == old[-2:] and word not in passage_words and word not in question.question
    ]
    if not alike:
        return None
    return _with_text(question, re.sub(rf"\b{old}\b", alike[0], question.question, count=1))


def drop_answer_sentence(question: Question, chance: random.Random) -> Question | None:
    """The sentence that answers is taken out of the passage, if nothing else holds the answer."""
    del chance  # the same shape as its siblings
    sentences = _SENTENCE_END.split(question.context)
    answers = [answer.text.lower() for answer in question.answers]
    kept = [part for part in sentences if not any(text in part.lower() for text in answers)]
    if len(kept) < 2 or len(sentences) - len(kept) != 1:
        return None
    return replace(question, context=" ".join(kept))


_Kind = Callable[[Question, random.Random], Question | None]
_QUESTION_WORDS = frozenset("who what when where which why how whose whom in on at the".split())


def _first_that_applies(
    question: Question, article_words: Sequence[str], chance: random.Random
) -> Question | None:
    """The kinds in a random order, the frequent ones of SQuAD 2.0 more often first."""

    def swap_shared_word(asked: Question, draw: random.Random) -> Question | None:
        return swap_word(asked, article_words, draw)

    weighted: list[tuple[_Kind, float]] = [
        (swap_name, 0.32),
        (swap_shared_word, 0.24),
        (swap_antonym, 0.2),
        (swap_number, 0.2),
        (negate, 0.1),
        (drop_answer_sentence, 0.1),
    ]
    # Efraimidis and Spirakis 2006: a weighted order without replacement.
    order = sorted(weighted, key=lambda kind: -(chance.random() ** (1 / kind[1])))
    for kind, _ in order:
        changed = kind(question, chance)
        if changed is not None and (changed.question, changed.context) != (
            question.question,
            question.context,
        ):
            return changed
    return None


def _with_text(question: Question, text: str) -> Question:
    return replace(question, question=text)


def _names(text: str) -> list[str]:
    return [match.rstrip(f".{_APOSTROPHES}-") for match in _NAME.findall(text)]


def _words_by_title(questions: Sequence[Question]) -> dict[str, list[str]]:
    words: dict[str, dict[str, None]] = {}
    seen: set[str] = set()
    for question in questions:
        if question.context not in seen:
            seen.add(question.context)
            of_title = words.setdefault(question.title, {})
            for word in _WORD.findall(question.context):
                if len(word) > 4 and word.islower() and word not in _STOP:
                    of_title.setdefault(word)
        else:
            words.setdefault(question.title, {})
    return {title: list(found) for title, found in words.items()}


def _opposites() -> dict[str, list[str]]:
    pairs: dict[str, list[str]] = {}
    for pair in _ANTONYMS.replace("\n", "|").split("|"):
        if pair.strip():
            left, right = pair.split()
            pairs.setdefault(left, []).append(right)
            pairs.setdefault(right, []).append(left)
    return pairs


_OPPOSITES = _opposites()
