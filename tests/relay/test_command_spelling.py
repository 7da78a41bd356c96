"""The command that a warm-up inserts is spelled alike in every kind of tokenizer: no space before it, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from relay_lightning.commands.synthesize import sample_rows
from relay_lightning.data.sft import CommandSettings, SelfSample
from relay_lightning.modules.warmup import WarmupModule
from relay_lightning.relay.protocol import CallProtocol, CompiledProtocol
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.tiny.tokenizer import train_tokenizer
from relay_lightning.types import Prompt

TEXT = "so 12 kebu and 3 mena make 15."
CORPUS = [TEXT, "abc def ghi 0123456789 <call>12</call> so, and make."] * 100


@dataclass(frozen=True)
class Kind:
    """A tokenizer and the protocol in its vocabulary."""

    tokenizer: Any
    protocol: CompiledProtocol


def trained_sentencepiece(folder: Path, **options: Any) -> SentencePieceBackend:
    """A SentencePiece model trained here, read piece by piece."""
    with (folder / "pieces.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=file,
            vocab_size=320,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
    return SentencePieceBackend(
        vocab_file=str(folder / "pieces.model"), special_tokens_pattern="none", unk_token="<unk>", eos_token="</s>"
    )


@cache
def _tiny_json() -> str:
    return train_tokenizer().to_str()


def tiny() -> Tokenizer:
    """A copy of the embedded world's tokenizer."""
    return Tokenizer.from_str(_tiny_json())


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace(prepend_scheme: str) -> PreTrainedTokenizerFast:
    """A unigram model whose pre-tokenizer puts a space before the start of a text, or none."""
    words = ["▁", "▁<", "<call", "▁<call>", ">", "</", "call>", "<", "/", *"cal0123456789.", "12", "▁so", "▁kebu"]
    words += ["▁mena", "▁and", "▁make", "so"]
    pieces = [("<unk>", 0.0), *((word, -1.0 / len(word)) for word in words)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return fast(tokenizer)


def llama_like(folder: Path) -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback as Llama 2 and Gemma ship it for the `tokenizers` library."""
    slow = trained_sentencepiece(folder, model_type="bpe")
    pieces = sorted(slow.get_vocab().items(), key=lambda item: item[1])
    ranks = dict(pieces)
    merges = [
        (piece[:cut], piece[cut:])
        for piece, _ in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks and not piece.startswith("<0x")
    ]
    tokenizer = Tokenizer(models.BPE(ranks, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return fast(tokenizer)


def roberta_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts a space before the start of a text."""
    tokenizer = tiny()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return fast(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    """Words with their spaces, and `##` for what continues one."""
    words = ["[UNK]", "so", "kebu", "mena", "and", "make", "12", "3", "15", ".", "<", ">", "/", "call"]
    words += [f"##{piece}" for piece in ("<", ">", "/", "call", *"0123456789.")]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return fast(tokenizer)


KINDS = {
    "byte-level": lambda _: fast(tiny()),
    "byte-level, space first": lambda _: roberta_like(),
    "sentencepiece bpe": lambda folder: trained_sentencepiece(folder, model_type="bpe"),
    "sentencepiece bpe, no space first": lambda folder: trained_sentencepiece(
        folder, model_type="bpe", add_dummy_prefix=False
    ),
    "sentencepiece unigram": lambda folder: trained_sentencepiece(folder, model_type="unigram"),
    "llama": llama_like,
    "metaspace always": lambda _: metaspace("always"),
    "metaspace first": lambda _: metaspace("first"),
    "metaspace never": lambda _: metaspace("never"),
    "wordpiece": lambda _: wordpiece(),
}


@pytest.fixture(scope="module", params=[*KINDS, "tiktoken"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, get_vocabulary: Any) -> Kind:
    """Each kind of tokenizer, compiled once."""
    if request.param == "tiktoken":
        qwen = get_vocabulary("qwen")
        return Kind(fast(qwen.tokenizer), qwen.compiled)
    tokenizer = KINDS[request.param](tmp_path_factory.mktemp("kind"))
    return Kind(tokenizer, CallProtocol().compile(tokenizer))


@pytest.mark.parametrize("n", [1, 12, 9000])
def test_a_spelled_command_is_its_text_and_nothing_else(kind, n) -> None:
    protocol = kind.protocol
    token_ids = protocol.spell(n)
    assert protocol.vocabulary.bytes_of(token_ids).decode() == CallProtocol().format(n)
    [span] = protocol.scan(token_ids)
    assert (span.start, span.stop, span.start_byte, span.n) == (0, len(token_ids), 0, n)


def test_warm_up_and_synthesize_insert_that_spelling_and_the_teacher_reads_the_students_own_text(kind) -> None:
    tokenizer, protocol = kind.tokenizer, kind.protocol
    own = tuple(tokenizer.encode(TEXT, add_special_tokens=False))
    commands = CommandSettings(max_commands=3, max_digit_exponent=0, command_free_share=0.0)
    module = WarmupModule()
    module.tokenizer = tokenizer
    assert module.encode_command(12) == protocol.spell(12)
    samples = [SelfSample((1,), own, None)] * 4
    prompts = [Prompt(index, (1,)) for index in range(4)]
    for row in sample_rows(prompts, samples, commands, tokenizer, protocol, 0):
        assert row["completion_token_ids"] == own
        assert "<call>" in row["completion_with_commands"].replace(" ", "")


def test_a_command_inside_a_completion_leaves_no_space_behind(kind) -> None:
    tokenizer, protocol = kind.tokenizer, kind.protocol
    own = list(tokenizer.encode(TEXT, add_special_tokens=False))
    for position in range(len(own)):
        called = [*own[:position], *protocol.spell(12), *own[position:]]
        spans = protocol.scan(called)
        assert [span.n for span in spans] == [12]
        assert protocol.strip_commands(called, spans) == own


@pytest.mark.parametrize("name", ["sentencepiece bpe", "llama"])
def test_the_spelling_is_the_tokenizers_own_of_the_command_behind_text(name, tmp_path) -> None:
    tokenizer = KINDS[name](tmp_path)
    behind = tokenizer.encode("x<call>12</call>", add_special_tokens=False)
    command = CallProtocol().compile(tokenizer).spell(12)
    assert behind[-len(command) :] == command


def test_a_vocabulary_without_the_tags_characters_is_refused_in_one_sentence() -> None:
    vocabulary = Vocabulary([b"a", b" ", *(digit.encode() for digit in "0123456789")])
    with pytest.raises(ValueError, match=r"cannot spell the command <call>12</call>"):
        CallProtocol().spell(12, vocabulary)


def test_an_added_special_token_of_the_same_text_is_not_used() -> None:
    tokenizer = tiny()
    tokenizer.add_special_tokens(["<call>", "</call>"])
    protocol = CallProtocol().compile(fast(tokenizer))
    assert [span.n for span in protocol.scan(protocol.spell(40))] == [40]
