"""What is special to the spherical lattice; what holds for every codec is in laws.py."""

import itertools
import math
import pickle

import numpy as np
import pytest
import strategies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, THREADS, jit_mode, same

from npquant import persist
from npquant.errors import InvalidInputError, NotFittedError
from npquant.kernels import lattice as kernels
from npquant.quantizers.lattice import SphericalLattice

core = pytest.mark.core
MODES = "01" if HAVE_NUMBA else "0"

# (d, r2), atoms, codewords where they are given exactly, bits
TABLE = [((16, 4), 2, None, 14.8), ((16, 21), 11, None, 31.7), ((16, 200), 2091, None, 54.4),
         ((24, 3), 1, 16192, 14.0), ((24, 10), 4, 2319457632, 31.1), ((24, 79), 256, 17319684851070915840, 63.91),
         ((32, 3), 1, 39680, 15.3), ((32, 8), 3, 2724906944, 31.3), ((32, 36), 41, 15221194949728018112, 63.72),
         ((40, 2), 1, 3120, 11.6), ((40, 7), 2, 2392224640, 31.2), ((40, 24), 16, 12076325113647462720, 63.39)]
LARGE = [(16, 200), (24, 79), (32, 36), (40, 24)]


def enumerated(d, r2):
    """All integer vectors of d coordinates and squared norm r2, by trying everything."""
    reach = math.isqrt(r2)
    return np.array([z for z in itertools.product(range(-reach, reach + 1), repeat=d)
                     if sum(a * a for a in z) == r2], np.int64).reshape(-1, d)


def integers(lattice, decoded):
    """The integer vectors that decoded ones are, and that they are those divided by their norm."""
    z = np.rint(decoded.astype(np.float64) * np.sqrt(lattice.r2)).astype(np.int64)
    same(decoded, (z / np.sqrt(lattice.r2)).astype(np.float32), "decoded and the rounded quotient")
    assert (np.square(z).sum(axis=1) == lattice.r2).all()
    return z


def to_codes(lattice, numbers):
    size = lattice.code_size
    rows = [list(int(number).to_bytes(8, "little")) for number in numbers]
    assert not any(any(row[size:]) for row in rows)
    return np.array([row[:size] for row in rows], np.uint8).reshape(len(rows), size)


def to_numbers(codes):
    return [int.from_bytes(bytes(row), "little") for row in codes.tolist()]


def by_atoms(x, atoms):
    """The largest inner product of each row with a signed permutation of an atom, in exact arithmetic."""
    ordered = [sorted((abs(float(a)) for a in row), reverse=True) for row in x]
    return [max(math.fsum(a * int(b) for a, b in zip(row, atom)) for atom in atoms) for row in ordered]


# ------------------------------------------------------------------------------------- counting


@core
@pytest.mark.parametrize(("shape", "atoms", "count", "bits"), TABLE)
def test_the_published_table(shape, atoms, count, bits):
    lattice = SphericalLattice(*shape)
    assert len(lattice.atoms_) == atoms
    assert count is None or lattice.count_ == count
    assert lattice.count_ == SphericalLattice.count(*shape)
    assert abs(math.log2(lattice.count_) - bits) < 0.06
    assert lattice.bits_ == math.ceil(math.log2(lattice.count_))
    assert lattice.code_size == -(-lattice.bits_ // 8)


@core
@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 16))
def test_counts_are_those_of_an_enumeration(d, r2):
    every = enumerated(d, r2)
    assert SphericalLattice.count(d, r2) == len(every)
    if len(every):
        atoms = SphericalLattice(d, r2).atoms_
        assert atoms.dtype == np.uint8
        wanted = np.unique(-np.sort(-np.abs(every), axis=1), axis=0)
        same(np.unique(atoms, axis=0).astype(np.int64), wanted, "atoms and those of the enumeration")
        levels = [[int((atom >= v).sum()) for v in range(1, 6)] for atom in atoms]
        assert levels == sorted(levels)
        # the count again, atom by atom
        total = sum(math.factorial(d) // math.prod(math.factorial(n) for n in np.unique(a, return_counts=True)[1])
                    * 2 ** int((a > 0).sum()) for a in atoms)
        assert total == len(every)


@core
def test_counts_of_any_size():
    assert SphericalLattice.count(1, 0) == SphericalLattice.count(7, 0) == 1
    assert SphericalLattice.count(2, 3) == 0
    assert SphericalLattice.count(8, 645) > 2**32 > SphericalLattice.count(8, 600)
    assert SphericalLattice.count(24, 80) > 2**64
    assert SphericalLattice.count(8, 25) == 16 * (5**6 + 5**3 + 1)  # Jacobi: 16 Σ (−1)^(n + d) d³ over divisors d
    assert SphericalLattice.count(200, 100) > 2**300


@core
@pytest.mark.parametrize(("d", "r2s"), [(16, (4, 21, 400)), (24, (3, 10, 79)), (32, (3, 8, 36)), (40, (2, 7, 24))])
def test_lattices_for_bits(d, r2s):
    for bits, r2 in zip((16, 32, 64), r2s):
        lattice = SphericalLattice.for_bits(d, bits, threads=1)
        assert (lattice.d, lattice.r2, lattice.threads) == (d, r2, 1)
        assert r2 == 400 or SphericalLattice.count(d, r2) <= 2**bits < SphericalLattice.count(d, r2 + 1)
    assert SphericalLattice.for_bits(1, 1).count_ == 2
    assert SphericalLattice.for_bits(4, 3).r2 == 1


@core
def test_what_cannot_be_is_told():
    x = np.ones((3, 24))
    for lattice, words in ((SphericalLattice(24, 80), "at most 64 bits.*for_bits"),
                           (SphericalLattice(3, 7), "No integer"), (SphericalLattice(24, 0), "r2 is 0"),
                           (SphericalLattice(24, 401), "from 1 to 400"), (SphericalLattice(0, 7), "d is 0"),
                           (SphericalLattice(24, 7.0), "r2 must be an integer"),
                           (SphericalLattice("24", 7), "d must be an integer"), (SphericalLattice(r2=80), "64 bits")):
        with pytest.raises(InvalidInputError, match=words):
            lattice.fit(x) if lattice.d in (24, None) else lattice.encode(x)
    with pytest.raises(InvalidInputError, match="24 features, but d = 23"):
        SphericalLattice(23, 7).fit(x)
    for arguments in ((0, 8), (8, 0), (8, 65), (8, 8.0), (8, 3)):
        with pytest.raises(InvalidInputError, match=r"d |bits "):
            SphericalLattice.for_bits(*arguments)
    for arguments in ((0, 8), (8, -1), (2.0, 2)):
        with pytest.raises(InvalidInputError, match=r"d |r2 "):
            SphericalLattice.count(*arguments)


# ------------------------------------------------------------------------------------- numbers


@core
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 4), (2, 25), (3, 9), (4, 6), (5, 5), (6, 4), (7, 4), (8, 3), (9, 3), (12, 3),
                                   (13, 2), (17, 2), (21, 2)])
def test_numbers_of_a_whole_codebook(shape, mode):
    with jit_mode(mode):
        lattice = SphericalLattice(*shape)
        numbers = range(lattice.count_)
        codes = to_codes(lattice, numbers)
        decoded = lattice.decode(codes)
        z = integers(lattice, decoded)
        assert len(np.unique(z, axis=0)) == lattice.count_
        same(lattice.encode(decoded), codes, "encode(decode(codes)) and codes")
        if shape[0] <= 5:
            same(np.unique(z, axis=0), enumerated(*shape), "all codewords and the enumeration")


def draws(lattice, rng, n):
    """Random numbers below the count, the smallest and largest ones, and some on both sides of 2**63."""
    count = lattice.count_
    found = [int.from_bytes(rng.bytes(16), "little") % count for _ in range(n)]
    corners = [0, 1, count - 2, count - 1, count // 2, *(2**63 + i for i in range(-2, 3))]
    return [*found, *(c for c in corners if 0 <= c < count)]


@core
@pytest.mark.parametrize("shape", [*LARGE, (20, 100), (4, 400), (26, 30), (100, 9)])
def test_numbers_of_members_of_large_codebooks(shape):
    lattice = SphericalLattice(*shape)
    numbers = draws(lattice, np.random.default_rng(1), 800)
    assert shape not in LARGE[1:] or sum(number > 2**63 for number in numbers) > 100
    codes = to_codes(lattice, numbers)
    decoded = []
    for mode in MODES:
        with jit_mode(mode):
            decoded.append(lattice.decode(codes))
            same(lattice.encode(decoded[-1]), codes, f"encode(decode(codes)) and codes, NPQUANT_JIT={mode}")
    same(decoded[-1], decoded[0], "compiled and plain")
    z = integers(lattice, decoded[0])
    assert len(np.unique(z, axis=0)) == len(set(numbers))
    assert np.abs(np.linalg.norm(decoded[0].astype(float), axis=1) - 1).max() < 1e-6


@core
def test_all_signed_permutations_have_numbers():
    lattice, rng = SphericalLattice(24, 79), np.random.default_rng(2)
    z = lattice.atoms_.astype(np.int64)
    z = rng.permuted(np.repeat(z, 5, axis=0), axis=1) * rng.choice([-1, 1], (5 * 256, 24))
    codes = lattice.encode(z)
    same(integers(lattice, lattice.decode(codes)), z, "signed permutations of all atoms")
    assert max(to_numbers(codes)) < lattice.count_


@core
@pytest.mark.parametrize("shape", [(3, 5), (24, 10), (24, 79)])
def test_codes_that_are_no_numbers_are_refused(shape):
    lattice = SphericalLattice(*shape)
    size = lattice.code_size
    good = to_codes(lattice, [0, lattice.count_ - 1])
    for number in (lattice.count_, 256**size - 1):
        bad = np.frombuffer(number.to_bytes(size, "little"), np.uint8)
        with pytest.raises(InvalidInputError, match=rf"the number {number} \(row 2\).*{lattice.count_} codewords"):
            lattice.decode(np.concatenate([good, bad[None]]))
    assert len(lattice.decode(good)) == 2
    for mode in MODES:  # where nobody checks, as in a mapped file, nothing worse than a wrong vector comes of it
        with jit_mode(mode):
            same(lattice._decode(bad[None]), lattice.decode(good[1:]), "an unchecked code and the last one")


# ------------------------------------------------------------------------------------- the nearest


@core
@settings(max_examples=60)
@given(st.sampled_from([(1, 4), (2, 5), (2, 25), (3, 9), (3, 14), (4, 6), (4, 7), (5, 5), (5, 12)]),
       st.sampled_from(strategies.EXTREME_KINDS), strategies.seeds)
def test_the_nearest_is_brute_force(shape, kind, seed):
    lattice, every = SphericalLattice(*shape), enumerated(*shape)
    x = strategies.make_vectors(kind, 20, shape[0], seed)
    z = integers(lattice, lattice.nearest(x))
    wide = x.astype(np.longdouble)
    best = (wide @ every.T.astype(np.longdouble)).max(axis=1)
    found = (wide * z).sum(axis=1)
    assert (found >= best - 1e-14 * np.abs(best)).all()
    distance = np.square(x[:, None].astype(np.longdouble) - every / np.sqrt(np.longdouble(shape[1]))).sum(axis=2)
    mine = np.square(x - z / np.sqrt(np.longdouble(shape[1]))).sum(axis=1)  # for any length of x
    assert (mine <= distance.min(axis=1) * (1 + 1e-14)).all()


@core
@pytest.mark.parametrize("shape", LARGE)
def test_the_nearest_in_large_codebooks(shape):
    lattice = SphericalLattice(*shape)
    x = np.random.default_rng(3).standard_normal((30, shape[0])).astype(np.float32)
    x[:10] = np.round(x[:10])
    z = integers(lattice, lattice.nearest(x))
    found = [math.fsum(float(a) * int(b) for a, b in zip(*rows)) for rows in zip(x, z)]
    np.testing.assert_allclose(found, by_atoms(x, lattice.atoms_), rtol=1e-14)


@core
@settings(max_examples=40)
@given(st.sampled_from([(1, 9), (3, 9), (6, 13), (10, 4), (24, 10), (24, 79)]),
       st.sampled_from(strategies.EXTREME_KINDS), st.integers(0, 150), strategies.seeds)
@example((24, 79), "negative zeros", 130, 0)
def test_compiled_is_the_twin(shape, kind, n, seed):
    if not HAVE_NUMBA:
        pytest.skip("numba is not installed")
    x = strategies.make_vectors(kind, n, shape[0], seed)
    results = []
    for mode in "01":
        with jit_mode(mode):
            lattice = SphericalLattice(*shape)
            codes = lattice.encode(x)
            results.append((codes, lattice.decode(codes)))
    same(results[1], results[0], "compiled and plain")
    assert (np.abs(np.linalg.norm(results[0][1], axis=1) - 1) < 1e-6).all()


@core
@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_on_the_sphere(mode):
    with jit_mode(mode):
        lattice = SphericalLattice(8, 21)
        x = np.zeros((4, 8), np.float32)
        x[1], x[2, 3], x[3, 3:5] = -0.0, -2.0, (-0.0, 1e-30)
        z = integers(lattice, lattice.nearest(x))
    first = lattice.atoms_[0]
    assert z[0].tolist() == z[1].tolist() == first.tolist()
    assert first.tolist() == [4, 2, 1, 0, 0, 0, 0, 0]  # the fewest coordinates that are not 0; then the flattest
    assert z[2].tolist() == [2, 1, 0, -4, 0, 0, 0, 0]
    assert z[3].tolist() == [2, 1, 0, 0, 4, 0, 0, 0]


@core
def test_only_the_direction_counts():
    lattice = SphericalLattice(24, 79)
    x = np.random.default_rng(4).standard_normal((70, 24)).astype(np.float32)
    codes = lattice.encode(x)
    for scale in (2.0**-120, 2.0**-20, 4.0, 2.0**50):  # powers of two: no rounding
        same(lattice.encode(x * np.float32(scale)), codes, f"codes of vectors {scale} times as long")
    turned = to_numbers(lattice.encode(-x))
    assert set(turned).isdisjoint(to_numbers(codes))
    same(lattice.nearest(-x), 0 - lattice.nearest(x), "the nearest of the opposite, and the opposite of the nearest")
    order = np.random.default_rng(5).permutation(24)
    same(lattice.nearest(x[:, order]), np.ascontiguousarray(lattice.nearest(x)[:, order]), "permuted coordinates")


@core
def test_batches_and_threads_are_invisible():
    x = np.random.default_rng(6).standard_normal((40_001, 24)).astype(np.float32)
    codes = SphericalLattice(24, 79, threads=1).encode(x)
    decoded = SphericalLattice(24, 79, threads=1).decode(codes)
    for threads in THREADS:
        lattice = SphericalLattice(24, 79, threads=threads)
        same(lattice.encode(x), codes, f"codes of {threads} threads")
        same(lattice.decode(codes), decoded, f"vectors of {threads} threads")
    for i in (0, 63, 64, 16_384, 40_000):
        same(lattice.encode(x[i]), codes[i:i + 1], f"the code of row {i} alone")
        same(lattice.decode(codes[i:i + 1]), decoded[i:i + 1], f"row {i} alone")


# ------------------------------------------------------------------------------------- nearby


@core
@settings(max_examples=40)
@given(st.sampled_from([(1, 4), (2, 25), (3, 9), (4, 6), (4, 10), (5, 5)]), st.integers(1, 40),
       st.sampled_from(strategies.KINDS), strategies.seeds)
def test_nearby(shape, k, kind, seed):
    lattice, every = SphericalLattice(*shape), enumerated(*shape)
    x = strategies.make_vectors(kind, 9, shape[0], seed)
    near = lattice.nearby(x, k)
    n, blocks, count, d = near.shape
    assert (n, blocks, d) == (9, 1, shape[0])
    assert near.dtype == np.float32
    assert min(k, 2) <= count <= k
    same(near[:, 0, 0].copy(), lattice.nearest(x), "the first and the nearest")
    best = -np.sort(-(x.astype(np.longdouble) @ every.T), axis=1)
    for row, vectors, scores in zip(x.astype(np.longdouble), near[:, 0], best):
        z = integers(lattice, vectors)
        assert len(np.unique(z, axis=0)) == count
        mine = z @ row
        slack = 1e-13 * max(1e-300, np.abs(scores).max())
        assert (np.diff(mine) <= slack).all()
        assert (np.abs(mine[:2] - scores[:count][:2]) <= slack).all(), "the two nearest"


@core
def test_nearby_in_a_large_codebook():
    lattice = SphericalLattice(24, 79)
    x = np.random.default_rng(7).standard_normal((2000, 24)).astype(np.float32)
    near = lattice.nearby(x, 8)
    assert near.shape == (2000, 1, 8, 24)
    for vectors in near[:50, 0]:
        assert len(np.unique(integers(lattice, vectors), axis=0)) == 8
    scores = (near[:, 0] * x[:, None]).sum(axis=2)
    assert (np.diff(scores, axis=1) <= 1e-5).all()
    same(near[1500:1503], lattice.nearby(x[1500:1503], 8), "a batch of three")
    assert SphericalLattice(24, 3).nearby(x[:2], 9).shape == (2, 1, 3, 24)  # one atom: itself, an exchange, a sign


@core
def test_the_first_of_nearby_is_the_nearest_even_where_sums_round_alike():
    lattice, rng = SphericalLattice(8, 60), np.random.default_rng(3)
    x = rng.uniform(0, 64, (1000, 8)).astype(np.float32)  # below the last bit of the sums of the first three
    x[:, :3] = rng.uniform(1e16, 1e17, (1000, 1)).astype(np.float32) * np.float32(0.4) * rng.choice(
        np.array([1, 1, 0.5, 2], np.float32), (1000, 3))
    near = lattice.nearby(x, 4)[:, 0]
    same(near[:, 0].copy(), lattice.nearest(x), "the first and the nearest")
    for row in near[::7]:
        assert len(np.unique(row, axis=0)) == 4


# ------------------------------------------------------------------------------------- the estimator


@core
def test_a_known_dimension_needs_no_fit(tmp_path):
    lattice = SphericalLattice(24, 79)
    x = np.random.default_rng(8).standard_normal((50, 24))
    codes = lattice.encode(x)
    same(codes, SphericalLattice(r2=79).fit(x[:1]).encode(x), "codes without and with fit")
    assert lattice.n_features_in_ == 24
    assert len(lattice.get_feature_names_out()) == 8
    with pytest.raises(NotFittedError):
        SphericalLattice(r2=79).encode(x)
    assert not hasattr(SphericalLattice(r2=79), "n_features_in_")
    persist.save(lattice, tmp_path / "l")
    for other in (persist.load(tmp_path / "l"), pickle.loads(pickle.dumps(lattice)), lattice.refine(x)):
        same(other.encode(x), codes, "codes of the same")
        assert repr(other) == "SphericalLattice(d=24)"


@core
def test_parameters_count_at_the_next_fit(tmp_path):
    x = np.random.default_rng(9).standard_normal((50, 8))
    lattice = SphericalLattice(r2=5).fit(x)
    codes = lattice.encode(x)
    same(lattice.set_params(r2=3).encode(x), codes, "codes after a parameter changed")
    persist.save(lattice, tmp_path / "l")
    same(persist.load(tmp_path / "l").encode(x), codes, "codes after a file")
    assert lattice.fit(x).encode(x).shape[1] == 2
    assert lattice.count_ == SphericalLattice.count(8, 3)
    lattice.atoms_[:] = 9
    assert lattice.atoms_.max() == 1


@core
def test_impossible_state_is_refused():
    for state in ({"d": 3, "r2": 7}, {"d": 24, "r2": 80}, {"d": 2.5, "r2": 5}, {"d": 4, "r2": 10**9}):
        with pytest.raises(InvalidInputError):
            SphericalLattice()._set_state(state)


@core
def test_the_first_of_equals_is_the_largest():
    order, sums = kernels.ranked(np.array([[1, -3, 3, 0, -1]], np.float32))
    assert order.tolist() == [[1, 2, 0, 4, 3]]
    assert sums.tolist() == [[0, 3, 6, 7, 8, 8]]
    lattice = SphericalLattice(5, 5)
    assert lattice.atoms_.tolist() == [[2, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    z = integers(lattice, lattice.nearest(np.array([[1, -1, 1, 0, -1], [1, 1, -1, 1, 1.0]])))
    assert z.tolist() == [[1, -1, 1, 1, -1], [1, 1, -1, 1, 1]]
    z = integers(lattice, lattice.nearest(np.array([[1, -1, 1, 0, 0.0]])))  # 3 by both atoms: the first
    assert z.tolist() == [[2, -1, 0, 0, 0]]
