"""Slow, obvious oracles: nothing of npquant is imported here, nothing is clever.

One section a subject; loops over plain lists are welcome.
"""

import itertools
import math

import numpy as np

# --- rankings ---


def orders(distances):
    """Every order of the items in which distances never decrease: ties in all their permutations."""
    groups = [[i for i, d in enumerate(distances) if d == value] for value in sorted(set(distances))]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [item for part in parts for item in part]


def precisions(relevant, order, at):
    """Sum of the precisions at the relevant positions among the first ``at``, and how many these are."""
    total, hits = 0.0, 0
    for position, item in enumerate(order[:at], start=1):
        if relevant[item]:
            hits += 1
            total += hits / position
    return total, hits


def average_precision(distances, relevant, at=None, normalize="relevant"):
    """Expected AP of one query over all orders of the tied; numerator and denominator averaged apart."""
    at = len(distances) if at is None else at
    pairs = [precisions(relevant, order, at) for order in orders(distances)]
    total = math.fsum(pair[0] for pair in pairs) / len(pairs)
    found = sum(pair[1] for pair in pairs) / len(pairs)
    if normalize == "found":
        return total / found if found else math.nan
    count = min(at, sum(map(bool, relevant)))
    return total / count if count else 0.0


def mean_average_precision(distances, relevant, at=None, normalize="relevant"):
    values = [average_precision(d, r, at, normalize) for d, r in zip(distances, relevant)]
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def precision_recall(distances, relevant, at):
    """Expected precision and recall of one query at a cut; recall is NaN where nothing is relevant."""
    hits = [sum(bool(relevant[item]) for item in order[:at]) for order in orders(distances)]
    mean, count = sum(hits) / len(hits), sum(map(bool, relevant))
    return mean / at, mean / count if count else math.nan


def similar(query_labels, database_labels):
    """Relevance (nq, n): the same class, or at least one shared label."""
    def shared(a, b):
        return a == b if np.ndim(a) == 0 else any(x == 1 and y == 1 for x, y in zip(a, b))
    return [[bool(shared(a, b)) for b in database_labels] for a in query_labels]


# --- recalls and errors ---


def recall_at(ids, neighbors, R):
    found = [truth[0] != -1 and truth[0] in list(row[:R]) for row, truth in zip(ids, neighbors)]
    return sum(found) / len(found)


def knn_recall(ids, neighbors, k, distances=None, neighbor_distances=None):
    shares = []
    for q in range(len(ids)):
        truth = {int(i) for i in neighbors[q][:k]} - {-1}
        results = {int(i) for i in ids[q][:k]} - {-1}
        if not truth:
            continue
        good = results & truth
        if distances is not None:
            farthest = max(neighbor_distances[q][j] for j in range(k) if neighbors[q][j] != -1)
            good |= {int(ids[q][j]) for j in range(k) if ids[q][j] != -1 and distances[q][j] <= farthest}
        shares.append(min(len(good), len(truth)) / len(truth))
    return sum(shares) / len(shares) if shares else math.nan


def distortion(X, decoded):
    return math.fsum((float(a) - float(b)) ** 2 for x, y in zip(X, decoded) for a, b in zip(x, y)) / len(X)
