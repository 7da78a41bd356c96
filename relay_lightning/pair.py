"""Opens a student and its teacher by name and puts them together as a `Relay`."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from relay_lightning.data.chat_template import encode_prompt, make_prompt
from relay_lightning.engine.local import LocalEngine
from relay_lightning.engine.probe import require_decodable
from relay_lightning.models.loading import load_model, load_tokenizer
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.decoder import RelayDecoder
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.relay import Relay
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Prompt

logger = logging.getLogger(__name__)

NUM_CACHED_PROMPTS = 4096
"""Prompts kept in the vocabulary of a teacher that has another one than its student."""


def load_relay(
    student: str = "tiny:warm-student",
    teacher: str | None = "tiny:teacher",
    *,
    num_slots: int = 64,
    cuda_graphs: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    student_loading: LoadSettings = DEFAULT,
    teacher_loading: LoadSettings = DEFAULT,
) -> Relay:
    """A relay of the models named `student` and `teacher`.

    A name is a local folder, a hub id, or one of the embedded tiny:student, tiny:warm-student and tiny:teacher. teacher
    None: the student alone (`policy="teacher_free"`). num_slots: completions in flight. cuda_graphs: on a GPU, whether
    decode steps are captured. device: by default a GPU where there is one. dtype: of both models where their settings
    name none; by default what each model's config names. student_loading, teacher_loading: quantisation and attention.
    Raises as `load_model` does.
    """
    if teacher is not None and "://" in teacher:
        raise ValueError(f"teacher={teacher!r} is a URL; a served teacher is not supported, name a model")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = load_tokenizer(student, student_loading)
    student_model = load_model(student, dtype, student_loading, device).requires_grad_(False)
    teacher_model = teacher_tokenizer = None
    if teacher is not None:
        teacher_model = load_model(teacher, dtype, teacher_loading, device).requires_grad_(False)
        teacher_tokenizer = load_tokenizer(teacher, teacher_loading)
    decoder = build_decoder(
        student_model, tokenizer, teacher_model, teacher_tokenizer, num_slots=num_slots, cuda_graphs=cuda_graphs
    )

    def prompt(prompt_id: int, question: str | Sequence[int]) -> Prompt:
        return _prompt(tokenizer, prompt_id, question)

    return Relay(decoder, prompt)


def build_decoder(
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    teacher: nn.Module | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    num_slots: int,
    cuda_graphs: bool = True,
) -> RelayDecoder:
    """A decoder over two loaded models, or over a student alone; `tokenizer` is the student's.

    Where the two tokenizers differ, hand-overs go through text, and a warning says so. Raises ValueError for a model
    that the relay cannot run.
    """
    for model in (student, teacher):
        if model is not None:
            require_decodable(model)
    student_engine = LocalEngine(student)
    teacher_engine = LocalEngine(teacher) if teacher is not None else None
    protocol = CallProtocol().compile(tokenizer, student_engine.vocab_size)
    bridge = None
    if teacher_engine is not None and teacher_tokenizer is not None:
        bridge = _bridge(protocol.vocabulary, tokenizer, teacher_tokenizer, teacher_engine.vocab_size)
    return RelayDecoder(
        student_engine, teacher_engine, protocol, bridge=bridge, num_slots=num_slots, cuda_graphs=cuda_graphs
    )


def _bridge(
    student: Vocabulary, tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase, size: int
) -> TextBridge | None:
    """Between two vocabularies; None if they are one. size: width of the teacher's logits."""
    if teacher_tokenizer.get_vocab() == tokenizer.get_vocab():
        return None
    name = teacher_tokenizer.name_or_path
    logger.warning("The teacher %r has another vocabulary than its student: text is handed over.", name)
    # A prompt is encoded once for all its samples.
    encode = lru_cache(NUM_CACHED_PROMPTS)(partial(encode_prompt, teacher_tokenizer))
    return TextBridge(student, Vocabulary.of(teacher_tokenizer, size), encode)


def _prompt(tokenizer: PreTrainedTokenizerBase, prompt_id: int, question: str | Sequence[int]) -> Prompt:
    if isinstance(question, str):
        return make_prompt(tokenizer, prompt_id, question)
    try:
        token_ids = tuple(map(operator.index, question))
    except TypeError:
        raise ValueError(f"prompt {prompt_id} must be a text or a list of token ids, not {question!r}") from None
    # The decoder refuses ids that no model has; a tokenizer fails on them.
    return Prompt(prompt_id, token_ids, text=tokenizer.decode([id for id in token_ids if 0 <= id < len(tokenizer)]))
