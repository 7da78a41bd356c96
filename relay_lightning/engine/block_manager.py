"""BlockManager: which KV blocks are free, shared, or known to hold the beginning of a prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_ROOT = 0
"""Id of the empty prefix."""

_Key = tuple[int, tuple[int, ...]]
"""Id of the prefix before a block, and the tokens in it."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Blocks that hold the beginning of a prompt; each has been retained for the caller."""

    blocks: list[int] = field(default_factory=list)
    """Full blocks, which can be shared as they are."""
    tail: int | None = None
    """A block whose first tokens are the rest of the prompt; it must be copied, because its holder writes behind."""
    num_tail_tokens: int = 0


class BlockManager:
    """Counts the references to each of N KV blocks of P tokens.

    A block without references is free, but keeps what it holds and can be shared again until it is allocated anew:
    blocks of unknown contents are allocated first, then those that were freed longest ago. Prefixes are compared token
    by token, not by hash.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._counts = [0] * num_blocks
        self._free = list(reversed(range(num_blocks)))
        """Free blocks of unknown contents; the last one is allocated next."""
        self._reusable: OrderedDict[int, None] = OrderedDict()
        """Free blocks of known contents, longest free first."""
        self._holder: dict[_Key, int] = {}
        self._key: dict[int, _Key] = {}
        """Key of each block of known contents."""
        self._prefix_id: dict[int, int] = {}
        """Id of the prefix that ends with each full block of known contents."""
        self._last_id = _ROOT

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._reusable)

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Returns `count` blocks with one reference each. Raises ValueError if fewer are free."""
        if count > self.num_free:
            raise ValueError(f"{count} KV blocks are asked for and {self.num_free} are free")
        blocks = [self._take_free() for _ in range(count)]
        for block in blocks:
            self._counts[block] = 1
        return blocks

    def retain(self, blocks: Sequence[int]) -> None:
        """Adds a reference to each block."""
        for block in blocks:
            if self._counts[block] == 0:
                del self._reusable[block]
            self._counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Takes a reference from each block. Raises ValueError for a block that has none."""
        for block in reversed(blocks):  # Later blocks of a prompt are of less use to others.
            if self._counts[block] == 0:
                raise ValueError(f"KV block {block} is free already")
            self._counts[block] -= 1
            if self._counts[block] == 0:
                if block in self._key:
                    self._reusable[block] = None
                else:
                    self._free.append(block)

    def find_prefix(self, token_ids: Sequence[int]) -> Prefix:
        """Returns the blocks that hold the longest known beginning of `token_ids`, retained."""
        blocks, tail, num_tail_tokens, parent = [], None, 0, _ROOT
        for piece in self._pieces(token_ids):
            block = self._holder.get((parent, piece))
            if block is None:
                break
            if len(piece) < self.block_size:
                tail, num_tail_tokens = block, len(piece)
            else:
                blocks.append(block)
                parent = self._prefix_id[block]
        self.retain(blocks if tail is None else [*blocks, tail])
        return Prefix(blocks, tail, num_tail_tokens)

    def register(self, token_ids: Sequence[int], blocks: Sequence[int]) -> list[int]:
        """Makes known that the first tokens of `blocks` are `token_ids`. Returns the blocks that are news."""
        parent, news = _ROOT, []
        for piece, block in zip(self._pieces(token_ids), blocks, strict=False):
            key = (parent, piece)
            holder = self._holder.setdefault(key, block)
            if holder == block and block not in self._key:
                self._key[block] = key
                self._last_id += 1
                self._prefix_id[block] = self._last_id
                news.append(block)
            parent = self._prefix_id[holder]
        return news

    def forget(self) -> None:
        """Drops all knowledge of contents, as when the weights have changed."""
        self._free += self._reusable
        self._reusable.clear()
        self._holder.clear()
        self._key.clear()
        self._prefix_id.clear()

    def _pieces(self, token_ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        size = self.block_size
        return (tuple(token_ids[start : start + size]) for start in range(0, len(token_ids), size))

    def _take_free(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._reusable.popitem(last=False)
        del self._holder[self._key.pop(block)], self._prefix_id[block]
        return block
