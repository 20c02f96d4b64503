"""Ranking in two steps, indexes from a line of text, and options from measurements."""

import threading

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import same

import npquant as nq
from npquant.errors import InvalidInputError
from npquant.index.factory import index_factory, tune
from npquant.index.refine import RefineIndex

core = pytest.mark.core


def flat(x, metric="l2"):
    return nq.FlatIndex(nq.ProductQuantizer(2, 4, random_state=0, n_iter=3).fit(x), metric)


def made(x, codec=None, metric="l2", ids=None):
    index = RefineIndex(flat(x, metric), codec).fit(x)
    index.add(x, ids)
    return index


@pytest.fixture
def x():
    return strategies.make_vectors("normal", 300, 8, seed=3)


@core
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("codec", [None, nq.ScalarQuantizer("float16"), nq.ScalarQuantizer("int4"),
                                   nq.FlatQuantizer(), nq.ProductQuantizer(4, 6, random_state=0)], ids=repr)
def test_with_all_candidates_the_second_codec_alone_ranks(x, codec, metric):
    """oversample · k ≥ n: the answer is that of a FlatIndex of the second codec, bit for bit."""
    index = made(x, codec, metric)
    plain = nq.FlatIndex(index.codec, metric)
    plain.add(x)
    same(tuple(index.search(x[:20], 10, oversample=30)), tuple(plain.search(x[:20], 10)), "results")


@core
def test_candidates_are_the_bases_and_their_order_the_codecs(x):
    """Each result is among the base's oversample · k, and no better one of these is left out."""
    ids = np.random.default_rng(0).permutation(10**6)[:300]
    for codec in (None, nq.FlatQuantizer()):
        index = made(x, codec, ids=ids)
        for k, oversample in ((1, 1), (3, 4), (10, 2)):
            found = index.search(x[:9], k, oversample=oversample)
            near = index.base.search(x[:9], k * oversample).ids
            decoded = index.reconstruct(near.ravel()).reshape(9, -1, 8)
            for q in range(9):
                scores = reference.scores(x[q:q + 1], decoded[q], "l2", 1)
                same(tuple(a[q:q + 1] for a in found), reference.topk(scores, near[q], k), "results")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_changes_reach_both_codes(data):
    """After any additions, removals, updates and merges both indexes hold the same vectors, and search finds them."""
    rng = np.random.default_rng(data.draw(strategies.seeds))
    x = rng.standard_normal((40, 4)).astype(np.float32)
    codec = nq.ProductQuantizer(2, 3, random_state=0, n_iter=2).fit(np.tile(x, (3, 1)))
    index = RefineIndex(nq.FlatIndex(codec), nq.FlatQuantizer()).fit(x)
    model = {}
    for _ in range(data.draw(st.integers(1, 8))):
        step = data.draw(st.sampled_from(["add", "remove", "update", "merge", "compact"]))
        some = list(rng.permutation(list(model))[:3]) if model else []
        new = rng.standard_normal((3, 4)).astype(np.float32)
        if step == "add":
            model.update(zip(index.add(new).tolist(), new))
        elif step == "remove":
            assert index.remove(some) == len(some)
            for name in some:
                del model[name]
        elif step == "update":
            index.update(some, new[:len(some)])
            model.update(zip(some, new))
        elif step == "merge":
            other = RefineIndex(nq.FlatIndex(index.base.codec), index.codec)
            names = index._next_id + np.array([7, 3, 5])
            other.add(new, names)
            assert index.merge(other) == 3
            model.update(zip(names.tolist(), new))
        else:
            index.compact()
        assert sorted(index.ids) == sorted(index.base.ids) == sorted(model)
        assert index.ntotal == len(index) == len(model)
        for name, vector in model.items():
            found = index.search(vector, 1, oversample=50)
            assert found.distances[0, 0] == 0
            same(index.reconstruct([name]), vector[None], "reconstruction")


def test_a_file_keeps_both(x, tmp_path):
    """Saved and loaded, mapped or not, the answers are the same."""
    index = made(x, metric="cosine")
    nq.save(index, tmp_path / "x.npq")
    for mmap in (False, True):
        loaded = nq.load(tmp_path / "x.npq", mmap=mmap)
        same(tuple(loaded.search(x[:7], 5)), tuple(index.search(x[:7], 5)), "results")
        loaded.add(x[:3])
        assert loaded.ntotal == 303


KEPT = [nq.ScalarQuantizer("float16"), nq.ScalarQuantizer("int4"), nq.FlatQuantizer(),
        nq.ProductQuantizer(4, 6, random_state=0)]


@core
@pytest.mark.parametrize("codec", KEPT, ids=repr)
def test_opening_a_mapped_file_reads_no_code(codec, tmp_path, monkeypatch):
    """Whatever the second codec is, codes are looked at when they are candidates, and only these are."""
    x = strategies.make_vectors("normal", 300, 7 if codec.get_params().get("kind") == "int4" else 8, seed=3)
    index = RefineIndex(nq.FlatIndex(nq.ProductQuantizer(1, 8, random_state=0)), codec).fit(x)
    index.add(x)
    nq.save(index, tmp_path / "x.npq")
    seen = []
    check = type(codec).check_codes

    def counting(self, codes):
        seen.append(len(codes))
        return check(self, codes)
    monkeypatch.setattr(type(codec), "check_codes", counting)
    loaded = nq.load(tmp_path / "x.npq", mmap=True)
    assert sum(seen) <= 2  # does the codec take all bytes?
    same(tuple(loaded.search(x[:1], 3, oversample=4)), tuple(index.search(x[:1], 3, oversample=4)), "results")
    assert sum(seen) <= 2 + 12
    for call in (lambda one: one.range_search(x[:3], 4.0), lambda one: one.reconstruct([5, 7]),
                 lambda one: one.search(x, 5)):
        for got, wanted in zip(call(loaded), call(index)):
            same(got, wanted, "results")
    loaded.add(x[:3])
    loaded.compact()
    index.add(x[:3])
    same(tuple(loaded.search(x, 5)), tuple(index.search(x, 5)), "results after a change")


@core
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("codec", [KEPT[0], KEPT[2], KEPT[3]], ids=repr)
def test_a_broken_second_code_is_told_where_it_is_read(codec, metric, x, tmp_path):
    """Loaded into memory it is refused; mapped, whoever would be ranked against it is told, and nobody else."""
    index = made(x, codec, metric)
    blocks = index._both[1]._store.blocks
    if index._both[1]._store.columns:
        blocks[0, :, 7] = 255
    else:
        blocks[0, 7] = 255
    nq.save(index, tmp_path / "x.npq")
    with pytest.raises(nq.FormatError, match=r"float|codewords"):
        nq.load(tmp_path / "x.npq")
    loaded = nq.load(tmp_path / "x.npq", mmap=True)
    others = np.delete(np.arange(300), 7)
    for _ in range(2):
        for call in (lambda: loaded.search(x[:3], 5, oversample=60), lambda: loaded.range_search(x[:3], 4.0),
                     lambda: loaded.reconstruct([7]), lambda: loaded.add(x[:1]), loaded.compact,
                     lambda: loaded.update([8], x[:1]), lambda: made(x[:200], codec).merge(loaded)):
            with pytest.raises((nq.FormatError, InvalidInputError), match=r"damaged|other has"):
                call()
        assert loaded.ntotal == 300
        same(tuple(loaded.search(x[:3], 5, oversample=60, allow=others)),
             tuple(index.search(x[:3], 5, oversample=60, allow=others)), "results without it")


@core
def test_two_stores_of_other_vectors_are_told(x, tmp_path):
    """As many vectors as the base, with other ids: refused at load, or, mapped, when a candidate is missing."""
    index, other = made(x), made(x, ids=np.arange(300) + 1)
    index._both = index._both[0], other._both[1]
    nq.save(index, tmp_path / "x.npq")
    with pytest.raises(nq.FormatError, match="same vectors"):
        nq.load(tmp_path / "x.npq")
    loaded = nq.load(tmp_path / "x.npq", mmap=True)
    with pytest.raises(nq.FormatError, match="same vectors"):
        loaded.search(x, 10, oversample=30)
    with pytest.raises(InvalidInputError, match="not in the index"):
        loaded.remove([0])
    shuffled = made(x, ids=np.random.default_rng(0).permutation(300))
    again = shuffled._both[1].ids
    shuffled._both[1].update(again[:5], x[:5])  # the same ids, in another order
    nq.save(shuffled, tmp_path / "x.npq")
    assert nq.load(tmp_path / "x.npq").ntotal == 300


@core
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_a_range_in_some_lists(x, metric):
    """With ``nprobe``: of the vectors in the base's lists, those within the radius by the second codes."""
    index = index_factory("IVF9,PQ2x4,Refine(float32)", 8, metric, random_state=0).fit(x)
    index.add(x, np.random.default_rng(0).permutation(1000)[:300])
    q, mask = x[:7], np.arange(300) % 3 > 0
    radius = {"l2": 9.0, "ip": 1.0, "cosine": 0.3}[metric]
    for radii in (radius, np.linspace(0.5, 1.5, 7) * radius):
        same(tuple(index.range_search(q, radii, nprobe=9)), tuple(index.range_search(q, radii)), "all lists")
        for allow in (None, mask):
            lims, distances, ids = index.range_search(q, radii, nprobe=3, allow=allow)
            there = index.base.search(q, 300, nprobe=3, allow=allow).ids
            for i in range(7):
                whole = index.range_search(q[i], np.broadcast_to(radii, 7)[i])
                kept = np.isin(whole.ids, there[i])
                same(ids[lims[i]:lims[i + 1]], whole.ids[kept], "ids")
                same(distances[lims[i]:lims[i + 1]], whole.distances[kept], "distances")
            assert 0 < lims[-1] < index.range_search(q, radii, allow=allow).lims[-1]
    for call, words in ((lambda: index.range_search(q, radius, nprobe=10), "nprobe is 10"),
                        (lambda: index.range_search(q, [1.0, 2.0], nprobe=2), "one for each of the 7"),
                        (lambda: made(x).range_search(q, 1.0, nprobe=2), "has no lists")):
        with pytest.raises(InvalidInputError, match=words):
            call()
    assert index.range_search(q[:0], 1.0, nprobe=2).lims.tolist() == [0]


def test_allow_and_range(x):
    """Only what is allowed is found, by mask or ids; a range search asks the second codes."""
    index = made(x)
    mask = np.arange(300) % 3 == 0
    for allow in (mask, np.flatnonzero(mask)):
        assert (index.search(x[:9], 5, allow=allow).ids % 3 == 0).all()
        lims, distances, ids = index.range_search(x[:9], 4.0, allow=allow)
        assert (ids % 3 == 0).all()
        assert (distances <= 4).all()
        assert lims[-1] > 0


def test_searching_while_others_change(x):
    """Each search sees both codes of one moment: a vector found has the distance of its own second code."""
    index, wrong, stop = made(x, nq.FlatQuantizer()), [], threading.Event()

    def search():
        while not stop.is_set():
            distances, ids = index.search(x[:5], 3, oversample=20)
            if (ids < 0).any() or (distances[:, 0] > 0).any():
                wrong.append((distances, ids))
    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        names = index.add(x[100:130])
        index.update(names, x[130:160])
        index.remove(names)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


@core
def test_wrong_use_is_told(x):
    """Each wrong call says what is wanted."""
    full = flat(x)
    full.add(x)
    index = made(x)
    for call, words in ((lambda: RefineIndex(full), "base holds 300"),
                        (lambda: RefineIndex(index), "wanted a FlatIndex"),
                        (lambda: RefineIndex(flat(x), "int8"), "wanted a codec"),
                        (lambda: index.search(x[:1], 1, oversample=0), "oversample is 0"),
                        (lambda: index.search(x[:1], 1, nprobe=2), "has no lists"),
                        (lambda: index.search(x[:1, :3], 1), "features"),
                        (lambda: index.add(x[:2], [1, 2]), "in the index already"),
                        (lambda: index.fit(x), "holds 300 vectors")):
        with pytest.raises(InvalidInputError, match=words):
            call()
    assert index.ntotal == index.base.ntotal == 300
    with pytest.raises(nq.NotFittedError):
        RefineIndex(nq.FlatIndex(nq.ProductQuantizer(2, 4))).add(x)


@core
@pytest.mark.parametrize("spec", ["PQ4x4", "PQ2", "OPQ2,PQ2x4", "OPQ2_4,PQ2x4", "PCA4,SQ8", "RR,PQ2x5", "Flat", "SQ4",
                                  "SQfp16", "Sign", "ITQ8", "RaBitQ", "IVF5,PQ2x4", "OPQ2,IVF5,PQ2x4,Refine(int8)",
                                  "IMI2x2,PQ2x4", "PCA4,IVF4,Flat", "IVF3,SQ8,Refine(float32)", "PQ2x4,RFlat"])
def test_every_line_makes_an_index_that_works(spec, x):
    """It is trained, filled and searched; an exact one finds each vector itself."""
    with np.errstate(all="raise"):
        index = index_factory(spec, 8, random_state=0)
        if spec in ("PQ2", "OPQ2,PQ2"):
            with pytest.warns(nq.NpquantWarning):
                index.fit(x[:200])
        else:
            index.fit(x)
    index.add(x)
    distances, ids = index.search(x[:5], 3)
    assert distances.shape == ids.shape == (5, 3)
    if "float32" in spec or spec in ("Flat", "SQfp16"):
        assert (ids[:, 0] == np.arange(5)).all()


@pytest.mark.parametrize(("spec", "words"), [
    ("PQ3", "do not divide"), ("OPQ4,PQ2", "OPQ4 learns"), ("OPQ4,Flat", "OPQ4 learns"), ("PCA9,PQ1", "9 dimensions"),
    ("", "''"), ("PQ4,IVF5", "'IVF5'"), ("IVF5", "nothing"), ("Refine(int8)", "nothing"), ("PQ4,Refine(int9)", "int9"),
    ("PCA3,IMI2x4,PQ1", "even"), (5, "line of text")])
def test_lines_that_make_no_sense(spec, words):
    """What is wrong is named."""
    with pytest.raises(InvalidInputError, match=words):
        index_factory(spec, 8)


def test_tuning_finds_what_it_measured():
    """The options reach the recall asked for; the front rises; more effort is not asked for than is there."""
    data = nq.datasets.load_digits()
    index = index_factory("IVF16,PQ8x4,Refine(float32)", 64, random_state=0).fit(data.X_train)
    index.add(data.X_train)
    truth = nq.metrics.exact_neighbors(data.X_train, data.X_test, 10)
    truth = truth[1] if isinstance(truth, tuple) else truth
    tuned = tune(index, data.X_test, 0.9, truth=truth)
    found = index.search(data.X_test, 10, **tuned.options).ids
    assert nq.metrics.knn_recall(found, truth, 10) == tuned.recall >= 0.9
    recalls, seconds = [entry[0] for entry in tuned.front], [entry[1] for entry in tuned.front]
    assert recalls == sorted(recalls)
    assert seconds == sorted(seconds)
    assert max(recalls) > 0.99
    itself = tune(index, data.X_test[:50], 1.0)
    assert itself.recall == 1.0
    with pytest.raises(InvalidInputError, match="no search options"):
        tune(nq.FlatIndex(nq.FlatQuantizer().fit(data.X_train)), data.X_test)


def test_tuning_tries_what_can_matter(x, monkeypatch):
    """Where candidates are few, more lists soon find nothing more; to find all, the most thorough is tried as well."""
    index = index_factory("IVF64,PQ1x1,Refine(float32)", 8, random_state=0).fit(x)
    index.add(x)
    tried = []
    search = RefineIndex.search
    monkeypatch.setattr(RefineIndex, "search", lambda self, q, k, **options: (
        tried.append((options["oversample"], options["nprobe"])), search(self, q, k, **options))[1])
    assert tune(index, x[:100], 1.0, k=5).recall == 1.0
    assert (60, 64) in tried
    assert (1, 1) in tried
    assert (1, 64) not in tried
    tried.clear()
    monkeypatch.setattr("npquant.index.factory._LONG", 0)
    tune(index, x[:100], 0.5, k=5)
    assert all(tried.count(one) <= 2 for one in set(tried) - {(60, 64)})  # compiled, and measured once


def test_tuning_an_index_of_names(x):
    """What is measured is the index inside; the truth is told by names."""
    inside = index_factory("IVF9,PQ2x4,Refine(float32)", 8, random_state=0).fit(x)
    index = nq.IdMap(inside)
    index.add(x, [f"v{i}" for i in range(300)])
    assert tune(index, x[:20], 1.0, k=5).recall == 1.0
    truth = index.search(x[:20], 5, nprobe=9, oversample=60).ids
    tuned = tune(index, x[:20], 1.0, k=5, truth=truth)
    assert tuned.recall == 1.0
    same(index.search(x[:20], 5, **tuned.options).ids, truth, "ids")
    assert index.numbers([["v3", None]]).tolist() == [[3, -1]]
    with pytest.raises(InvalidInputError, match="'nobody', which is not in the index"):
        tune(index, x[:1], k=1, truth=[["nobody"]])
    with pytest.raises(InvalidInputError, match="wanted an IVFIndex or a RefineIndex"):
        tune(inside.codec, x[:1])


@core
@pytest.mark.parametrize("spec", ["PQ4x5", "SQ8", "PCA6,PQ2x4", "IVF9,PQ4x4"])
@pytest.mark.parametrize("factor", [1e-3, 20.0, 200.0])
def test_a_codec_of_other_lengths_is_told(spec, factor):
    """Metric cosine codes directions: who trained on longer or shorter vectors is warned, once, and no one else."""
    x = np.abs(strategies.make_vectors("normal", 400, 8, seed=3)) * np.float32(factor)
    raw = index_factory(spec, 8, random_state=0).fit(x)
    index = index_factory(spec, 8, "cosine", random_state=0)
    if spec.startswith("IVF"):
        index.coarse = raw.coarse
    index.codec = raw.codec
    with pytest.warns(nq.NpquantWarning, match="FlatIndex.codec, 'cosine'") as told:
        index.add(x)
    assert told[0].filename == __file__
    assert index.ntotal == 400
    index.add(x)
    right = index_factory(spec, 8, "cosine", random_state=0).fit(x)
    right.add(x)


def test_lengths_are_told_where_codes_say_little_of_anything():
    """Twenty bits for 64 dimensions are few; but those of directions are more than none."""
    x = 100 * strategies.make_vectors("normal", 1000, 64, seed=3)
    with pytest.warns(nq.NpquantWarning, match="tell less"):
        nq.FlatIndex(nq.ProductQuantizer(4, 5, random_state=0).fit(x), "cosine").add(x)
    nq.FlatIndex(nq.ProductQuantizer(4, 5, random_state=0), "cosine").fit(x).add(x)


def test_few_bits_and_signs_are_no_reason_to_warn(x):
    """Nor are vectors that are all alike, or few."""
    nq.FlatIndex(nq.ProductQuantizer(1, 1, random_state=0), "cosine").fit(x).add(x)
    for codec in (nq.SignQuantizer(), nq.ScalarQuantizer("float16"), nq.RaBitQuantizer(random_state=0)):
        nq.FlatIndex(codec.fit(100 * x), "cosine").add(x)
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    nq.FlatIndex(nq.ProductQuantizer(1, 1, random_state=0).fit(unit), "cosine").add(100 * x)
    index = nq.FlatIndex(nq.ProductQuantizer(2, 4, random_state=0).fit(x), "cosine")
    index.add(np.tile(x[:1], (100, 1)))
    nq.FlatIndex(nq.ProductQuantizer(2, 4, random_state=0).fit(1000 * x), "cosine").add(x[:9])


def test_threads_change_nothing(x):
    """One thread or three."""
    index = made(x)
    same(tuple(index.search(x, 5, threads=1)), tuple(index.search(x, 5, threads=3)), "results")


@core
@pytest.mark.parametrize("codec", [None, nq.ScalarQuantizer("int4"), nq.SignQuantizer()], ids=repr)
def test_everything_removed_is_nothing_found(x, codec):
    """Whatever the order of the ids was."""
    index = made(x[:60], codec, ids=np.random.default_rng(0).permutation(60))
    index.remove(index.ids)
    distances, ids = index.search(x[:3], 4)
    assert (ids == -1).all()
    assert (distances == np.inf).all()
    assert index.range_search(x[:3], 1e9).lims.tolist() == [0, 0, 0, 0]
    assert index.add(x[:5]).tolist() == [60, 61, 62, 63, 64]
    assert (index.search(x[:5], 1, oversample=5).ids >= 60).all()


def test_an_iterator_trains_both_codecs(x):
    """It can be read once; what is trained is what an array trains."""
    def new():
        return RefineIndex(nq.FlatIndex(nq.ProductQuantizer(2, 4, random_state=0)))
    index, other = new().fit(x[i:i + 100] for i in range(0, 300, 100)), new().fit(x)
    same(index.base.codec.codebooks_, other.base.codec.codebooks_, "codebooks")
    same(index.codec.step_, other.codec.step_, "steps")


@pytest.mark.parametrize("spec", ["PQ4x4", "SQ4", "PCA6,SQ8", "ITQ8", "PQ2x4,Refine(int8)"])
def test_cosine_is_trained_on_what_it_codes(x, spec):
    """Vectors of any length train the same codec as normalised ones."""
    far = (x + 9) * np.linspace(1, 100, len(x), dtype=np.float32)[:, None]
    unit = far / np.linalg.norm(far.astype(np.float64), axis=1)[:, None]
    found = []
    for given_ in (far, unit):
        index = index_factory(spec, 8, "cosine", random_state=0).fit(given_)
        index.add(far)
        found.append(index.reconstruct(index.ids))
        unit_error = np.square(found[-1] / np.linalg.norm(found[-1], axis=1)[:, None] - unit).sum(axis=1).mean()
        assert unit_error < np.square(unit - unit.mean(axis=0)).sum(axis=1).mean()
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_candidates_are_held_for_some_queries_at_a_time(x, monkeypatch):
    """And the results are those of one search for all."""
    index = made(x)
    wanted = index.search(x, 5)
    monkeypatch.setattr("npquant.index.refine._CANDIDATES", 500)
    same(tuple(index.search(x, 5)), tuple(wanted), "results")


@pytest.mark.parametrize("spec", ["PQ0", "OPQ0,PQ0"])
def test_no_blocks_are_refused(spec):
    """By a word, not by a division by zero."""
    with pytest.raises(InvalidInputError, match="do not divide"):
        index_factory(spec, 8)


def test_tuning_takes_one_query_and_refuses_an_empty_index(x):
    """A 1-D vector is one query."""
    index = made(x)
    assert tune(index, x[0], 1.0, k=5).recall == 1.0
    with pytest.raises(InvalidInputError, match="no vectors"):
        tune(RefineIndex(flat(x)).fit(x), x)


def test_a_product_of_zero_has_no_sign(x):
    """Zero vectors score 0, not −0, as in an index of the second codes."""
    distances = made(x, metric="cosine").search(np.zeros((1, 8)), 3).distances
    assert (distances == 0).all()
    assert not np.signbit(distances).any()
