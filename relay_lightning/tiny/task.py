"""The embedded world: shopping problems in words with worked solutions, and who can know which price.

An item is an invented word of two syllables with a fixed price. Three groups of items decide what a network can know:

- `common`: every training corpus writes these prices down, so student and teacher both know them.
- `catalogue`: only the teacher's corpus does. The student's shows these items with a random price stated in the prompt.
- `unlisted`: no corpus does, so nobody knows them.

A price stated in the prompt ("3 kebu at 37") overrides the item's own. Every syllable occurs in every group, so that a
group cannot be told from a syllable, and whoever can write one item can write them all. The items of one basket share
no syllable: reading a price off the prompt is meant to be the easy part.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Split = Literal["train", "test"]
Kind = Literal["solo", "relay", "open"]
Group = Literal["common", "catalogue", "unlisted"]

WORLD_SEED = 20260105
"""Fixes the prices. Changing it makes another world, in which a trained pair knows nothing."""

SYLLABLES = ("ke", "bu", "lo", "mi", "ta", "ri", "po", "na", "su", "ve", "di", "ga")
BUYERS = ("Mia", "Tom", "Ana", "Ben", "Zoe", "Leo")
OPENINGS = ("{buyer} buys {basket}.", "{buyer} takes {basket}.")
QUESTIONS = ("How many coins does {buyer} pay?", "What does {buyer} pay in coins?")

MIN_PRICE, MAX_PRICE = 12, 69
MIN_QUANTITY, MAX_QUANTITY = 2, 6

BENCHMARK_MIX: Mapping[Kind, int] = MappingProxyType({"solo": 8, "relay": 11, "open": 1})
"""What is trained and tested on: in every 20 problems 8 that the student can solve alone, 11 for two, 1 for nobody."""
STUDENT_MIX: Mapping[Kind, int] = MappingProxyType({"solo": 1})
"""The student's pretraining corpus: no catalogue price that the prompt does not state."""
TEACHER_MIX: Mapping[Kind, int] = MappingProxyType({"solo": 8, "relay": 12})
"""The teacher's pretraining corpus: catalogue prices, but no unlisted one."""

_TEST_SHARE = 8  # one canonical basket in eight belongs to the test split


@dataclass(frozen=True, slots=True)
class TinyProblem:
    """One problem with its worked solution."""

    problem_id: int
    """Position in the generated list."""
    question: str
    """The problem in words, without any instruction."""
    solution: str
    """Worked solution, ending in `\\boxed{answer}.`"""
    answer: str
    """The number in the box, in decimal digits."""
    kind: Kind
    """`solo`: no hidden price but common ones. `relay`: a hidden catalogue price. `open`: a hidden unlisted price."""


@dataclass(frozen=True, slots=True)
class Purchase:
    """One line of a basket."""

    item: str
    quantity: int
    price: int
    is_stated: bool


def _build_groups() -> dict[Group, tuple[str, ...]]:
    """Names of each group. Items of one shift use every syllable once in front and once behind."""
    num_syllables = len(SYLLABLES)

    def shifted(shift: int, count: int = num_syllables) -> list[str]:
        return [SYLLABLES[i] + SYLLABLES[(i + shift) % num_syllables] for i in range(count)]

    catalogue = [item for shift in (2, 3, 4, 7) for item in shifted(shift)]
    return {
        "common": tuple(shifted(1)),
        "catalogue": tuple(catalogue),
        # Half of the shift by six: there each syllable occurs once already.
        "unlisted": tuple(shifted(6, num_syllables // 2)),
    }


def _build_prices(groups: Mapping[Group, tuple[str, ...]]) -> dict[str, int]:
    """Price in coins of every item; a pure function of `WORLD_SEED`."""
    rng = random.Random(WORLD_SEED)
    return {item: rng.randint(MIN_PRICE, MAX_PRICE) for items in groups.values() for item in items}


GROUPS: Mapping[Group, tuple[str, ...]] = MappingProxyType(_build_groups())
PRICES: Mapping[str, int] = MappingProxyType(_build_prices(GROUPS))
ALL_ITEMS: tuple[str, ...] = tuple(PRICES)


def generate_problems(
    split: Split, num_problems: int, seed: int, mix: Mapping[Kind, int] = BENCHMARK_MIX
) -> list[TinyProblem]:
    """The first `num_problems` problems of the stream that (split, seed, mix) names.

    Problems of the two splits never share a basket: what is bought, how many, and at which stated prices decides the
    split, whatever the order, the buyer and the wording. Raises ValueError on an unknown split, kind, or count.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    if num_problems < 0:
        raise ValueError(f"num_problems must not be negative, but is {num_problems}")
    rng = random.Random(f"{split}/{seed}")
    kinds = _kind_stream(mix, rng)
    return [_draw_problem(split, problem_id, next(kinds), rng) for problem_id in range(num_problems)]


def stated_prices(question: str) -> dict[str, int]:
    """Price in coins of every item whose price the question states."""
    return {item: int(price) for item, price in re.findall(r"\d (\w+) at (\d+)", question)}


def solution_prices(solution: str) -> dict[str, int]:
    """Price in coins that each line of a worked solution writes down."""
    return {item: int(price) for item, price in re.findall(r"One (\w+) costs (\d+)\.", solution)}


def _kind_stream(mix: Mapping[Kind, int], rng: random.Random) -> Iterator[Kind]:
    """Kinds in shuffled blocks that hold each kind exactly as often as `mix` says."""
    block: list[Kind] = [kind for kind, count in mix.items() for _ in range(count)]
    unknown = set(block) - {"solo", "relay", "open"}
    if unknown or not block:
        raise ValueError(f"mix must count problems of kind solo, relay or open, but is {dict(mix)}")
    while True:
        rng.shuffle(block)
        yield from block


def _draw_problem(split: Split, problem_id: int, kind: Kind, rng: random.Random) -> TinyProblem:
    """Draws baskets until one belongs to the split, then words it."""
    while True:
        basket = _draw_basket(kind, rng)
        if _split_of(basket) == split:
            break
    total = sum(purchase.quantity * purchase.price for purchase in basket)
    return TinyProblem(problem_id, _question_text(basket, rng), _solution_text(basket), str(total), kind)


def _draw_basket(kind: Kind, rng: random.Random) -> list[Purchase]:
    """Two or three items without a common syllable; which ones have a hidden price follows from the kind."""
    num_items = 2 if rng.random() < 0.65 else 3
    num_hidden = {"solo": 0, "relay": 2 if rng.random() < 0.25 else 1, "open": 1}[kind]
    hidden_pool = GROUPS["unlisted" if kind == "open" else "catalogue"]
    basket: list[Purchase] = []
    free_syllables = set(SYLLABLES)
    while len(basket) < num_items:
        is_hidden = len(basket) < num_hidden
        is_stated = not is_hidden and rng.random() < 0.5
        pool = hidden_pool if is_hidden else ALL_ITEMS if is_stated else GROUPS["common"]
        item = rng.choice([item for item in pool if {item[:2], item[2:]} <= free_syllables])
        free_syllables -= {item[:2], item[2:]}
        basket.append(_purchase(item, is_stated, rng))
    rng.shuffle(basket)
    return basket


def _purchase(item: str, is_stated: bool, rng: random.Random) -> Purchase:
    price = rng.randint(MIN_PRICE, MAX_PRICE) if is_stated else PRICES[item]
    return Purchase(item, rng.randint(MIN_QUANTITY, MAX_QUANTITY), price, is_stated)


def _split_of(basket: list[Purchase]) -> Split:
    """The split a basket belongs to, by a hash of its content that does not depend on its order."""
    canonical = ";".join(
        sorted(f"{line.item},{line.quantity},{line.price if line.is_stated else '-'}" for line in basket)
    )
    digest = hashlib.sha256(canonical.encode()).digest()
    return "test" if digest[0] % _TEST_SHARE == 0 else "train"


def _question_text(basket: list[Purchase], rng: random.Random) -> str:
    """The basket, with the stated prices behind their items, and the question."""
    buyer = rng.choice(BUYERS)
    entries = [f"{line.quantity} {line.item}" + (f" at {line.price}" if line.is_stated else "") for line in basket]
    joined = ", ".join(entries[:-1]) + " and " + entries[-1]
    return rng.choice(OPENINGS).format(buyer=buyer, basket=joined) + " " + rng.choice(QUESTIONS).format(buyer=buyer)


def _solution_text(basket: list[Purchase]) -> str:
    """One line per item (price, tens, ones, product), then the sums, then the box."""
    lines = []
    for line in basket:
        tens, ones = line.price // 10 * 10, line.price % 10
        steps = [
            f"{line.quantity}*{tens}={line.quantity * tens}",
            f"{line.quantity}*{ones}={line.quantity * ones}",
            f"{line.quantity * tens}+{line.quantity * ones}={line.quantity * line.price}",
        ]
        lines.append(f"One {line.item} costs {line.price}. {', '.join(steps)}.")
    products = [line.quantity * line.price for line in basket]
    sums = []
    total = products[0]
    for product in products[1:]:
        sums.append(f"{total}+{product}={total + product}")
        total += product
    lines.append(f"Total: {', '.join(sums)}. The answer is \\boxed{{{total}}}.")
    return "\n".join(lines)
