"""Mark-up in the student's pretraining text: `<name>...</name>` asides that a reader must see past.

Any large model has read interrupted text and tags before somebody teaches it a command. This gives the small student
the same footing: it learns to close a tag that was opened, and to go on after it as if nothing had been said. It never
learns to open one.
"""

from __future__ import annotations

import random
from dataclasses import replace

from tokenizers import Tokenizer

from relay_lightning.tiny.tokenizer import SPECIAL_TOKENS
from relay_lightning.tiny.training import Sample

MAX_ASIDES = 3
ASIDE_SHARE = 0.4
"""Share of the samples that carry asides."""
_MAX_CONTENT_TOKENS = 4


def insert_asides(sample: Sample, tokenizer: Tokenizer, rng: random.Random) -> Sample:
    """The sample with 0 to `MAX_ASIDES` asides in front of uniformly drawn completion tokens.

    Of an aside `<`, name and content are drawn at random, so they are not learnt; `>` and the closing tag are.
    """
    if rng.random() >= ASIDE_SHARE:
        return sample
    positions = [rng.randrange(len(sample.completion_token_ids)) for _ in range(rng.randint(1, MAX_ASIDES))]
    token_ids = list(sample.completion_token_ids)
    is_learnt = [True] * len(token_ids)
    for position in sorted(positions, reverse=True):
        aside, is_aside_learnt = _draw_aside(tokenizer, rng)
        token_ids[position:position] = aside
        is_learnt[position:position] = is_aside_learnt
    unlearnt = frozenset(position for position, learnt in enumerate(is_learnt) if not learnt)
    return replace(sample, completion_token_ids=token_ids, unlearnt=unlearnt)


def _draw_aside(tokenizer: Tokenizer, rng: random.Random) -> tuple[list[int], list[bool]]:
    """Token ids of one aside, and which of them can be foreseen."""
    left, right, left_closing = (tokenizer.token_to_id(sign) for sign in ("<", ">", "</"))
    digits = [tokenizer.token_to_id(digit) for digit in "0123456789"]
    signs = {left, right, left_closing, *digits}
    words = [i for i in range(len(SPECIAL_TOKENS), tokenizer.get_vocab_size()) if i not in signs]
    name = rng.choice(words)
    pool = digits if rng.random() < 0.5 else words
    content = rng.choices(pool, k=rng.randint(1, _MAX_CONTENT_TOKENS))
    aside = [left, name, right, *content, left_closing, name, right]
    return aside, [False, False, True, *[False] * len(content), False, True, True]
