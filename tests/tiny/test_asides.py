import random

from relay_lightning.tiny.asides import ASIDE_SHARE, MAX_ASIDES, insert_asides
from relay_lightning.tiny.task import generate_problems
from relay_lightning.tiny.tokenizer import SPECIAL_TOKENS, train_tokenizer
from relay_lightning.tiny.training import Sample

TOKENIZER = train_tokenizer()
SAMPLES = [Sample([0], TOKENIZER.encode(problem.solution).ids) for problem in generate_problems("train", 300, seed=0)]
LEFT, RIGHT, LEFT_CLOSING = (TOKENIZER.token_to_id(sign) for sign in ("<", ">", "</"))


def without_asides(token_ids: list[int]) -> list[int]:
    """Solutions hold no `<`, so an aside reaches from one to the token pair behind the next `</`."""
    rest: list[int] = []
    position = 0
    while position < len(token_ids):
        if token_ids[position] == LEFT:
            position = token_ids.index(LEFT_CLOSING, position) + 3
        else:
            rest.append(token_ids[position])
            position += 1
    return rest


def called_samples() -> list[Sample]:
    rng = random.Random(0)
    return [insert_asides(sample, TOKENIZER, rng) for sample in SAMPLES]


def test_what_stands_between_the_asides_is_the_completion():
    for sample, called in zip(SAMPLES, called_samples(), strict=True):
        assert without_asides(called.completion_token_ids) == sample.completion_token_ids
        assert called.prompt_token_ids == sample.prompt_token_ids


def test_share_of_samples_with_asides():
    counts = [called.completion_token_ids.count(LEFT) for called in called_samples()]
    assert set(counts) == set(range(MAX_ASIDES + 1))
    assert abs(sum(count > 0 for count in counts) / len(counts) - ASIDE_SHARE) < 0.1


def test_only_what_can_be_foreseen_is_learnt():
    for called in called_samples():
        token_ids = called.completion_token_ids
        for start in (position for position, token_id in enumerate(token_ids) if token_id == LEFT):
            closing = token_ids.index(LEFT_CLOSING, start)
            assert {start, start + 1, *range(start + 3, closing + 1)} <= called.unlearnt
            assert not {start + 2, closing + 1, closing + 2} & called.unlearnt
            assert token_ids[start + 1] == token_ids[closing + 1]
            assert token_ids[start + 2] == token_ids[closing + 2] == RIGHT
        num_asides = token_ids.count(LEFT)
        num_inserted = len(token_ids) - len(without_asides(token_ids))
        assert len(called.unlearnt) == num_inserted - 3 * num_asides


def test_asides_hold_no_special_token():
    special = {TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS}
    assert not any(special & set(called.completion_token_ids) for called in called_samples())
