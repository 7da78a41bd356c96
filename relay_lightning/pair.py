"""Opens a student and its teacher by name and puts them together as a `Relay`."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from datetime import date
from functools import lru_cache, partial

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from relay_lightning.data.chat_template import encode_prompt, end_token_ids, make_prompt, unknown_turn_end
from relay_lightning.data.notices import announce, notify
from relay_lightning.engine.kv_budget import KVCacheGB, require_sizes
from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.probe import require_decodable
from relay_lightning.models.loading import load_model, load_tokenizer
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.local_teacher import LocalTeacher
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.relay import Relay
from relay_lightning.relay.relay_config import read_relay_config
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Prompt

logger = logging.getLogger(__name__)

NUM_CACHED_PROMPTS = 4096
"""Prompts kept in the vocabulary of a teacher that has another one than its student."""


def load_relay(
    student: str = "tiny:relay-student",
    teacher: str | None = "tiny:teacher",
    *,
    max_num_seqs: int = 64,
    kv_cache_gb: KVCacheGB = "auto",
    block_size: int = 64,
    cuda_graphs: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    student_loading: LoadSettings = DEFAULT,
    teacher_loading: LoadSettings = DEFAULT,
) -> Relay:
    """A relay of the models named `student` and `teacher`.

    A name is a local folder, a hub id, or one of the embedded tiny:student, tiny:warm-student, tiny:relay-student and
    tiny:teacher. The student's `relay_config.json`, if it has one, gives the relay its defaults. teacher None: the
    student alone (`policy="teacher_free"`). max_num_seqs: sequences in flight at most. kv_cache_gb: memory for the keys
    and values of both models, in blocks of block_size tokens. cuda_graphs: on a GPU, whether decode steps are captured.
    device: by default a GPU where there is one. dtype: of both models where their settings name none; by default what
    each model's config names. student_loading, teacher_loading: quantisation and attention.
    Raises as `load_model` and `read_relay_config` do.
    """
    require_sizes(max_num_seqs, kv_cache_gb, block_size)
    if teacher is not None and "://" in teacher:
        raise ValueError(f"teacher={teacher!r} is a URL; a served teacher is not supported, name a model")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = load_tokenizer(student, student_loading)
    config = read_relay_config(student)
    student_model = load_model(student, dtype, student_loading, device).requires_grad_(False)
    teacher_model = teacher_tokenizer = None
    if teacher is not None:
        teacher_model = load_model(teacher, dtype, teacher_loading, device).requires_grad_(False)
        teacher_tokenizer = load_tokenizer(teacher, teacher_loading)
    engine = build_engine(
        student_model,
        tokenizer,
        teacher_model,
        teacher_tokenizer,
        max_num_seqs=max_num_seqs,
        kv_cache_gb=kv_cache_gb,
        block_size=block_size,
        cuda_graphs=cuda_graphs,
    )

    def prompt(prompt_id: int, question: str | Sequence[int]) -> Prompt:
        return _prompt(tokenizer, prompt_id, question)

    return Relay(engine, prompt, config)


def build_engine(
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    teacher: nn.Module | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_num_seqs: int,
    kv_cache_gb: KVCacheGB = "auto",
    block_size: int = 64,
    cuda_graphs: bool = True,
    day: date | None = None,
) -> RelayEngine:
    """An engine over two loaded models, or over a student alone; `tokenizer` is the student's.

    Logs the tokens that end a text. Where the two tokenizers differ, hand-overs go through text, and a warning says so.
    day: what the teacher's chat template takes for today; None asks the clock. Raises ValueError for a model that the
    relay cannot run.
    """
    for model in (student, teacher):
        if model is not None:
            require_decodable(model)
    student_model = local_model(student, tokenizer)
    protocol = CallProtocol().compile(tokenizer, student_model.vocab_size)
    announce(f"The {'model' if teacher is None else 'student'} {_ends(student_model, tokenizer)}")
    teacher_model = bridge = None
    if teacher is not None:
        # A teacher of the same vocabulary reads the student's prompt, and may end as the student's template does.
        own, has_bridge = teacher_tokenizer or tokenizer, needs_bridge(tokenizer, teacher_tokenizer)
        teacher_model = local_model(teacher, own) if has_bridge else local_model(teacher, own, tokenizer)
        announce(f"The teacher {_ends(teacher_model, own)}")
        if has_bridge:
            bridge = _bridge(protocol.vocabulary, own, teacher_model.vocab_size, day)
    return RelayEngine(
        student_model,
        None if teacher_model is None else LocalTeacher(teacher_model),
        protocol,
        bridge=bridge,
        max_num_seqs=max_num_seqs,
        kv_cache_gb=kv_cache_gb,
        block_size=block_size,
        cuda_graphs=cuda_graphs,
    )


def local_model(model: nn.Module, *tokenizers: PreTrainedTokenizerBase) -> LocalModel:
    """A model that ends a text where its own configs, its tokenizer or its chat template end one.

    tokenizers: its own, and another one of the same vocabulary whose chat template it reads. Warns about a chat
    template whose end of a turn is no token.
    """
    for tokenizer in tokenizers:
        if end := unknown_turn_end(tokenizer):
            notify(
                f"The chat template of {tokenizer.name_or_path!r} ends a turn with {end!r}, which is no token of its "
                "vocabulary and ends no completion."
            )
    return LocalModel(model, end_token_ids=[token for each in tokenizers for token in end_token_ids(each)])


def needs_bridge(tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """True if student and teacher have different vocabularies, so that hand-overs go through text."""
    return teacher_tokenizer is not None and teacher_tokenizer.get_vocab() != tokenizer.get_vocab()


def _ends(model: LocalModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Name of a model and the tokens that end its text."""
    tokens = [f"{tokenizer.convert_ids_to_tokens(token)} ({token})" for token in model.eos_token_ids]
    ends = f"stops at {', '.join(tokens)}" if tokens else "has no end token, so completions take their whole budget"
    return f"{tokenizer.name_or_path!r} {ends}."


def _bridge(student: Vocabulary, teacher_tokenizer: PreTrainedTokenizerBase, size: int, day: date | None) -> TextBridge:
    """Between two vocabularies. size: width of the teacher's logits."""
    name = teacher_tokenizer.name_or_path
    logger.warning("The teacher %r has another vocabulary than its student: text is handed over.", name)
    # A prompt is encoded once for all its samples.
    encode = lru_cache(NUM_CACHED_PROMPTS)(partial(encode_prompt, teacher_tokenizer, day=day))
    return TextBridge(student, Vocabulary.of(teacher_tokenizer, size), encode)


def _prompt(tokenizer: PreTrainedTokenizerBase, prompt_id: int, question: str | Sequence[int]) -> Prompt:
    if isinstance(question, str):
        return make_prompt(tokenizer, prompt_id, question)
    try:
        token_ids = tuple(map(operator.index, question))
    except TypeError:
        raise ValueError(f"prompt {prompt_id} must be a text or a list of token ids, not {question!r}") from None
    # The engine refuses ids that no model has; a tokenizer fails on them.
    return Prompt(prompt_id, token_ids, text=tokenizer.decode([id for id in token_ids if 0 <= id < len(tokenizer)]))
