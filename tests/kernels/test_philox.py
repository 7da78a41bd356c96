"""The random numbers are Philox4x32-10, bit for bit."""

from __future__ import annotations

import pytest
import torch
from relay_kernels.relay_step.philox import RandomStream, philox_4x32, philox_uniform, signed_seed

# Known answers of the Random123 distribution (kat_vectors, philox 4x32 with 10 rounds).
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_words_are_the_published_ones(counter: str, key: str, answer: str):
    words = [torch.tensor([int(word, 16)]) for word in counter.split()]
    k0, k1 = (int(word, 16) for word in key.split())
    for key_words in ((k0, k1), (torch.tensor([k0]), torch.tensor([k1]))):
        result = philox_4x32((words[0], words[1], words[2], words[3]), key_words)
        assert " ".join(f"{int(word):08x}" for word in result) == answer


def test_uniform_takes_the_high_bits_of_the_first_word():
    zero = torch.tensor([0])
    uniform = philox_uniform(0, zero, zero, zero, RandomStream.STUDENT)
    assert float(uniform) == (0x6627E8D5 >> 8) / 2**24


SEEDS = [0, 1, -1, 2**31, 2**32 - 1, 2**40 + 5, 2**63 - 1, 2**63, 2**64 - 1, 2**64 + 7, -(2**63) - 1]


def test_a_seed_of_each_row_draws_as_that_seed_alone():
    key = (torch.arange(3)[:, None] + 2**40, torch.tensor(2), torch.tensor(6), RandomStream.TEACHER)
    together = philox_uniform(torch.tensor([signed_seed(seed) for seed in SEEDS]), *key)
    assert together.shape == (3, len(SEEDS))
    for column, seed in enumerate(SEEDS):
        alone = philox_uniform(seed, *key)[:, 0]
        assert torch.equal(together[:, column], alone)
        assert torch.equal(philox_uniform(signed_seed(seed), *key)[:, 0], alone)
    assert len(set(together[0].tolist())) == len({seed % 2**64 for seed in SEEDS})


def test_uniform_lies_in_the_half_open_unit_interval_and_is_flat():
    uniform = philox_uniform(7, torch.arange(200)[:, None], torch.tensor(3), torch.arange(500)[None], 0)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    counts = torch.histc(uniform, bins=20, min=0, max=1)
    assert (counts / uniform.numel() - 0.05).abs().max() < 0.003  # four standard deviations


@pytest.mark.parametrize("change", ["seed", "high seed", "prompt_id", "high prompt_id", "sample", "position", "stream"])
def test_uniform_differs_when_any_part_of_the_key_does(change: str):
    def draw(changed: str) -> list[float]:
        seed = 5 + (changed == "seed") + (changed == "high seed") * 2**40
        prompt_id = torch.tensor(9 + (changed == "prompt_id") + (changed == "high prompt_id") * 2**33)
        sample = torch.tensor(int(changed == "sample"))
        positions = torch.arange(8) + int(changed == "position") * 100
        return philox_uniform(seed, prompt_id, sample, positions, int(changed == "stream")).tolist()

    assert not set(draw(change)) & set(draw("nothing"))
