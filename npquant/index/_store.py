"""What an index holds: codes in blocks of 64 under ids, in lists; each change gives a new whole, the old one stays.

A :class:`Store` never changes, as far as its owner can see: a search works on the one it took while others add and
remove. All the same, adding does not copy: stores that follow each other share arrays with some room at the end
(:class:`_Room`), and a place that is filled later is not live in the stores before. Only the latest store may write
there; from any other, adding copies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import FormatError, InvalidInputError
from npquant.kernels import scan
from npquant.quantizers.base import Codes, first_bits, places_of

Ids = NDArray[np.int64]
Bits = NDArray[np.uint64]
Check = Callable[[Codes], Codes]  # returns codes, or raises InvalidInputError for what no vector has

_SLACK = 16  # of so many blocks, one is room to grow
_HOLES = 40  # of so many vectors, one may be a removed one
_ROWS = 1 << 16  # read, checked or copied at a time

_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a lock held by another thread at fork would never be released in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def writing() -> AbstractContextManager[Any]:
    """Return the lock to hold while a store is read, changed and put back; not while vectors are coded.

    One for all indexes: they hold none of their own, which could be neither copied nor pickled.
    """
    return _lock


class _Room:
    """Arrays of so many blocks; ``stamp`` says which store may write to what it does not use itself."""

    def __init__(self, blocks: Codes, ids: Ids) -> None:
        self.blocks, self.ids, self.stamp = blocks, ids, 0


class Store:
    """Codes by lists, as ``kernels.scan`` reads them; a flat index has one list.

    Attributes
    ----------
    columns : bool
        Whether ``blocks`` are transposed, for look-up tables: see ``quantizers.base.Scorer``.
    blocks : (nb, code_size, 64) uint8, or (nb, 64, code_size) where not ``columns``
    ids : (nb, 64) int64
        Of places that are not live, any.
    live : (nb,) uint64
        Bit i: place i of the block holds a vector.
    count : int
        Vectors held.
    nlist : int

    Notes
    -----
    A *slot* is 64 · block + place. Lists are chains of blocks of one pool; within a list vectors stand in the order of
    addition. Of each list the last block is partly empty, so a list takes memory by 64 codes. Removed vectors leave
    holes; ``tidied`` closes them where they are more than one in 40.
    """

    def __init__(self, columns: bool, blocks: Codes, ids: Ids, live: Bits, owner: NDArray[np.int32] | None,
                 fill: Ids, count: int, room: _Room | None = None, stamp: int = -1,
                 ascending: bool | None = None) -> None:
        self.columns, self.blocks, self.ids, self.live, self.count = columns, blocks, ids, live, count
        self._owner, self._fill = owner, fill  # list of each block, None of one list; used places of its last block
        self._room, self._stamp = room, stamp
        self._ascending = ascending  # whether ids of used places ascend from slot to slot; None: not known yet
        self._order: tuple[Ids, Ids] | None = None
        self._unread: Check | None = None  # what is to be asked about codes of a mapped file when they are read

    @classmethod
    def empty(cls, code_size: int, columns: bool, nlist: int = 1, *, room: int = 0) -> Store:
        """Return a store without vectors, with room for so many blocks."""
        blocks = np.empty((room, code_size, 64) if columns else (room, 64, code_size), np.uint8)
        ids = np.empty((room, 64), np.int64)
        return cls(columns, blocks[:0], ids[:0], np.empty(0, np.uint64),
                   None if nlist == 1 else np.empty(0, np.int32), np.zeros(nlist, np.int64), 0, _Room(blocks, ids), 0,
                   nlist == 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_room": None, "_stamp": -1}  # a copy has arrays of its own, without room

    @property
    def nlist(self) -> int:
        return len(self._fill)

    @property
    def code_size(self) -> int:
        return self.blocks.shape[1 if self.columns else 2]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, with their room."""
        room = self._room or self
        return int(room.blocks.nbytes + room.ids.nbytes + self.live.nbytes + self._fill.nbytes
                   + (0 if self._owner is None else self._owner.nbytes))

    # ------------------------------------------------------------------------------------- reading

    def lists(self) -> tuple[Ids, Ids]:
        """Return (start (nlist + 1,), order (nb,)): list l holds the blocks ``order[start[l]:start[l + 1]]``."""
        if self._order is None:
            if self._owner is None:
                self._order = np.array([0, len(self.blocks)]), np.arange(len(self.blocks))
            else:
                start = np.zeros(self.nlist + 1, np.int64)
                np.cumsum(np.bincount(self._owner, minlength=self.nlist), out=start[1:])
                self._order = start, np.argsort(self._owner, kind="stable")
        return self._order

    def _last(self) -> tuple[Ids, Ids]:
        """Return the lists that have blocks, and the last block of each."""
        if self._owner is None:
            return np.arange(min(1, len(self.blocks))), np.arange(max(0, len(self.blocks) - 1), len(self.blocks))
        start, order = self.lists()
        some = np.flatnonzero(start[1:] > start[:-1])
        return some, order[start[1:][some] - 1]

    def lists_of(self, slots: Ids) -> Ids:
        """Return the lists (r,) of ``slots`` (r,)."""
        if self._owner is None:
            return np.zeros(len(slots), np.int64)
        return self._owner[slots >> 6].astype(np.int64)

    def slots(self) -> Ids:
        """Return the slots of all vectors: list by list, in the order of addition."""
        if self._owner is None:
            return places_of(self.live)
        order = self.lists()[1]
        places = places_of(self.live[order])
        return (order[places >> 6] << 6) + (places & 63)

    def names(self) -> Ids:
        """Return the ids of all vectors, in the order of ``slots`` (a copy)."""
        flat = self.ids.reshape(-1)
        return flat[:self.count].copy() if self._dense() else flat[self.slots()]

    def codes(self, slots: Ids, first: int = 0) -> Codes:
        """Return the codes (r, code_size) at ``slots`` (r,), counted from block ``first``, or raise FormatError."""
        blocks = self.blocks[first:]
        codes = scan.from_blocks(blocks, slots) if self.columns else blocks.reshape(-1, self.code_size)[slots]
        return codes if self._unread is None else _sound(self._unread, codes)

    def look(self, slots: Ids | None = None) -> None:
        """Check the codes at ``slots`` (−1: none), by default all, where nobody has: before ``blocks`` are read there.

        Raises
        ------
        FormatError
            A mapped file holds what no vector has.
        """
        check = self._unread
        if check is not None and slots is not None:
            self.codes(slots[slots >= 0])
        elif check is not None:
            self._check(lambda codes: _sound(check, codes))
            self._unread = None

    def parts(self) -> Iterator[tuple[Codes, Ids, Ids]]:
        """Yield (codes, ids, lists) of all vectors in the order of ``slots``, some thousands at a time."""
        slots = self.slots()
        for start in range(0, len(slots), _ROWS):
            some = slots[start:start + _ROWS]
            yield self.codes(some), self.ids.reshape(-1)[some], self.lists_of(some)

    def find(self, names: Ids) -> Ids:
        """Return the slots of the vectors with the ids ``names`` (r,), and −1 where there is none.

        Where ids ascend, as those do that are given by themselves, O(r log n); else one pass over all ids, which takes
        no memory to speak of.
        """
        if (len(names) == 1 and 0 <= names[0] < self.count and self._dense()
                and self.ids[names[0] >> 6, names[0] & 63] == names[0]):
            return names.copy()  # numbered from 0, as mostly
        flat = self.ids.reshape(-1)[:self._used()]
        slots = np.full(len(names), -1, np.int64)
        if not len(names) or not self.count:
            return slots
        if self.ascends():
            if flat[-1] - flat[0] == len(flat) - 1:  # one after the other
                if self.count == len(flat) and flat[0] <= names.min() and names.max() <= flat[-1]:
                    return names - flat[0]
                at = np.clip(names, flat[0], flat[-1]) - flat[0]
            else:
                at = np.minimum(np.searchsorted(flat, names), len(flat) - 1)
            found = self._is_live(at) & (flat[at] == names)
            slots[found] = at[found]
            return slots
        order = np.argsort(names, kind="stable")
        wanted = names[order]
        bits = max(10, min(24, int(32 * len(names)).bit_length()))
        seen = np.zeros(1 << bits, np.bool_)
        seen[_hashes(names, bits)] = True
        for start in range(0, len(flat), _ROWS):
            part = flat[start:start + _ROWS]
            near = np.flatnonzero(seen[_hashes(part, bits)] if len(names) > 1 else part == names)
            near = near[self._is_live(near + start)]
            first = np.searchsorted(wanted, part[near])
            stop = np.searchsorted(wanted, part[near], side="right")
            if len(wanted) == 1 or (stop - first).max(initial=0) <= 1:
                found = stop > first
                slots[order[first[found]]] = near[found] + start
            else:
                for i in np.flatnonzero(stop > first):  # an id was asked for twice
                    slots[order[first[i]:stop[i]]] = near[i] + start
        return slots

    def allowed(self, slots: Ids | None = None, mask: NDArray[np.bool_] | None = None) -> Bits:
        """Return ``live`` narrowed to ``slots``, or to where ``mask`` (count,) is True in the order of ``slots()``."""
        if mask is not None and self._dense():
            packed = np.packbits(mask, bitorder="little")
            whole = np.zeros(8 * len(self.live), np.uint8)
            whole[:len(packed)] = packed
            return whole.view("<u8").astype(np.uint64, copy=False)
        bits = np.zeros(len(self.live), np.uint64)
        if slots is not None and len(slots) < len(bits):
            np.bitwise_or.at(bits, slots >> 6, _bit(slots))
            return bits
        if mask is not None and self._owner is None:
            flags = np.unpackbits(self.live.astype("<u8", copy=False).view(np.uint8), bitorder="little").view(np.bool_)
            flags[flags] = mask
        else:
            flags = np.zeros(64 * len(bits), np.bool_)
            flags[self.slots()[mask] if slots is None else slots] = True
        return np.packbits(flags, bitorder="little").view("<u8").astype(np.uint64, copy=False)

    def _dense(self) -> bool:
        """Whether vector i is in slot i."""
        return self._owner is None and self.count == self._used()

    def _used(self) -> int:
        """Slots that have been filled, of one list; of several all there are."""
        if self._owner is None and len(self.blocks):
            return 64 * (len(self.blocks) - 1) + int(self._fill[0])
        return 64 * len(self.blocks)

    def _is_live(self, slots: Ids) -> NDArray[np.bool_]:
        return (self.live[slots >> 6] & _bit(slots)) != 0

    def ascends(self) -> bool:
        """Whether ids ascend from slot to slot, so that ``find`` is fast."""
        if self._ascending is None:
            flat = self.ids.reshape(-1)[:self._used()]
            self._ascending = self._owner is None and all(
                bool((flat[i + 1:i + 1 + _ROWS] > flat[i:i + _ROWS][:len(flat) - i - 1]).all())
                for i in range(0, len(flat) - 1, _ROWS))
        return self._ascending

    # ------------------------------------------------------------------------------------- changing

    def added(self, codes: Codes, names: Ids, lists: Ids | None = None) -> Store:
        """Return a store with ``codes`` (n, code_size) as well, under ids that are not in it, at the ends of lists.

        Cost: O(n) when there is room; one copy of everything each time that it grew by a sixteenth; the mask of what
        is live, an eighth of a byte a vector, is copied every time.
        """
        n, before = len(codes), len(self.blocks)
        if not n:
            return self
        self.look()  # all of a mapped file is copied now
        if self._owner is None:
            used = self._used()
            total, owner = -(-(used + n) // 64), None
            fill = np.array([used + n - 64 * (total - 1)])
        else:
            slots, owner, fill = self._places(self._owner, np.zeros(n, np.int64) if lists is None else lists)
            total = len(owner)
        with _lock:
            room, stamp = self._room, self._stamp
            if room is None or room.stamp != stamp or len(room.blocks) < total:
                capacity = total + (total // _SLACK if before else 0)
                blocks = np.empty((capacity, *self.blocks.shape[1:]), np.uint8)
                ids = np.empty((capacity, 64), np.int64)
                blocks[:before], ids[:before] = self.blocks, self.ids
                room, stamp = _Room(blocks, ids), 0
            room.stamp = stamp = stamp + 1  # nobody else writes there now; what fails from here on costs a copy later
        live = np.zeros(total, np.uint64)
        live[:before] = self.live
        flat = room.ids.reshape(-1)
        if owner is None:
            room.blocks[max(before, total - 1):total], room.ids[max(before, total - 1):total] = 0, -1
            _write(room.blocks, self.columns, used, codes)
            flat[used:used + n] = names
            new = first_bits(used + n)[used // 64:]
            new[0] &= ~np.uint64(2**(used % 64) - 1)
            live[used // 64:] |= new
            ascending = self._ascending and bool((names[1:] > names[:-1]).all()) and bool(
                used == 0 or flat[used - 1] < names[0])
        else:
            room.blocks[before:total], room.ids[before:total] = 0, -1
            if self.columns:
                room.blocks[slots >> 6, :, slots & 63] = codes
            else:
                room.blocks.reshape(-1, self.code_size)[slots] = codes
            flat[slots] = names
            np.bitwise_or.at(live, slots >> 6, _bit(slots))
            ascending = False
        return Store(self.columns, room.blocks[:total], room.ids[:total], live, owner, fill, self.count + n, room,
                     stamp, ascending)

    def _places(self, owner: NDArray[np.int32], lists: Ids) -> tuple[Ids, NDArray[np.int32], Ids]:
        """Return the slots (n,) for vectors of ``lists`` (n,), and the owner of all blocks and the fill then."""
        counts = np.bincount(lists, minlength=self.nlist)
        left = -self._fill % 64
        blocks = -(-np.maximum(counts - left, 0) // 64)
        first = len(self.blocks) + np.cumsum(blocks) - blocks
        last = np.zeros(self.nlist, np.int64)
        some, blocks_of_some = self._last()
        last[some] = blocks_of_some
        by_list = np.argsort(lists, kind="stable")
        mine = lists[by_list]
        rank = np.arange(len(lists)) - np.repeat(np.cumsum(counts) - counts, counts)
        over = rank - left[mine]
        slots = np.empty(len(lists), np.int64)
        slots[by_list] = np.where(over < 0, 64 * last[mine] + self._fill[mine] + rank, 64 * first[mine] + over)
        owner = np.concatenate([owner, np.repeat(np.arange(self.nlist, dtype=np.int32), blocks)])
        fill = np.where(counts == 0, self._fill, (self._fill + counts - 1) % 64 + 1)
        return slots, owner, fill

    def without(self, slots: Ids) -> Store:
        """Return a store without the vectors at ``slots``, which are distinct and hold some."""
        live = self.live.copy()
        np.bitwise_and.at(live, slots >> 6, ~_bit(slots))
        store = Store(self.columns, self.blocks, self.ids, live, self._owner, self._fill, self.count - len(slots),
                      self._room, self._stamp, self._ascending)
        store._unread = self._unread
        return store

    def tidied(self) -> Store:
        """Return ``compacted()`` where removed vectors take more than a fortieth, else this."""
        holes = self._used() - self.count if self._owner is None else int(
            64 * len(self.blocks) - (-self._fill % 64).sum()) - self.count
        return self.compacted() if _HOLES * holes > self.count and holes > 64 else self

    def compacted(self) -> Store:
        """Return a store of the same vectors in the same order, without holes and room, in arrays of its own."""
        counts = np.array([self.count])
        if self._owner is not None:
            counts = np.bincount(self.lists_of(self.slots()), minlength=self.nlist)
        store = Store.empty(self.code_size, self.columns, self.nlist, room=int((-(-counts // 64)).sum()))
        for codes, names, lists in self.parts():
            store = store.added(codes, names, lists)
        return store

    # ------------------------------------------------------------------------------------- files

    def state(self) -> dict[str, Any]:
        """Return the arrays to save."""
        return {"vectors": self.count, "blocks": self.blocks, "ids": self.ids, "live": self.live, "owner": self._owner}

    @classmethod
    def from_state(cls, state: dict[str, Any], code_size: int, columns: bool, nlist: int = 1) -> Store:
        """Return the store of what ``state`` gave.

        Of arrays that may be written to, all is checked; of a mapped file what costs no reading of it.

        Raises
        ------
        InvalidInputError
            The arrays do not fit together, or ids repeat.
        """
        blocks, ids, live, owner = (state[name] for name in ("blocks", "ids", "live", "owner"))
        nb = len(blocks) if isinstance(blocks, np.ndarray) and blocks.ndim else 0
        wanted: list[tuple[str, Any, tuple[int, ...], Any]] = [
            ("blocks", blocks, (nb, code_size, 64) if columns else (nb, 64, code_size), np.uint8),
            ("ids", ids, (nb, 64), np.int64), ("live", live, (nb,), np.uint64)]
        if nlist > 1:
            wanted.append(("owner", owner, (nb,), np.int32))
        for name, array, shape, dtype in wanted:
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
                raise InvalidInputError(f"{name} are not {np.dtype(dtype)} of shape {shape}.")
        if nlist == 1 and owner is not None:
            raise InvalidInputError("one list, and blocks have owners.")
        if nlist > 1 and nb and not 0 <= owner.min() <= owner.max() < nlist:
            raise InvalidInputError(f"blocks belong to lists {owner.min()} to {owner.max()}; there are {nlist}.")
        store = cls(columns, blocks, ids, live, owner, np.zeros(nlist, np.int64), _ones(live))
        if store.count != state["vectors"]:
            raise InvalidInputError(f"{store.count} vectors, and there should be {state['vectors']}.")
        some, last = store._last()  # places after the last live one can be filled again: no store knows them
        bits = np.unpackbits(live[last].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        store._fill[some] = np.where(bits.any(axis=1), 64 - np.argmax(bits[:, ::-1], axis=1), 0)
        if not store.mapped:
            names = store.names()
            if names.size and names.min() < 0:
                raise InvalidInputError(f"an id is {names.min()}.")
            names.sort()
            if (names[1:] == names[:-1]).any():
                raise InvalidInputError("an id is there twice.")
        return store

    @property
    def mapped(self) -> bool:
        """Whether the arrays are those of a mapped file."""
        return not self.ids.flags.writeable

    def check_codes(self, check: Check) -> None:
        """Have all codes checked, now or, of a mapped file, when they are read; ``check`` raises InvalidInputError."""
        if self.mapped:
            self._unread = check
        else:
            self._check(check)

    def _check(self, check: Check) -> None:
        # What the scan reads must fit its tables at dead places as well; what is decoded are live ones.
        for start in range(0, len(self.blocks), _ROWS // 64):
            live = self.live[start:start + _ROWS // 64]
            blocks = self.blocks[start:start + len(live)]
            check(scan.from_blocks(blocks, np.arange(64 * len(live))) if self.columns
                  else blocks.reshape(-1, self.code_size)[places_of(live)])


def _sound(check: Check, codes: Codes) -> Codes:
    try:
        return check(codes)
    except InvalidInputError as error:
        what = str(error).removesuffix(" Give what encode returned.")
        raise FormatError(f"the file that this index is mapped from is damaged: {what} Copy or download it "
                          "again.") from None


def _bit(slots: Ids) -> Bits:
    return np.uint64(1) << (slots & 63).astype(np.uint64)


def _ones(bits: Bits) -> int:
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(bits).sum(dtype=np.int64))
    return int(np.unpackbits(bits.view(np.uint8)).sum(dtype=np.int64))


def _hashes(names: Ids, bits: int) -> Bits:
    return (names.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)


def _write(blocks: Codes, columns: bool, slot: int, codes: Codes) -> None:
    """Write ``codes`` (n, s) to the places from ``slot`` on."""
    if not columns:
        blocks.reshape(-1, codes.shape[1])[slot:slot + len(codes)] = codes
        return
    head = min(-slot % 64, len(codes))
    if head:
        blocks[slot // 64, :, slot % 64:slot % 64 + head] = codes[:head].T
        slot, codes = slot + head, codes[head:]
    if len(codes):
        whole = len(codes) // 64
        blocks[slot // 64:slot // 64 + whole] = codes[:64 * whole].reshape(whole, 64, codes.shape[1]).transpose(
            0, 2, 1)
        if len(codes) % 64:
            blocks[slot // 64 + whole, :, :len(codes) % 64] = codes[64 * whole:].T
