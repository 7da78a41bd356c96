import re

import torch

from relay_lightning.tiny.task import generate_problems
from relay_lightning.tiny.tokenizer import train_tokenizer
from relay_lightning.tiny.warmup import MAX_COMMANDS, PLAIN_SHARE, insert_commands

TOKENIZER = train_tokenizer()
COMPLETIONS = [TOKENIZER.encode(problem.solution).ids for problem in generate_problems("train", 400, seed=0)]
COMMAND = re.compile(r"<call>([1-9]\d*)</call>")


def called_texts() -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [TOKENIZER.decode(insert_commands(ids, TOKENIZER, generator)) for ids in COMPLETIONS]


def test_text_without_its_commands_is_the_completion():
    originals = [TOKENIZER.decode(ids) for ids in COMPLETIONS]
    assert [COMMAND.sub("", text) for text in called_texts()] == originals


def test_the_plain_share_carries_none_and_the_rest_one_to_three_commands():
    counts = [len(COMMAND.findall(text)) for text in called_texts()]
    assert set(counts) == set(range(MAX_COMMANDS + 1))
    assert abs(counts.count(0) / len(counts) - PLAIN_SHARE) < 0.1  # four standard deviations of 400 draws


def test_requested_tokens_are_what_is_left_at_most():
    for ids in COMPLETIONS:
        called = TOKENIZER.decode(insert_commands(ids, TOKENIZER, torch.Generator().manual_seed(len(ids))))
        for match in COMMAND.finditer(called):
            num_left = len(TOKENIZER.encode(COMMAND.sub("", called[match.end() :])).ids)
            assert int(match[1]) <= num_left + 1  # re-encoding the rest may merge a token at its start


def test_commands_stand_anywhere_in_a_completion():
    generator = torch.Generator().manual_seed(1)
    ids = COMPLETIONS[0]
    tag_start = TOKENIZER.encode("<call>1</call>").ids[0]
    called = [insert_commands(ids, TOKENIZER, generator) for _ in range(2000)]
    firsts = {row.index(tag_start) for row in called if tag_start in row}
    assert min(firsts) == 0
    assert len(firsts) > 0.7 * len(ids)


def test_empty_completion_stays_empty():
    assert insert_commands([], TOKENIZER, torch.Generator()) == []
