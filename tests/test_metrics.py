"""Metrics against slow loops, scikit-learn, and the properties that their docstrings promise."""

import ast
import subprocess
import sys
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npquant import metrics
from npquant.errors import InvalidInputError

quick = settings(max_examples=60, deadline=None)


@st.composite
def rankings(draw, most=6):
    """Distances with many ties (nq, n), classes of queries and of the database."""
    nq, n = draw(st.integers(1, 3)), draw(st.integers(1, most))
    values = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, float(np.float32(1e-45)), 1.0, 2.0, np.inf])
    distances = draw(hnp.arrays(np.float32, (nq, n), elements=values))
    classes = st.integers(0, 2)
    return distances, draw(hnp.arrays(np.int64, nq, elements=classes)), draw(
        hnp.arrays(np.int64, n, elements=classes))


cuts = st.one_of(st.none(), st.integers(1, 8))
rules = st.sampled_from(["relevant", "found"])


@pytest.mark.core
@quick
@given(rankings(), cuts, rules)
@example((np.float32([[1, 1, 1, 1]]), np.array([1]), np.array([1, 1, 1, 1])), None, "relevant")
@example((np.float32([[1, 1, 2, 2]]), np.array([1]), np.array([0, 0, 1, 0])), 3, "found")
@example((np.float32([[1, 2, 3]]), np.array([1]), np.array([0, 0, 0])), None, "relevant")
@example((np.float32([[-0.0, 0.0]]), np.array([1]), np.array([1, 0])), None, "relevant")
def test_expected_average_precision_is_the_mean_over_all_orders_of_the_tied(case, at, normalize):
    distances, query, database = case
    relevant = np.array(reference.similar(query, database))
    each = metrics.average_precision(distances, relevant, at, normalize)
    wanted = [reference.average_precision(list(d), list(r), at, normalize)
              for d, r in zip(distances, relevant)]
    np.testing.assert_allclose(each, wanted, rtol=1e-12, atol=1e-15)
    mean = metrics.mean_average_precision(distances, query, database, at=at, normalize=normalize)
    wanted = reference.mean_average_precision(distances.tolist(), relevant, at, normalize)
    np.testing.assert_allclose(mean, wanted, rtol=1e-12, atol=1e-15)


@quick
@given(rankings(most=40), cuts, rules, st.randoms(use_true_random=False))
def test_nothing_changes_when_the_database_is_permuted(case, at, normalize, random):
    distances, query, database = case
    order = list(range(len(database)))
    random.shuffle(order)
    one = metrics.mean_average_precision(distances, query, database, at=at, normalize=normalize)
    two = metrics.mean_average_precision(distances[:, order], query, database[order], at=at,
                                         normalize=normalize)
    assert one == two or (np.isnan(one) and np.isnan(two))


def test_expected_average_precision_of_larger_groups_is_what_random_orders_give():
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 4, size=(1, 60)).astype(np.float32)
    relevant = rng.random((1, 60)) < 0.3
    for at in (None, 25):
        drawn = [reference.precisions(relevant[0], np.lexsort((rng.random(60), distances[0])), at or 60)[0]
                 for _ in range(8000)]
        wanted = metrics.average_precision(distances, relevant, at)[0] * min(at or 60, relevant.sum())
        assert abs(np.mean(drawn) - wanted) < 5 * np.std(drawn) / np.sqrt(len(drawn))


@pytest.mark.core
def test_average_precision_is_scikit_learns_where_there_are_no_ties():
    score = pytest.importorskip("sklearn.metrics").average_precision_score
    rng = np.random.default_rng(1)
    distances = np.stack([rng.permutation(3000) for _ in range(5)]).astype(np.float32) - 1500
    relevant = rng.random((5, 3000)) < 0.1
    wanted = [score(r, -d) for d, r in zip(distances, relevant)]
    np.testing.assert_allclose(metrics.average_precision(distances, relevant), wanted, rtol=1e-12)


def test_a_perfect_ranking_is_exactly_one_and_sorting_by_label_gains_nothing_where_all_tie():
    relevant = np.zeros((1, 1000), dtype=bool)
    relevant[0, :100] = True
    assert metrics.average_precision(np.arange(1000)[np.newaxis], relevant)[0] == 1
    assert metrics.average_precision((~relevant).astype(np.uint8), relevant)[0] == 1
    everything_tied = metrics.average_precision(np.zeros((1, 1000)), relevant)[0]
    assert 0.1 < everything_tied < 0.11
    assert everything_tied == metrics.average_precision(np.zeros((1, 1000)), relevant[:, ::-1])[0]


@pytest.mark.core
def test_a_callable_threads_and_blocks_give_the_same_bits(monkeypatch):
    rng = np.random.default_rng(2)
    distances = rng.integers(0, 50, size=(70, 300)).astype(np.float32)
    query, database = rng.integers(0, 5, 70), rng.integers(0, 5, 300)
    wanted = metrics.mean_average_precision(distances, query, database, threads=1)
    asked = []

    def block(start, stop):
        asked.append((start, stop))
        return distances[start:stop]

    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 300 * 32)
    assert metrics.mean_average_precision(block, query, database, threads=3) == wanted
    assert asked == [(0, 32), (32, 64), (64, 70)]
    assert metrics.mean_average_precision(distances.astype(np.uint8), query, database) == wanted
    assert metrics.mean_average_precision(np.asfortranarray(distances), query, database) == wanted
    curves = [metrics.precision_recall_curve(d, query, database, threads=t)
              for d, t in ((distances, 1), (block, 3))]
    assert all(np.array_equal(a, b) for a, b in zip(*curves))


@quick
@given(rankings(), st.data())
def test_several_labels_are_similar_where_one_is_shared(case, data):
    distances, query, database = case
    marks = [data.draw(hnp.arrays(np.int64, (len(y), 3), elements=st.integers(0, 1)))
             for y in (query, database)]
    wanted = reference.mean_average_precision(distances.tolist(), reference.similar(*marks))
    for kind in (np.int64, np.bool_, np.float64):
        mean = metrics.mean_average_precision(distances, *(m.astype(kind) for m in marks))
        np.testing.assert_allclose(mean, wanted, rtol=1e-12, atol=1e-15)


def test_labels_of_any_one_kind_are_taken():
    distances, numbers = [[3, 1, 2]], [4, 4, 9]
    wanted = metrics.mean_average_precision(distances, [4], numbers)
    for kind in (str, float, object):
        query, database = np.array([4], kind), np.array(numbers, kind)
        assert metrics.mean_average_precision(distances, query, database) == wanted
    words = np.array(["b", "b", "a"], object)
    assert metrics.mean_average_precision(distances, np.array(["b"]), words) == wanted


@quick
@given(rankings())
def test_precision_recall_curve_is_the_mean_over_all_orders_of_the_tied(case):
    distances, query, database = case
    relevant, n = reference.similar(query, database), len(database)
    curve = metrics.precision_recall_curve(distances, query, database, at=range(1, n + 1))
    points = [[reference.precision_recall(list(d), r, R) for d, r in zip(distances, relevant)]
              for R in range(1, n + 1)]
    has = [i for i, r in enumerate(relevant) if any(r)]
    for i, point in enumerate(points):
        np.testing.assert_allclose(curve.precision[i], np.mean([p for p, _ in point]), rtol=1e-12, atol=1e-15)
        wanted = np.mean([point[q][1] for q in has]) if has else np.nan
        np.testing.assert_allclose(curve.recall[i], wanted, rtol=1e-12, atol=1e-15)


def test_precision_recall_curve_chooses_its_own_points():
    distances = np.arange(1000.0)[np.newaxis]
    curve = metrics.precision_recall_curve(distances, [1], np.ones(1000), points=10)
    assert curve.at[0] == 1
    assert curve.at[-1] == 1000
    assert len(curve.at) == 10
    assert curve.recall[-1] == 1
    assert (curve.precision == 1).all()
    assert metrics.precision_recall_curve([[5]], [1], [1]).at.tolist() == [1]


@st.composite
def results(draw):
    nq, k, extra = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(0, 2))
    identifiers = st.sampled_from([-1, 0, 1, 2, 3, 4, 2**62])
    ids = draw(hnp.arrays(np.int64, (nq, k + extra), elements=identifiers))
    neighbors = draw(hnp.arrays(np.int64, (nq, k), elements=identifiers))
    near = draw(hnp.arrays(np.float32, ids.shape, elements=st.sampled_from([0, 1, 2, np.inf])))
    true_near = draw(hnp.arrays(np.float32, neighbors.shape, elements=st.sampled_from([0, 1, 2])))
    return ids, neighbors, k, near, true_near


@pytest.mark.core
@quick
@given(results())
@example((np.array([[-1]]), np.array([[-1]]), 1, np.float32([[0]]), np.float32([[0]])))
@example((np.array([[7, 7]]), np.array([[7, 8]]), 2, np.float32([[0, 0]]), np.float32([[0, 0]])))
def test_recalls_are_what_loops_count(case):
    ids, neighbors, k, near, true_near = case
    assert metrics.recall_at(ids, neighbors, k) == pytest.approx(reference.recall_at(ids, neighbors, k))
    for pair in ((None, None), (near, true_near)):
        wanted = reference.knn_recall(ids, neighbors, k, *pair)
        got = metrics.knn_recall(ids, neighbors, k, distances=pair[0], neighbor_distances=pair[1])
        assert got == pytest.approx(wanted, nan_ok=True)


def test_the_two_recalls_differ():
    ids, neighbors = [[5, 1, 2]], [[1, 8, 9]]
    assert metrics.recall_at(ids, neighbors, 3) == 1
    assert metrics.knn_recall(ids, neighbors, 3) == pytest.approx(1 / 3)


@quick
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4)),
                  elements=st.floats(-9, 9, width=16)), st.floats(-2, 2, width=16))
def test_distortion_is_what_loops_sum(X, shift):
    decoded = X + np.float32(shift)
    error = reference.distortion(X, decoded)
    variance = reference.distortion(X, [X.mean(0, dtype=float)] * len(X))
    assert metrics.distortion(X, decoded) == pytest.approx(error, rel=1e-12)
    if variance < 1e-12:  # all rows equal, save for the rounding of their mean
        wanted = 0 if error == 0 else np.inf
        assert metrics.distortion(X, decoded, relative=True) == wanted
    else:
        assert metrics.distortion(X, decoded, relative=True) == pytest.approx(error / variance, rel=1e-9)


def test_distortion_keeps_its_digits_far_from_the_origin_and_over_blocks():
    rng = np.random.default_rng(3)
    X = rng.integers(0, 100, size=(2500, 3)).astype(np.float32) + 2.0**20
    assert metrics.distortion(X, X[::-1]) == pytest.approx(reference.distortion(X, X[::-1]), rel=1e-14)
    center = np.tile(X.mean(0, dtype=float), (2500, 1))
    assert metrics.distortion(X, center, relative=True) == pytest.approx(1, abs=1e-5)


D, Y = [[0.0, 1.0]], [1, 2]


@pytest.mark.core
@pytest.mark.parametrize(("call", "words"), [
    (lambda: metrics.mean_average_precision([[0.0, np.nan]], [1], Y), "NaN .query 0, item 1"),
    (lambda: metrics.mean_average_precision([[0.0, -np.nan]], [1], Y), "NaN .query 0, item 1"),
    (lambda: metrics.mean_average_precision([[1, 0], [np.nan, 0]], [1, 1], Y), "NaN .query 1, item 0"),
    (lambda: metrics.mean_average_precision([[0.0]], [1], Y), r"shape \(1, 1\).*wanted.*\(1, 2\)"),
    (lambda: metrics.mean_average_precision(lambda start, stop: [[1, 2, 3]], [1], Y), r"distances\(0, 1\)"),
    (lambda: metrics.mean_average_precision(D, [1], [[1, 0], [0, 1]]), "both 1-D, or both 2-D"),
    (lambda: metrics.mean_average_precision(D, [[1, 0]], [[1, 0, 1], [0, 1, 1]]), "same columns"),
    (lambda: metrics.mean_average_precision(D, [[3, 0]], [[1, 0], [0, 1]]), "zeros and ones"),
    (lambda: metrics.mean_average_precision(D, [[1]], [[1], [2]]), "wanted classes"),
    (lambda: metrics.mean_average_precision(D, ["1"], Y), "labels of one kind"),
    (lambda: metrics.mean_average_precision(D, [np.nan], Y), "NaN"),
    (lambda: metrics.mean_average_precision(np.empty((0, 2)), [], Y), "at least 1 row"),
    (lambda: metrics.mean_average_precision(D, [1], Y, at=0), "at is 0"),
    (lambda: metrics.mean_average_precision(D, [1], Y, normalize="all"), "normalize is 'all'"),
    (lambda: metrics.mean_average_precision(D, [1], Y, threads=0), "threads is 0"),
    (lambda: metrics.average_precision(D, [[1, 0]]), "boolean"),
    (lambda: metrics.precision_recall_curve(D, [1], Y, at=[3]), "at is 3"),
    (lambda: metrics.precision_recall_curve(D, [1], Y, at=[]), "at is empty"),
    (lambda: metrics.recall_at([[1, 2]], [[1]], 3), "2 columns, fewer than 3"),
    (lambda: metrics.recall_at([[1.0]], [[1]], 1), "wanted integers"),
    (lambda: metrics.recall_at([[1], [2]], [[1]], 1), "neighbors has 1 rows"),
    (lambda: metrics.recall_at(np.array([[2**64 - 1]], np.uint64), [[1]], 1), "beyond int64"),
    (lambda: metrics.knn_recall([[1]], [[1]], 1, distances=[[1]]), "give both"),
    (lambda: metrics.knn_recall([[1]], [[1]], 1, distances=[[np.nan]], neighbor_distances=[[1]]), "NaN"),
    (lambda: metrics.knn_recall([[1]], [[1]], 1, distances=[[1, 2]], neighbor_distances=[[1]]), "of ids"),
    (lambda: metrics.distortion([[1, 2]], [[1, 2, 3]]), "3 features"),
    (lambda: metrics.distortion([[1, 2]], [[1, 2], [1, 2]]), "decoded has 2 rows"),
])
def test_what_cannot_be_measured_is_refused_with_a_word(call, words):
    with pytest.raises(InvalidInputError, match=words):
        call()


@pytest.mark.core
def test_measuring_and_reading_import_numpy_alone():
    code = ("import sys, numpy; before = set(sys.modules); import npquant.metrics, npquant.datasets; "
            "heavy = {'numba', 'llvmlite', 'scipy', 'sklearn', 'gzip', 'zipfile'}; "
            "print(*heavy & set(sys.modules) - before)")
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert heavy.strip() == ""


def test_oracles_import_nothing_from_npquant():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert names
    assert not [name for name in names if name.startswith(("npquant", "."))]
