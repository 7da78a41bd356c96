"""An untrained model whose every token is one byte: a teacher of another vocabulary."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3Config, Qwen3ForCausalLM

from relay_lightning.tiny.tokenizer import END_OF_TURN, SPECIAL_TOKENS, save_tokenizer


def save_byte_model(folder: Path) -> None:
    """Writes it to `folder`."""
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
