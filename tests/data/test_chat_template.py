"""The prompt, character by character, in the real Qwen vocabulary."""

from __future__ import annotations

import pytest
from qwen_vocabulary import qwen_tokenizer
from transformers import PreTrainedTokenizerFast

from relay_lightning.data.chat_template import make_prompt, render_prompt

QWEN3_STYLE = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
"""What Qwen3's own template does with these roles: no system prompt of its own, and a switch that closes thinking."""

QUESTION = "What is $\\frac{1}{2}+3$?\nGive it as a decimal."
EXPECTED = (
    "<|im_start|>user\n"
    "What is $\\frac{1}{2}+3$?\nGive it as a decimal.\n"
    "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n"
)


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=qwen_tokenizer(), chat_template=QWEN3_STYLE)


def test_the_prompt_is_one_user_message_with_the_sentence_and_no_thinking(qwen) -> None:
    assert render_prompt(qwen, QUESTION) == EXPECTED


def test_the_prompts_tokens_spell_its_text_and_frame_it_with_special_tokens(qwen) -> None:
    prompt = make_prompt(qwen, 7, QUESTION, "3.5")
    start, end = (qwen.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert qwen.decode(prompt.token_ids) == prompt.text == EXPECTED
    assert [token for token in prompt.token_ids if token in (start, end)] == [start, end, start]
    assert prompt.token_ids[0] == start
    assert (prompt.prompt_id, prompt.question, prompt.answer) == (7, QUESTION, "3.5")


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=qwen_tokenizer(), name_or_path="some/base")
    with pytest.raises(ValueError, match="'some/base' has no chat template"):
        render_prompt(bare, "q")
