"""load_relay: a student and its teacher by name, of one vocabulary or of two."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from architectures import HEAD, LONG_WINDOW, build
from transformers import AutoTokenizer

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.pair import load_relay
from relay_lightning.relay.policies import FixedPolicy

QUESTION = "How many kebu?"
GREEDY = SamplingParams(max_completion_tokens=20, temperature=0.0)


def test_a_teacher_of_another_vocabulary_is_announced_and_handed_text(small_pair, byte_teacher, caplog):
    with caplog.at_level(logging.WARNING):
        relay = load_relay(small_pair.student, byte_teacher, max_num_seqs=2)
    assert "another vocabulary than its student: text is handed over" in caplog.text
    [answer] = relay.generate([QUESTION], GREEDY, policy=FixedPolicy(n=4, every=5))
    assert relay.stats.num_text_handovers >= 2
    student_vocabulary = relay.engine.protocol.vocabulary
    tokenizer = AutoTokenizer.from_pretrained(small_pair.student)
    assert max(answer.token_ids) < len(tokenizer)
    assert student_vocabulary.text_of(answer.token_ids) == answer.text
    prompt = relay.make_prompt(0, QUESTION)
    teacher_tokens = relay.engine.bridge.encode_prompt(prompt)
    assert len(teacher_tokens) > len(prompt.token_ids)
    assert AutoTokenizer.from_pretrained(byte_teacher).decode(teacher_tokens) == prompt.text


def test_a_pair_of_one_vocabulary_hands_over_tokens(small_pair, caplog):
    with caplog.at_level(logging.WARNING):
        relay = load_relay(small_pair.student, small_pair.teacher, max_num_seqs=2)
    assert relay.engine.bridge is None
    assert not caplog.text
    relay.generate([QUESTION], GREEDY, policy=FixedPolicy(n=4, every=5))
    assert relay.stats.num_text_handovers == 0


@pytest.mark.parametrize("token", [-1, 10**6])
def test_token_ids_of_a_prompt_are_refused_when_the_models_do_not_have_them(small_pair, token):
    relay = load_relay(small_pair.student, small_pair.teacher, max_num_seqs=2)
    with pytest.raises(ValueError, match=f"prompt 1 holds token id {token}, and the student's vocabulary ends at"):
        relay.generate([[5, 6], [5, token]], GREEDY)
    with pytest.raises(ValueError, match="prompt 0 must be a text or a list of token ids, not \\[5, 'x'\\]"):
        relay.generate([[5, "x"]], GREEDY)
    [answer] = relay.generate([torch.tensor([5, 6])], GREEDY)
    assert answer == relay.generate([[5, 6]], GREEDY)[0]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_model_is_refused_by_name_when_the_relay_cannot_run_it(small_pair, tmp_path, side):
    folder = tmp_path / "capped"
    shutil.copytree(small_pair.student, folder)
    num_ids = len(AutoTokenizer.from_pretrained(small_pair.student))
    capped = HEAD | LONG_WINDOW | {"attn_logit_softcapping": 50.0, "vocab_size": num_ids}
    build("gemma2", capped).save_pretrained(folder)
    names = {"student": small_pair.student, "teacher": small_pair.teacher, side: str(folder)}
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"capped \(Gemma2ForCausalLM\) cannot be decoded by the relay: .*softcap"):
        load_relay(**names)
    assert torch.equal(torch.get_rng_state(), state)
