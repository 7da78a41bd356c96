"""The embedded pair's tokenizer: byte-level BPE, trained on the world's own text, saved as a Hugging Face folder.

Any text can be encoded, and decoding gives it back exactly. Digits are tokens of their own; a word swallows one space
before it and, in front of a digit, one after it, so that a number always starts right behind a token. The command tag
has no token of its own: it is spelled `<` `call` `>` digits `</` `call` `>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from relay_lightning.tiny.task import ALL_ITEMS, SYLLABLES, generate_problems

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
SPECIAL_TOKENS = (PADDING, START_OF_TURN, END_OF_TURN)
VOCAB_SIZE_LIMIT = 512
MODEL_MAX_LENGTH = 1024

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML. Variables such as `enable_thinking` are accepted and change nothing: this world has no thinking mode."""

_WORD_PATTERN = (
    r"\p{N}"  # every digit alone
    r"| ?\p{L}+(?: (?=\p{N}))?"  # a word, with the space before it, and the one that parts it from a number
    r"| ?[^\s\p{L}\p{N}]+(?:[\r\n]+|\s(?=\p{N}))?"  # signs, with a line end or the space before a number
    r"|\s+(?!\S)|\s+"
)
_CORPUS_SIZE = 2000
_MIN_PAIR_COUNT = _CORPUS_SIZE // 20
"""A pair of tokens rarer than this is not merged; every word of the templates is more frequent."""


def chat_text(question: str) -> str:
    """The prompt exactly as the chat template writes it for one user message, up to the assistant's header."""
    return f"{START_OF_TURN}user\n{question}\n{INSTRUCTION}{END_OF_TURN}\n{START_OF_TURN}assistant\n"


def train_tokenizer() -> Tokenizer:
    """The tokenizer of this world; the same one at every call."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE_LIMIT,
        min_frequency=_MIN_PAIR_COUNT,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the files that `AutoTokenizer.from_pretrained(folder)` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": PADDING,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": [START_OF_TURN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL_MAX_LENGTH,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _corpus() -> Iterator[str]:
    """Prompts and solutions as the pair reads them, with single syllables for items, and the command tag.

    The syllables alone come first and most often: their merges get the highest rank, so that no word of the templates
    can cut through one, and no item ever becomes a token of its own.
    """
    syllables = " ".join(SYLLABLES) + "\n" + "\n".join(SYLLABLES)
    item_pattern = re.compile("|".join(ALL_ITEMS))
    yield from [syllables] * (4 * _CORPUS_SIZE)
    for problem in generate_problems("train", _CORPUS_SIZE, seed=0):
        for text in (f"user\n{problem.question}\n{INSTRUCTION}", f"assistant\n{problem.solution}", "<call>12</call>"):
            yield item_pattern.sub(lambda match: match.group()[:2], text)
