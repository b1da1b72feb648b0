"""Synthetic negatives: each kind does what it says, and the same seed makes the same ones."""

from __future__ import annotations

import random

import pytest

from cloud_worker.training import negatives
from cloud_worker.training.squad_files import AnswerText, Question

CONTEXT = (
    "The Eddystone lighthouse was finished in 1759 by John Smeaton. "
    "Henry Winstanley built the first tower in 1698. "
    "The granite blocks were joined with marble dowels. "
    "It stood for 123 years before erosion cracked the rock beneath."
)


def ask(text: str, answer: str) -> Question:
    found = (AnswerText(answer, CONTEXT.index(answer)),)
    return Question("q", text, CONTEXT, "Lighthouses", found, False, "test")


CHANCE = random.Random(0)


def test_a_name_becomes_another_name_of_the_passage() -> None:
    changed = negatives.swap_name(ask("When did Henry Winstanley build?", "1698"), CHANCE)
    assert changed is not None
    assert changed.question in {
        "When did John Smeaton build?",
        "When did Eddystone build?",
        "When did The Eddystone build?",
    }
    assert changed.context == CONTEXT


def test_the_answer_itself_is_never_swapped_in() -> None:
    asked = ask("Who followed Henry Winstanley?", "John Smeaton")
    for seed in range(20):
        changed = negatives.swap_name(asked, random.Random(seed))
        assert changed is None or "Smeaton" not in changed.question


def test_a_number_becomes_another_number() -> None:
    changed = negatives.swap_number(ask("Who finished it in 1759?", "John Smeaton"), CHANCE)
    assert changed is not None
    assert changed.question == "Who finished it in 1698?"


def test_a_word_becomes_its_opposite() -> None:
    changed = negatives.swap_antonym(ask("Who built the first tower?", "Henry Winstanley"), CHANCE)
    assert changed is not None
    assert changed.question == "Who built the last tower?"


@pytest.mark.parametrize(
    ("text", "possible"),
    [
        (
            "Who was the keeper?",
            {"Who wasn't the keeper?", "Who was not the keeper?", "Who was never the keeper?"},
        ),
        ("Who didn't build it?", {"Who did build it?"}),
        (
            "What can crack rock?",
            {"What can't crack rock?", "What can not crack rock?", "What can never crack rock?"},
        ),
    ],
)
def test_a_verb_is_negated_or_freed_of_its_negation(text: str, possible: set[str]) -> None:
    for seed in range(10):
        changed = negatives.negate(ask(text, "1698"), random.Random(seed))
        assert changed is not None
        assert changed.question in possible


def test_a_shared_word_becomes_one_that_the_passage_lacks() -> None:
    changed = negatives.swap_word(
        ask("What were the blocks joined with?", "marble dowels"), ["painted", "carried"], CHANCE
    )
    assert changed is not None
    assert changed.question in {
        "What were the blocks painted with?",
        "What were the blocks carried with?",
    }


def test_the_answers_sentence_is_taken_out() -> None:
    changed = negatives.drop_answer_sentence(ask("Joined with what?", "marble dowels"), CHANCE)
    assert changed is not None
    assert "marble" not in changed.context
    assert "Winstanley" in changed.context


def test_all_are_unanswerable_reproducible_and_follow_their_parent() -> None:
    asked = [ask("Who built the first tower in 1698?", "Henry Winstanley")]
    made = negatives.make_negatives(asked, seed=3)
    assert made == negatives.make_negatives(asked, seed=3)
    (negative,) = made
    assert negative.is_impossible
    assert not negative.answers
    assert negative.id == "q-negative"
    assert (negative.question, negative.context) != (asked[0].question, CONTEXT)


def test_an_unanswerable_question_yields_none() -> None:
    impossible = Question("q", "Who?", CONTEXT, "t", (), True, "test")
    assert negatives.make_negatives([impossible], seed=1) == []
