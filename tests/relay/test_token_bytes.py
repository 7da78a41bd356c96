"""Every family of tokenizers spells its tokens in bytes, as they stand inside a text."""

from __future__ import annotations

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.token_bytes import token_bytes
from relay_lightning.tiny.tokenizer import train_tokenizer

TEXTS = ("Let x <call> 12 </call>. So?\n", "ab  c, 345", "né 中🙂 \t</call>>")


def word_tokenizer(words: list[str], decoder: decoders.Decoder | None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


@pytest.mark.parametrize("name", ["sentencepiece", "tiny", "qwen"])
def test_bytes_of_an_encoded_text_are_the_text(get_vocabulary, name):
    vocabulary = get_vocabulary(name)
    for text in TEXTS:
        token_ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
        spelled = b"".join(vocabulary.compiled.token_bytes[token] for token in token_ids)
        assert spelled.decode().removeprefix(" ") == text


@pytest.mark.parametrize("name", ["characters", "sentencepiece", "metaspace", "tiny", "qwen"])
def test_bytes_agree_with_decoding_behind_another_token(get_vocabulary, name):
    vocabulary = get_vocabulary(name)
    tokenizer = vocabulary.tokenizer
    (anchor,) = tokenizer.encode("x", add_special_tokens=False).ids[-1:]
    before = tokenizer.decode([anchor])
    for token in range(0, tokenizer.get_vocab_size(), 1 + tokenizer.get_vocab_size() // 2000):
        data = vocabulary.compiled.token_bytes[token]
        text = tokenizer.decode([anchor, token], skip_special_tokens=True)[len(before) :]
        if data is None:
            assert text == ""
        elif "\N{REPLACEMENT CHARACTER}" not in text:
            assert data.decode() == text


def test_transformers_tokenizer_spells_as_its_backend_does():
    backend = train_tokenizer()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    assert token_bytes(wrapped) == token_bytes(backend)
    compiled = CallProtocol().compile(wrapped, vocab_size=len(wrapped) + 7)
    assert compiled.vocab_size == len(compiled.token_bytes) == len(wrapped) + 7
    stream = wrapped.encode("so <call>12</call>.")
    assert [span.n for span in compiled.scan(stream)] == [12]
    assert wrapped.decode(compiled.strip_commands(stream, compiled.scan(stream))) == "so ."


def test_added_token_is_text_unless_it_is_special():
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("a b中", special=False)])
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    spelled = token_bytes(tokenizer)
    assert spelled[-3:] == [b"<think>", "a b中".encode(), None]


def test_named_special_token_is_no_text_even_if_it_is_an_ordinary_entry():
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(["?", "a", "END"], decoders.Fuse()), eos_token="END"
    )
    assert token_bytes(wrapped) == [b"?", b"a", None]


def test_ids_beyond_and_between_the_entries_are_no_text():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    assert token_bytes(tokenizer) == [b"a", None, None, b"b"]
    assert CallProtocol().compile(tokenizer, vocab_size=6).token_bytes == [b"a", None, None, b"b", None, None]
    assert CallProtocol().compile(tokenizer, vocab_size=2).token_bytes == [b"a", None]


@pytest.mark.parametrize(
    ("decoder", "words", "expected"),
    [
        (None, ["a", "<call>"], [b" a", b" <call>"]),
        (decoders.WordPiece(), ["a", "##b"], [b" a", b"b"]),
        (decoders.BPEDecoder(), ["a", "b</w>"], [b"a", b"b "]),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), ["<0x3C>", "<0xE2>"], [b"<", b"\xe2"]),
        (decoders.Metaspace("_"), ["_a", "_"], [b" a", b" "]),
        (decoders.ByteLevel(), ["Ġ<", "â", "▁x"], [b" <", b"\xe2", "▁x".encode()]),
    ],
)
def test_decoder_of_each_kind_is_read_token_by_token(decoder, words, expected):
    assert token_bytes(word_tokenizer(words, decoder)) == expected


def test_python_tokenizer_is_asked_to_decode_behind_another_token():
    tokenizer = ByT5Tokenizer()
    spelled = token_bytes(tokenizer)
    assert spelled[3 : 3 + 128] == [bytes([byte]) for byte in range(128)]
    assert spelled[3 + 0xE2] == "\N{REPLACEMENT CHARACTER}".encode(), "a byte that is no text alone breaks a tag"
    assert spelled[:3] == [None] * 3
    stream = tokenizer.encode("é<call>\n30 </call>", add_special_tokens=False)
    assert [span.n for span in CallProtocol().compile(tokenizer).scan(stream)] == [30]


def test_sentencepiece_model_without_a_fast_tokenizer_is_read_piece_by_piece(tmp_path):
    text = "Let x.<call>128</call>. So?<call> 7 </call>"
    with (tmp_path / "pieces.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter([text, "abc def 0123456789"] * 100),
            model_writer=file,
            model_type="bpe",
            vocab_size=320,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    tokenizer = SentencePieceBackend(
        vocab_file=str(tmp_path / "pieces.model"), special_tokens_pattern="none", unk_token="<unk>", eos_token="</s>"
    )
    compiled = CallProtocol().compile(tokenizer)
    stream = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(compiled.token_bytes[token] for token in stream).decode() == " " + text
    spans = compiled.scan(stream)
    assert [span.n for span in spans] == [128, 7]
    stripped = compiled.strip_commands(stream, spans)
    assert b"".join(compiled.token_bytes[token] for token in stripped) == b" Let x.. So?"
    assert not any(piece.startswith("<0x") for piece in tokenizer.convert_ids_to_tokens(stripped))


def test_objects_that_cannot_be_compiled_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="str has no get_vocab"):
        CallProtocol().compile("tokenizer.json")
    with pytest.raises(ValueError, match="is empty"):
        token_bytes(Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="CTC"):
        token_bytes(word_tokenizer(["a"], decoders.CTC()))
