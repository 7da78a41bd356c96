"""load_relay: a student and its teacher by name, of one vocabulary or of two."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.pair import load_relay
from relay_lightning.relay.policies import FixedPolicy
from relay_lightning.tiny.tokenizer import END_OF_TURN, SPECIAL_TOKENS, save_tokenizer

QUESTION = "How many kebu?"
GREEDY = SamplingParams(max_completion_tokens=20, temperature=0.0)


@pytest.fixture(scope="module")
def byte_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model whose every token is one byte."""
    folder: Path = tmp_path_factory.mktemp("byte-teacher")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: token for token, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    save_tokenizer(tokenizer, folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    config = Qwen3Config(
        **size,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=512,
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


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
