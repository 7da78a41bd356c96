import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.tiny.task import ALL_ITEMS, generate_problems
from relay_lightning.tiny.tokenizer import END_OF_TURN, SPECIAL_TOKENS, chat_text, train_tokenizer

TOKENIZER = train_tokenizer()


def tokens_of(text: str) -> list[str]:
    """Text of each token."""
    return [TOKENIZER.decode([token_id], skip_special_tokens=False) for token_id in TOKENIZER.encode(text).ids]


@given(st.text())
def test_any_text_comes_back_exactly(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(alphabet=st.sampled_from("0123456789 a.,*\n<>/")))
def test_every_digit_is_a_token_of_its_own(text):
    tokens = tokens_of(text)
    assert sum(token in "0123456789" and len(token) == 1 for token in tokens) == sum(map(str.isdigit, text))


def test_training_twice_gives_the_same_tokenizer():
    assert TOKENIZER.to_str() == train_tokenizer().to_str()


def test_command_is_spelled_in_ordinary_tokens():
    assert tokens_of("<call>12</call>") == ["<", "call", ">", "1", "2", "</", "call", ">"]
    assert not any("call" in token for token in SPECIAL_TOKENS)


@pytest.mark.parametrize("item", ALL_ITEMS)
def test_item_is_two_tokens_and_its_price_starts_a_token(item):
    assert tokens_of(f"One {item} costs 37.")[:5] == ["One", f" {item[:2]}", item[2:], " costs ", "3"]


def test_solutions_are_about_a_hundred_tokens():
    lengths = [len(TOKENIZER.encode(problem.solution).ids) + 1 for problem in generate_problems("test", 500, seed=0)]
    assert min(lengths) >= 60
    assert max(lengths) <= 250
    assert 70 <= sum(lengths) / len(lengths) <= 120


def test_vocabulary_stays_small():
    assert TOKENIZER.get_vocab_size() <= 512


def test_prompt_ends_with_the_assistants_header_and_only_the_turns_are_special():
    encoding = TOKENIZER.encode(chat_text("Mia buys 2 kebu and 3 lomi. How much does Mia pay?"))
    assert [token for token in encoding.tokens if token in SPECIAL_TOKENS] == [
        "<|im_start|>",
        END_OF_TURN,
        "<|im_start|>",
    ]
    assert tokens_of(encoding_text := chat_text("x"))[-3:] == ["<|im_start|>", "assistant", "\n"], encoding_text
