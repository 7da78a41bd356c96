"""load_relay: a student and its teacher by name, of one vocabulary or of two."""

from __future__ import annotations

import logging

from transformers import AutoTokenizer

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.pair import load_relay
from relay_lightning.relay.policies import FixedPolicy

QUESTION = "How many kebu?"
GREEDY = SamplingParams(max_completion_tokens=20, temperature=0.0)


def test_a_teacher_of_another_vocabulary_is_announced_and_handed_text(small_pair, byte_teacher, caplog):
    with caplog.at_level(logging.WARNING):
        relay = load_relay(small_pair.student, byte_teacher, num_slots=2)
    assert "another vocabulary than its student: text is handed over" in caplog.text
    [answer] = relay.generate([QUESTION], GREEDY, policy=FixedPolicy(n=4, every=5))
    assert relay.stats.num_text_handovers >= 2
    student_vocabulary = relay.decoder.protocol.vocabulary
    tokenizer = AutoTokenizer.from_pretrained(small_pair.student)
    assert max(answer.token_ids) < len(tokenizer)
    assert student_vocabulary.text_of(answer.token_ids) == answer.text
    prompt = relay.make_prompt(0, QUESTION)
    teacher_tokens = relay.decoder.bridge.encode_prompt(prompt)
    assert len(teacher_tokens) > len(prompt.token_ids)
    assert AutoTokenizer.from_pretrained(byte_teacher).decode(teacher_tokens) == prompt.text


def test_a_pair_of_one_vocabulary_hands_over_tokens(small_pair, caplog):
    with caplog.at_level(logging.WARNING):
        relay = load_relay(small_pair.student, small_pair.teacher, num_slots=2)
    assert relay.decoder.bridge is None
    assert not caplog.text
    relay.generate([QUESTION], GREEDY, policy=FixedPolicy(n=4, every=5))
    assert relay.stats.num_text_handovers == 0
