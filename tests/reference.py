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


# --- codewords and codes: float32, in one fixed order, every multiply and every add rounded by itself ---


def squared_distances(x, codewords):
    """Of one vector to each codeword (K, d): ((x_0 − c_0)² + (x_1 − c_1)²) + …"""
    total = np.zeros(len(codewords), np.float32)
    for j in range(len(x)):
        t = np.float32(x[j]) - codewords[:, j]
        total = total + t * t
    return total


def inner_products(x, codewords):
    """Of one vector with each codeword (K, d): (x_0 c_0 + x_1 c_1) + …"""
    total = np.zeros(len(codewords), np.float32)
    for j in range(len(x)):
        total = total + np.float32(x[j]) * codewords[:, j]
    return total


def nearest(X, codewords):
    """Index and squared distance of the nearest codeword of each row; ties go to the smaller index."""
    index, distance = [], []
    for x in X:
        scores = squared_distances(x, codewords)
        best = min(range(len(codewords)), key=lambda k: (scores[k], k))
        index.append(best)
        distance.append(scores[best])
    return np.array(index, np.int32), np.array(distance, np.float32)


def tables(X, codebooks, product=False):
    """(n, M, K): squared distances of each block of X to the codewords (M, K, dsub), or inner products."""
    M, K, dsub = codebooks.shape
    result = np.empty((len(X), M, K), np.float32)
    for i, x in enumerate(X):
        for m in range(M):
            part = x[m * dsub:(m + 1) * dsub]
            result[i, m] = (inner_products if product else squared_distances)(part, codebooks[m])
    return result


def adc(table, codes):
    """(nq, n): (T[0, c_0] + T[1, c_1]) + … of each query and code."""
    result = np.empty((len(table), len(codes)), np.float32)
    for q in range(len(table)):
        for i, code in enumerate(codes):
            score = table[q, 0, code[0]]
            for m in range(1, len(code)):
                score = score + table[q, m, code[m]]
            result[q, i] = score
    return result


def topk(scores, ids, k):
    """The k smallest (score, id) of each row of scores (nq, n); the rest is (inf, −1)."""
    distances = np.full((len(scores), k), np.inf, np.float32)
    found = np.full((len(scores), k), -1, np.int64)
    for q, row in enumerate(scores):
        for place, (score, name) in enumerate(sorted(zip(row.tolist(), ids))[:k]):
            distances[q, place], found[q, place] = score, name
    return distances, found


def scores(queries, vectors, metric="l2", blocks=1):
    """(nq, n), lower is better: each of the equal blocks of dimensions by itself, then the blocks' sum."""
    result = np.empty((len(queries), len(vectors)), np.float32)
    width = queries.shape[1] // blocks
    for q, query in enumerate(queries):
        total = None
        for b in range(blocks):
            columns = slice(b * width, (b + 1) * width)
            if metric == "l2":
                part = squared_distances(query[columns], vectors[:, columns])
            else:
                part = -inner_products(query[columns], vectors[:, columns])
            total = part if total is None else total + part
        result[q] = total
    return result


def search(queries, vectors, ids, k, metric="l2", blocks=1):
    """Brute force over vectors: (distances, ids) as an index returns them; queries as they are compared."""
    distances, found = topk(scores(queries, vectors, metric, blocks), ids, k)
    return (distances if metric == "l2" else -distances), found


def normalized(X):
    rows = []
    for x in X:
        norm = math.sqrt(math.fsum(float(a) ** 2 for a in x))
        rows.append([float(a) / norm if norm else 0.0 for a in x])
    return np.array(rows, np.float32).reshape(X.shape)


def pq_decode(codebooks, codes):
    """(n, d): the codewords of each code, end to end."""
    return np.array([[value for m, c in enumerate(code) for value in codebooks[m][c]] for code in codes],
                    np.float32).reshape(len(codes), codebooks.shape[0] * codebooks.shape[2])


# --- k-means ---


def inertia(X, centers):
    """Sum of squared distances to the nearest centre, in float64."""
    C = np.asarray(centers, np.float64)
    return math.fsum(float(((np.asarray(x, np.float64) - C) ** 2).sum(axis=1).min()) for x in X)


def cluster_sums(X, labels, K):
    """Sums (K, d) in float64, in row order, and counts (K,)."""
    sums, counts = [[0.0] * X.shape[1] for _ in range(K)], [0] * K
    for x, label in zip(X, labels):
        counts[label] += 1
        for j, value in enumerate(x):
            sums[label][j] += float(value)
    return np.array(sums).reshape(K, X.shape[1]), np.array(counts, np.int64)


def moving_average(codebook, batches, decay):
    """A codebook (K, d) after an exponential moving average of sums and counts over batches of vectors."""
    words = [[float(a) for a in word] for word in codebook]
    weights = [1.0] * len(words)
    for X in batches:
        index, _ = nearest(X, np.array(words, np.float32))
        for k in range(len(words)):
            mine = [x for x, i in zip(X, index) if i == k]
            old = decay * weights[k]
            weights[k] = old + (1 - decay) * len(mine)
            if mine and weights[k] > 0:
                for j in range(len(words[k])):
                    total = old * words[k][j] + (1 - decay) * math.fsum(float(x[j]) for x in mine)
                    words[k][j] = float(np.float32(total / weights[k]))
    return np.array(words, np.float32)


def weighted_inertia(X, centers, weight):
    """Sum of weight times squared distance to the nearest centre, in float64."""
    return math.fsum(float(w) * inertia(x[None], centers) for x, w in zip(X, weight))


def mini_batches(centers, batches):
    """Centres after batches of (vectors, weights): each the mean of all that came to it, in float64, with weights."""
    centers, total = np.asarray(centers, np.float32), [0.0] * len(centers)
    sums = np.zeros(centers.shape)
    for X, weight in batches:
        index, _ = nearest(X, centers)
        centers = centers.copy()
        for x, w, k in zip(X, weight, index):
            sums[k] += float(w) * x.astype(np.float64)
            total[k] += float(w)
        for k in set(index.tolist()):
            centers[k] = sums[k] / total[k]
    return centers, np.array(total)


def spherical_step(X, centers):
    """Unit means of the rows of largest cosine with each unit centre, in float64, and those labels."""
    X = normalized(X).astype(np.float64)
    labels = [max(range(len(centers)), key=lambda k: (math.fsum(x * centers[k]), -k)) for x in X]
    means = [np.mean([x for x, label in zip(X, labels) if label == k], axis=0) for k in range(len(centers))]
    return np.array([m / math.sqrt(math.fsum(m * m)) for m in means]), labels
