"""ScaNN in an interpreter of its own (its packages do not go with others'): settings, their recall and their time.

    python bench/_scann.py BASE.npy QUERIES.npy TRUTH.npy          (of an environment with scann)

Prints a JSON list of [recall@10, seconds a query, "leaves, reordered"], one thread, all queries in one call.
"""

import json
import sys
import time

import numpy as np
import scann

base, queries, truth = (np.load(path) for path in sys.argv[1:4])
tree = scann.scann_ops_pybind.builder(base, 10, "squared_l2").tree(
    num_leaves=1024, num_leaves_to_search=32, training_sample_size=100_000)
searcher = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
rows = []
for leaves in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
    for reordered in (10, 20, 40, 60, 100, 150, 200):
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            found, _distances = searcher.search_batched(queries, final_num_neighbors=10, leaves_to_search=leaves,
                                                        pre_reorder_num_neighbors=reordered)
            seconds.append(time.perf_counter() - began)
        recall = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, truth)])) / 10
        rows.append([recall, float(np.median(seconds)) / len(queries), f"{leaves} leaves, {reordered} reordered"])
print(json.dumps(rows))
