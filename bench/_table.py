"""The codecs of the table of quantizers.py, ours and faiss's, and how one of them is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _data
import numpy as np

import npquant as nq
from npquant import metrics

BITS = (32, 64, 128)
OURS, PEERS = (Path(__file__).with_name(name) for name in ("codecs.json", "peers.json"))
RANKS = (1, 10, 100)
MOST = 65_536  # vectors for the slow rivals: as many as ours draw


class Codec(NamedTuple):
    """A row of the table: a codec for codes of about ``bits`` bits."""

    name: str
    code: str
    bits: int
    make: Callable[[], Any]
    slow: bool = False
    vectors: int | None = None  # to learn from; None: all, of which a codec may draw fewer

    @property
    def key(self) -> str:
        return f"{self.name}, {self.code}, {self.bits}"

    @property
    def peer(self) -> bool:
        return self.name.startswith("faiss")


# -------------------------------------------------------------------------------------------------------- which codecs

def codecs(bits: int) -> Iterator[Codec]:
    """Yield the rows of ``bits`` bits.

    Sums of codewords come twice, with as many bytes and with as many codebooks as PQ; but not at 128 bits, where a
    book more or less matters little and takes minutes.
    """
    m = bits // 8
    yield Codec("PQ", f"{m} × 8", bits, lambda: nq.ProductQuantizer(m, random_state=0))
    yield Codec("PQ", f"{2 * m} × 4", bits, lambda: nq.ProductQuantizer(2 * m, 4, random_state=0))
    yield Codec("faiss PQ", f"{m} × 8", bits, lambda: _index("IndexPQ", 128, m, 8))
    yield Codec("faiss PQ", f"{2 * m} × 4", bits, lambda: _index("IndexPQ", 128, 2 * m, 4))
    yield Codec("OPQ", f"{m} × 8", bits, lambda: nq.OptimizedProductQuantizer(m, random_state=0))
    yield Codec("OPQ", f"{2 * m} × 4", bits, lambda: nq.OptimizedProductQuantizer(2 * m, 4, random_state=0))
    yield Codec("faiss OPQ", f"{m} × 8", bits, lambda: _faiss_opq(m), slow=True, vectors=MOST)
    yield Codec("GRVQ, constant norm", f"{m} × 8", bits, lambda: nq.GeneralizedResidualQuantizer(
        m, regularization=1.0, norm="constant", random_state=0))
    for books in (m - 1, m) if bits < 128 else (m - 1,):
        yield from _sums(books, f"{books} × 8 + norm", bits)
    for kind in ("ResidualQuantizer", "LocalSearchQuantizer"):
        yield Codec(f"faiss {kind.removesuffix('Quantizer')}", f"{m - 1} × 8 + norm", bits,
                    lambda kind=kind: faiss_sum(kind, m - 1), slow=True, vectors=MOST)
    if bits <= 64:
        yield Codec("PCA + lattice", "24 dimensions", bits, lambda: nq.PreTransformed(
            nq.PCA(24), nq.SphericalLattice.for_bits(24, bits)))
    yield Codec("PCA + sign", "signs", bits, lambda: nq.PreTransformed(nq.PCA(bits), nq.SignQuantizer()))
    yield Codec("ITQ", "signs", bits, lambda: nq.ITQ(bits, random_state=0))
    yield Codec("ITQ, Hamming", "signs", bits, lambda: nq.ITQ(bits, asymmetric=False, random_state=0))
    yield Codec("faiss ITQ, Hamming", "signs", bits, lambda: _before(
        _index("ITQTransform", 128, bits, True), _index("IndexLSH", bits, bits, False, False)))
    yield Codec("Spectral hashing", "signs", bits, lambda: nq.SpectralHashing(bits, random_state=0))
    yield Codec("faiss LSH, Hamming", "signs", bits, lambda: _index("IndexLSH", 128, bits, True, True))
    before = "" if bits == 128 else "PCA + "
    yield Codec(f"{before}RaBitQ", "signs + 8 bytes", bits, lambda: nq.RaBitQuantizer(random_state=0) if bits == 128
                else nq.PreTransformed(nq.PCA(bits), nq.RaBitQuantizer(random_state=0)))
    yield Codec(f"faiss {before}RaBitQ", "signs + 8 bytes", bits, lambda: _before(
        _index("RandomRotationMatrix", 128, 128) if bits == 128 else _index("PCAMatrix", 128, bits, 0, True),
        _index("IndexRaBitQ", bits)))


def _sums(books: int, code: str, bits: int) -> Iterator[Codec]:
    for beam in (1, 5, 16):
        yield Codec(f"Residual, beam {beam}", code, bits,
                    lambda beam=beam: nq.ResidualQuantizer(books, beam=beam, random_state=0))
    yield Codec("GRVQ", code, bits, lambda: nq.GeneralizedResidualQuantizer(books, random_state=0))
    yield Codec("Additive", code, bits, lambda: nq.AdditiveQuantizer(books, random_state=0))
    yield Codec("LSQ", code, bits, lambda: nq.LocalSearchQuantizer(books, random_state=0))


def _index(kind: str, *arguments: Any) -> Any:
    import faiss
    return getattr(faiss, kind)(*arguments)


def _before(transform: Any, index: Any) -> Any:
    import faiss
    return faiss.IndexPreTransform(transform, index)


def _faiss_opq(m: int) -> Any:
    """Return faiss's OPQ from the identity, its better start on these vectors (see the part ``opq``)."""
    import faiss
    matrix = faiss.OPQMatrix(128, m)
    faiss.copy_array_to_vector(np.eye(128, dtype=np.float32).ravel(), matrix.A)
    return _before(matrix, faiss.IndexPQ(128, m, 8))


def faiss_sum(kind: str, books: int, beam: int = 5) -> Any:
    """Return faiss's index of that additive quantizer, with a byte for the norm of its own best kind."""
    import faiss
    index = getattr(faiss, f"Index{kind}")(128, books, 8, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_cqint8)
    if kind == "ResidualQuantizer":
        index.rq.use_beam_LUT, index.rq.max_beam_size = 1, beam
    return index


# ------------------------------------------------------------------------------------------------------- the measuring

_WARM: set[type] = set()


class Measured(NamedTuple):
    """A codec after its training on one side, faiss's or ours; seconds are of processor time."""

    seconds: float
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    ranked: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]  # of base, its codes, queries, k
    codec: Any


def trained(make: Callable[[], Any], learn: np.ndarray) -> Measured:
    """Return the codec that ``make`` gives, trained on ``learn``."""
    codec = make()
    if not hasattr(codec, "fit"):
        began = time.process_time()
        codec.train(learn)
        seconds = time.process_time() - began

        def found(base: np.ndarray, codes: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
            try:
                codec.add_sa_codes(codes)
            except RuntimeError:  # not of this kind of index
                codec.add(base)
            return codec.search(queries, k)[1]
        return Measured(seconds, codec.sa_encode, codec.sa_decode, found, codec)
    if type(codec) not in _WARM:  # kernels are compiled, or read from the cache, before
        make().fit(learn[:2048]).encode(learn[:64])
        _WARM.add(type(codec))
    began = time.process_time()
    codec.fit(learn)
    seconds = time.process_time() - began
    return Measured(seconds, codec.encode, codec.decode, lambda base, codes, queries, k: codec.scorer(queries).topk(
        codes, np.arange(len(codes)), k)[1], codec)


def row(codec: Codec, sift: _data.Sift, machine: str) -> dict[str, Any]:
    """Return recalls, distortion, seconds of training and M vectors/s of encoding, of processor time."""
    got = trained(codec.make, sift.learn[:codec.vectors])
    speeds, codes = [], np.empty(0)
    for batch in (1_000, 10_000) if codec.peer and not codec.slow else (len(sift.base),):
        began = time.process_time()
        codes = np.concatenate([got.encode(sift.base[at:at + batch]) for at in range(0, len(sift.base), batch)])
        speeds.append(len(sift.base) / 1e6 / max(time.process_time() - began, 1e-9))
    try:
        error = metrics.distortion(sift.base, got.decode(codes))
    except (nq.NotInvertibleError, RuntimeError):
        error = None
    ids = got.ranked(sift.base, codes, sift.queries, max(RANKS))
    return {"name": codec.name, "code": codec.code, "bits": codec.bits, "bytes": codes.shape[1],
            "recall": [metrics.recall_at(ids, sift.neighbors, rank) for rank in RANKS], "distortion": error,
            "train": got.seconds, "encode": max(speeds), "machine": machine}


# --------------------------------------------------------------------------------------------------------- rows kept

def peers() -> dict[str, Any]:
    """Return what is kept of rivals: rows of the table under ``codecs``, and what other parts keep."""
    return dict(json.loads(PEERS.read_text())) if PEERS.exists() else {}


def keep_peer(key: str, value: Any) -> None:
    """Put ``value`` into peers.json."""
    PEERS.write_text(json.dumps({**peers(), key: value}, indent=1) + "\n")


def _of_ours() -> dict[str, dict[str, Any]]:
    return dict(json.loads(OURS.read_text())) if OURS.exists() else {}


def kept() -> dict[str, dict[str, Any]]:
    """Return the rows kept, ours and rivals'."""
    return {**_of_ours(), **peers().get("codecs", {})}


def keep(codec: Codec, measured: dict[str, Any]) -> None:
    """Put a row into codecs.json, a rival's into peers.json."""
    if codec.peer:
        keep_peer("codecs", {**peers().get("codecs", {}), codec.key: measured})
    else:
        OURS.write_text(json.dumps({**_of_ours(), codec.key: measured}, indent=1) + "\n")


def of_catalyzer() -> Iterator[dict[str, Any]]:
    """Yield the kept rows of the catalyzer trained longest, with a lattice behind it."""
    file = Path(__file__).with_name("catalyzer.json")
    if not file.exists():
        return
    data = json.loads(file.read_text())
    for bits in BITS:
        rows = [row for row in data["rows"] if row["name"] == "lattice" and row["bits"] == bits and row["settings"]
                and row["settings"].get("output", "plain") == "plain"]
        if rows:
            best = max(rows, key=lambda row: row["seconds"])
            yield {"name": "Catalyzer + lattice", "code": "24 dimensions", "bits": bits, "bytes": bits // 8,
                   "recall": best["recall"], "distortion": None, "train": best["seconds"], "encode": None,
                   "machine": data["machine"]}


# ---------------------------------------------------------------------------------------------------------- the output

def shown(row: dict[str, Any]) -> str:
    """Return a row of the table, in Markdown."""
    recalls = " / ".join(f"{value:.3f}".removeprefix("0") for value in row["recall"])
    error = "–" if row["distortion"] is None else f"{row['distortion']:,.0f}"
    train = f"{row['train']:.1f}" if row["train"] < 10 else f"{row['train']:.0f}"
    speed = "–" if row["encode"] is None else f"{row['encode']:.2g}" if row["encode"] < 1 else f"{row['encode']:.1f}"
    return f"| {row['name']} | {row['code']} | {row['bytes']} | {recalls} | {error} | {train} | {speed} |"


SUMMARY = (  # what the README tells of each: names, bytes of a vector, row of the table by its m, a word on it
    ("`ProductQuantizer`", "m", "PQ, {m} × 8", "quick in everything"),
    ("`ProductQuantizer(nbits=4)`", "m / 2", "PQ, {2m} × 4", "the fastest to encode, the smallest tables"),
    ("`OptimizedProductQuantizer`", "m", "OPQ, {m} × 8", "the usual choice: dimensions may depend on each other"),
    ("`ResidualQuantizer(beam=5)`", "m + 1", "Residual, beam 5, {m-1} × 8 + norm", "sums of codewords and a norm"),
    ("`GeneralizedResidualQuantizer`", "m + 1", "GRVQ, {m-1} × 8 + norm", "the same, codebooks learned anew"),
    ("`AdditiveQuantizer`", "m + 1", "Additive, {m-1} × 8 + norm", "codewords in any order"),
    ("`LocalSearchQuantizer`", "m + 1", "LSQ, {m-1} × 8 + norm", "the same, by local search"),
    ("`PCA(24)` + `SphericalLattice`", "2 to 8", "PCA + lattice, 24 dimensions", "no codebooks; for directions"),
    ("`Catalyzer` + `SphericalLattice`", "2 to 8", "Catalyzer + lattice, 24 dimensions", "a network learned before it"),
    ("`PCA` + `SignQuantizer`", "d / 8", "PCA + sign, signs", "one bit a dimension, look-ups or Hamming distances"),
    ("`ITQ`", "bits / 8", "ITQ, signs", "the same, rotated to fit"),
    ("`SpectralHashing`", "bits / 8", "Spectral hashing, signs", "signs of cosines; no decoding"),
    ("`PCA(64)` + `RaBitQuantizer`", "d / 8 + 8", "PCA + RaBitQ, signs + 8 bytes",
     "one bit a dimension, an unbiased estimate and its bound"),
)
HEAD = ("| codec | code | bytes | R@1 / 10 / 100 | distortion | training, s | encoding, M/s |\n"
        "|---|---|---|---|---|---|---|")


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of all rows there are, in the order of :func:`codecs`, machines below."""
    lines: list[str] = []
    for bits in BITS:
        lines += [f"\n{bits} bits\n", HEAD]
        lines += [shown(rows[codec.key]) for codec in codecs(bits) if codec.key in rows]
        lines += [shown(row) for row in of_catalyzer() if row["bits"] == bits]
    machines = {row["machine"].split(";")[0] + row["machine"].split(";")[1] for row in rows.values()}
    lines += ["", *sorted(machines)]
    return "\n".join(lines)


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Return the README's table: R@10 in 8 and in 16 bytes, training and encoding at 8 (where there are none, 16)."""
    rows = {**rows, **{f"{row['name']}, {row['code']}, {row['bits']}": row for row in of_catalyzer()}}
    lines = ["| codec | bytes of a vector | recall@10, 8 bytes | 16 bytes | training, s | encoding, M/s | |",
             "|---|---|---|---|---|---|---|"]
    for names, size, key, word in SUMMARY:
        found: dict[int, dict[str, Any]] = {}
        for bits in BITS:
            m = bits // 8
            parts = key.replace("{m}", str(m)).replace("{2m}", str(2 * m)).replace("{m-1}", str(m - 1))
            row = rows.get(f"{parts}, {bits}")
            if row:
                found[row["bytes"]] = row
        recalls = [f"{found[room]['recall'][1]:.3f}".removeprefix("0") if room in found else "–" for room in (8, 16)]
        timed = found.get(8) or found.get(16)
        if timed:
            train, speed = shown(timed).split(" | ")[-2:]
            lines.append(f"| {names} | {size} | {recalls[0]} | {recalls[1]} | {train} | {speed} {word} |")
    return "\n".join(lines)
