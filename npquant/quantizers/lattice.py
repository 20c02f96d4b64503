"""The spherical lattice: a codebook of integer vectors of one norm, far too large to be stored, and not learned."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.kernels import lattice
from npquant.kernels._pool import run_blocks
from npquant.quantizers.base import Codes, Float, Quantizer

# Beyond it the list of atoms, and the table of vectors of 4 coordinates, grow past all use.
_LARGEST = 400
_ROWS = 1 << 14  # decoded by a thread at a time


class SphericalLattice(Quantizer):
    """Code directions by the nearest integer vector of squared norm ``r2`` (Sablayrolles et al. 2019, section 5).

    The codewords are all integer vectors of d coordinates and squared norm ``r2``, divided by ``sqrt(r2)``: points
    spread evenly over the unit sphere, for vectors that are spread as evenly (see ``Catalyzer``). Nothing is learned
    but d. A code is the number of the codeword, 0 … n − 1, in ``ceil(log2(n) / 8)`` bytes, the lowest first.

    Only the direction of a vector is coded. Its codeword has the largest inner product with it, and is so the nearest
    for any length; of codewords that are equally near, the first atom is taken, and of equally large coordinates the
    first is the largest. A zero coordinate, 0.0 or −0.0, counts as positive: so the zero vector has the code of
    (1e-9, 1e-9, …), which is the first atom as it stands.

    Parameters
    ----------
    d : int, optional
        The dimension of the vectors. With it the codec needs no ``fit``; by default ``fit`` takes it from its data.
    r2 : int
        The squared norm of the integer vectors, 1 to 400.
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    count_ : int
        n, the number of codewords, below 2⁶⁴.
    bits_ : int
        ``ceil(log2(n))``.
    atoms_ : ndarray (n_atoms, d) uint8
        The integer vectors with decreasing coordinates ≥ 0; all codewords are signed permutations of these. In
        lexicographic order of (number of coordinates ≥ 1, number ≥ 2, …).
    n_features_in_ : int
        d, the dimension of the vectors.

    Notes
    -----
    The bits of well-known lattices, and how many atoms they have:

    ===  ==================  ====================  =====================
    d    16 bits: r2, atoms  32 bits: r2, atoms    64 bits: r2, atoms
    ===  ==================  ====================  =====================
    16   4, 2 (14.8 bits)    21, 11 (31.7 bits)    200, 2091 (54.4 bits)
    24   3, 1 (14.0 bits)    10, 4 (31.1 bits)     79, 256 (63.9 bits)
    32   3, 1 (15.3 bits)    8, 3 (31.3 bits)      36, 41 (63.7 bits)
    40   2, 1 (11.6 bits)    7, 2 (31.2 bits)      24, 16 (63.4 bits)
    ===  ==================  ====================  =====================

    ``for_bits`` finds the largest ``r2`` for any d. Encoding is exact: the best atom is found by dynamic
    programming, at the cost of an addition for each of a part of the atoms (see ``kernels.lattice``), with float64 sums
    in one order: a code depends on nothing but its vector.
    Decoding costs some 10 operations a coordinate. There are no look-up tables: codes are decoded to be scored.

    Examples
    --------
    >>> import numpy as np, npquant as nq
    >>> lattice = nq.SphericalLattice(d=24, r2=79)
    >>> lattice.count_, lattice.bits_, lattice.code_size
    (17319684851070915840, 64, 8)
    >>> X = np.random.default_rng(0).standard_normal((100, 24))
    >>> codes = lattice.encode(X)
    >>> cosines = (lattice.decode(codes) * X).sum(axis=1) / np.linalg.norm(X, axis=1)
    >>> bool(cosines.min() > 0.9)
    True
    >>> nq.SphericalLattice.for_bits(24, 32)
    SphericalLattice(d=24, r2=10)
    """

    _shape: tuple[int, int]  # (d, r2) of the last fit

    def __init__(self, d: int | None = None, r2: int = 79, *, threads: int | None = None) -> None:
        self.d = d
        self.r2 = r2
        self.threads = threads

    @staticmethod
    def count(d: int, r2: int) -> int:
        """Return the number of integer vectors of ``d`` coordinates and squared norm ``r2``: any of both, exactly.

        O(d r2^1.5) operations on integers of any size.

        Raises
        ------
        InvalidInputError

        Examples
        --------
        >>> from npquant import SphericalLattice
        >>> SphericalLattice.count(3, 5)  # (±2, ±1, 0) in any order
        24
        """
        d, r2 = _checks.integer(d, "d"), _checks.integer(r2, "r2", low=0)
        return lattice.counts([d], r2)[d][r2]

    @classmethod
    def for_bits(cls, d: int, bits: int, *, threads: int | None = None) -> SphericalLattice:
        """Return the lattice of the largest ``r2`` (to 400) whose codes have at most ``bits`` bits.

        Raises
        ------
        InvalidInputError
            An argument is no integer or out of range (``bits`` from 1 to 64), or no ``r2`` gives so few codewords.
        """
        d, bits = _checks.integer(d, "d"), _checks.integer(bits, "bits", 1, 64)
        fit = [r2 for r2, n in enumerate(lattice.counts([d], _LARGEST)[d]) if r2 and 0 < n <= min(1 << bits, 2**64 - 1)]
        if not fit:
            raise InvalidInputError(f"bits is {bits}: in dimension d = {d} even r2 = 1 has {2 * d} codewords, "
                                    f"{(2 * d - 1).bit_length()} bits. Give more bits, or vectors of fewer dimensions.")
        return cls(d, fit[-1], threads=threads)

    @property
    def count_(self) -> int:
        """The number of codewords."""
        return self._sphere.n

    @property
    def bits_(self) -> int:
        """Bits of a code."""
        return (self._sphere.n - 1).bit_length()

    @property
    def atoms_(self) -> NDArray[np.uint8]:
        """The atoms (n_atoms, d) uint8."""
        return self._atoms.copy()

    @property
    def n_features_in_(self) -> int:
        """The dimension of the vectors."""
        return self._sphere.d

    @n_features_in_.setter
    def n_features_in_(self, d: int) -> None:
        self._shape = d, self._shape[1]  # fit says it once more

    @property
    def code_size(self) -> int:
        """Bytes of one vector."""
        self._check_fitted()
        return (self.bits_ + 7) // 8

    @property
    def _sphere(self) -> lattice.Sphere:
        if "_shape" in self.__dict__:
            return lattice.sphere(*self._shape)
        if self.d is None:
            raise AttributeError("the dimension is known once it was given, or fit was called")
        return _sphere(self.d, self.r2)

    @property
    def _atoms(self) -> NDArray[np.uint8]:
        sphere = self._sphere
        return lattice.atoms(sphere.d, sphere.r2)

    def __sklearn_is_fitted__(self) -> bool:
        return "_shape" in self.__dict__ or self.d is not None

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        NotFittedError
        InvalidInputError
            They are not uint8 (n, code_size), or are the bytes of a number that is not below ``count_``.
        """
        checked = super().check_codes(codes)
        numbers = _numbers(checked)
        if len(numbers) and (largest := int(numbers.max())) >= self.count_:
            raise InvalidInputError(f"codes contain the number {largest} (row {int(numbers.argmax())}), and this "
                                    f"lattice has {self.count_} codewords, 0 … {self.count_ - 1}. Give what encode "
                                    "returned.")
        return checked

    def _fit(self, x: Float) -> None:
        d = x.shape[1]
        if self.d is not None and _checks.integer(self.d, "d") != d:
            raise InvalidInputError(f"X has {d} features, but d = {self.d}. Give vectors of dimension {self.d}, or "
                                    "leave d out.")
        _checks.threads(self.threads)
        self._shape = d, _sphere(d, self.r2).r2

    def _refine(self, x: Float, n_iter: int) -> None:
        """There is nothing to learn."""

    def _encode(self, x: Float) -> Codes:
        s = self._sphere
        numbers = np.empty(len(x), np.uint64)
        lattice.encode(x, s.steps, s.network, s.nodes, s.cum, s.right, s.first, s.starts, s.ranks,
                       s.reach, numbers)
        width = self.code_size
        return np.ascontiguousarray(numbers.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width])

    def _decode(self, codes: Codes) -> Float:
        s = self._sphere
        # A damaged file, mapped without its checksums, must not lead the kernel out of its tables.
        numbers = np.minimum(_numbers(codes), np.uint64(s.n - 1))
        out = np.empty((len(codes), s.d), np.float32)

        def block(begin: int, end: int) -> None:
            lattice.decode(numbers[begin:end], s.r2, s.nodes, s.cum, s.right, s.inverse, s.shift, s.guide, s.leaves,
                           s.first, out[begin:end])
        run_blocks(block, len(codes), _ROWS, _checks.threads(self.threads))
        return out

    def _nearby(self, x: Float, k: int) -> Float:
        """Return the k best among the best signed permutation of each of the k best atoms, and its neighbours.

        These come from it by one exchange of two coordinates whose values follow each other in the atom, where the
        smallest of the one meet the largest of the other, or by turning the sign of the smallest that is not 0. The
        first two are the two nearest of all codewords.
        """
        near = np.empty((len(x), 1, self._near_count(k), x.shape[1]), np.float32)

        def block(begin: int, end: int) -> None:
            near[begin:end, 0] = self._near(x[begin:end], k, near.shape[2])
        rows = max(1, min(1024, (1 << 22) // len(self._atoms)))
        run_blocks(block, len(x), rows, _checks.threads(self.threads))
        return near

    def _near_count(self, k: int) -> int:
        """Return how many candidates there are, at most k: for an atom one, an exchange for each step, and a sign."""
        atoms = self._atoms
        return k if k <= len(atoms) else min(k, int((atoms[:, 1:] < atoms[:, :-1]).sum()) + 2 * len(atoms))

    def _near(self, x: Float, k: int, count: int) -> Float:
        atoms = self._atoms
        n, d = x.shape
        order, sums = lattice.ranked(x)
        largest = np.diff(sums, axis=1)
        scores = np.zeros((n, len(atoms)))
        for v in range(int(atoms.max()), 0, -1):  # as the encoder adds them
            scores = sums[:, (atoms >= v).sum(axis=1)] + scores
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        steps = np.diff(atoms.astype(np.int64), axis=1)[kept]  # (n, atoms, d − 1), ≤ 0
        last = (atoms > 0).sum(axis=1) - 1
        # What an exchange with the next place, or a turned sign, takes from the score; none at all is candidate 0.
        loss = np.full((n, kept.shape[1], d + 1), np.inf)
        loss[:, :, 0] = 0
        gaps = largest[:, :-1] - largest[:, 1:]
        loss[:, :, 1:d] = np.where(steps < 0, gaps[:, None, :] * -steps, np.inf)
        smallest = last[kept]
        loss[:, :, d] = 2 * np.take_along_axis(largest, smallest, axis=1) * atoms[kept, smallest]
        candidates = (np.take_along_axis(scores, kept, axis=1)[:, :, None] - loss).reshape(n, -1)
        best = np.argsort(-candidates, axis=1, kind="stable")[:, :count]
        which, move = np.divmod(best, d + 1)
        atom = np.take_along_axis(kept, which, axis=1)
        z = atoms[atom].astype(np.int64)  # (n, count, d), in the order of the largest
        row, column = np.nonzero((move > 0) & (move < d))
        at = move[row, column] - 1
        z[row, column, at], z[row, column, at + 1] = z[row, column, at + 1], z[row, column, at]
        row, column = np.nonzero(move == d)
        z[row, column, last[atom[row, column]]] *= -1
        placed = np.empty_like(z)
        np.put_along_axis(placed, np.broadcast_to(order[:, None, :], z.shape), z, axis=2)
        placed *= np.where(x < 0, -1, 1)[:, None, :]
        near = (placed / np.sqrt(self._sphere.r2)).astype(np.float32)
        # Sums that differ by less than a rounding may have put another before the nearest.
        nearest = self._nearest(x)[:, None]
        first = np.argmax((near == nearest).all(axis=2), axis=1)
        near[np.arange(n), first] = near[:, 0]
        near[:, :1] = nearest
        return near

    def _get_state(self) -> dict[str, Any]:
        return {"d": self._shape[0], "r2": self._shape[1]} if "_shape" in self.__dict__ else {}

    def _set_state(self, state: dict[str, Any]) -> None:
        if state:
            sphere = _sphere(state["d"], state["r2"])
            self._shape = sphere.d, sphere.r2


def _numbers(codes: Codes) -> NDArray[np.uint64]:
    """Return codes (n, code_size) as numbers (n,)."""
    if codes.shape[1] < 8:
        wide = np.zeros((len(codes), 8), np.uint8)
        wide[:, :codes.shape[1]] = codes
        codes = wide
    return codes.view("<u8")[:, 0].astype(np.uint64, copy=False)


def _sphere(d: Any, r2: Any) -> lattice.Sphere:
    """Return the tables of a sphere that has codewords, and no more than 64 bits can number."""
    return lattice.sphere(_checks.integer(d, "d"), _checks.integer(r2, "r2", 1, _LARGEST))
