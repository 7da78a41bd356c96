import re

import pytest

from relay_lightning.tiny.task import (
    GROUPS,
    PRICES,
    STUDENT_MIX,
    SYLLABLES,
    TEACHER_MIX,
    TinyProblem,
    generate_problems,
    solution_prices,
    stated_prices,
)


def basket_of(problem: TinyProblem) -> frozenset[tuple[str, int, int | None]]:
    """What decides a problem, read back from its text: items, quantities, stated prices."""
    stated = stated_prices(problem.question)
    words = re.findall(r"(\d) (\w+)", problem.question)
    return frozenset((item, int(quantity), stated.get(item)) for quantity, item in words if item in PRICES)


def hidden_groups(problem: TinyProblem) -> set[str]:
    """Groups of the items whose price the question does not state."""
    hidden = solution_prices(problem.solution).keys() - stated_prices(problem.question).keys()
    return {group for group, items in GROUPS.items() if hidden & set(items)}


def test_generation_is_a_function_of_its_arguments():
    assert generate_problems("train", 50, seed=3) == generate_problems("train", 50, seed=3)
    assert generate_problems("train", 50, seed=3)[:20] == generate_problems("train", 20, seed=3)
    assert generate_problems("train", 50, seed=3) != generate_problems("train", 50, seed=4)


def test_splits_share_no_basket():
    train = {basket_of(problem) for problem in generate_problems("train", 20_000, seed=0)}
    test = {basket_of(problem) for problem in generate_problems("test", 5_000, seed=0)}
    # Two streams this long collide within one split, so an empty intersection is the construction's doing.
    other_train = {basket_of(problem) for problem in generate_problems("train", 20_000, seed=1)}
    assert train & other_train
    assert not train & test


def test_every_step_of_a_solution_is_right():
    for problem in generate_problems("train", 500, seed=1):
        steps = re.findall(r"(\d+)([*+])(\d+)=(\d+)", problem.solution)
        assert all(int(a) * int(b) == int(c) if sign == "*" else int(a) + int(b) == int(c) for a, sign, b, c in steps)
        assert problem.solution.endswith(f"\\boxed{{{problem.answer}}}.")
        quantities = {item: quantity for item, quantity, _ in basket_of(problem)}
        prices = solution_prices(problem.solution)
        assert int(problem.answer) == sum(quantities[item] * price for item, price in prices.items())


def test_a_stated_price_overrides_the_items_own():
    overridden = 0
    for problem in generate_problems("train", 500, seed=2):
        stated = stated_prices(problem.question)
        for item, price in solution_prices(problem.solution).items():
            assert price == stated.get(item, PRICES[item])
            overridden += item in stated and stated[item] != PRICES[item]
    assert overridden > 100


def test_kind_says_who_can_know_the_hidden_prices():
    for problem in generate_problems("train", 1000, seed=5):
        hidden = hidden_groups(problem)
        assert problem.kind == ("open" if "unlisted" in hidden else "relay" if "catalogue" in hidden else "solo")


def test_kinds_keep_the_mix_in_every_block():
    for start in range(0, 100, 20):
        kinds = [problem.kind for problem in generate_problems("test", 100, seed=7)[start : start + 20]]
        assert [kinds.count(kind) for kind in ("solo", "relay", "open")] == [8, 11, 1]


def test_no_corpus_shows_a_price_its_reader_must_not_know():
    student_corpus = generate_problems("train", 2000, seed=6, mix=STUDENT_MIX)
    teacher_corpus = generate_problems("train", 2000, seed=6, mix=TEACHER_MIX)
    assert set().union(*map(hidden_groups, student_corpus)) == {"common"}
    assert set().union(*map(hidden_groups, teacher_corpus)) == {"common", "catalogue"}


def test_student_corpus_names_every_item():
    corpus = generate_problems("train", 2000, seed=6, mix=STUDENT_MIX)
    assert set().union(*(solution_prices(problem.solution) for problem in corpus)) == set(PRICES)


@pytest.mark.parametrize("group", list(GROUPS))
def test_every_syllable_occurs_in_every_group(group):
    assert {syllable for item in GROUPS[group] for syllable in (item[:2], item[2:])} == set(SYLLABLES)


def test_items_of_a_basket_share_no_syllable():
    for problem in generate_problems("train", 500, seed=8):
        syllables = [part for item in solution_prices(problem.solution) for part in (item[:2], item[2:])]
        assert len(syllables) == len(set(syllables))


def test_items_are_distinct():
    assert len(PRICES) == sum(len(items) for items in GROUPS.values()) == 66


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation", "num_problems": 1, "seed": 0}, "'validation'"),
        ({"split": "train", "num_problems": -1, "seed": 0}, "-1"),
        ({"split": "train", "num_problems": 1, "seed": 0, "mix": {"hard": 1}}, "hard"),
        ({"split": "train", "num_problems": 1, "seed": 0, "mix": {}}, "mix"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_problems(**arguments)
