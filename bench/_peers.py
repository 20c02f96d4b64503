"""Rivals, and npquant itself, in processes of their own: where an environment variable is read once, at import."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_ARRAYS: dict[str, np.ndarray] = {}


def array(path: str) -> np.ndarray:
    """Return the array of an .npy file, read once a process."""
    if path not in _ARRAYS:
        _ARRAYS[path] = np.load(path)
    return _ARRAYS[path]


def kept(folder: str, name: str, values: np.ndarray) -> str:
    """Write ``values`` to an .npy file that every process can read, and return its path."""
    file = os.path.join(folder, f"{name}.npy")
    np.save(file, values)
    _ARRAYS[file] = values
    return file


def _serve(pipe: Any) -> None:
    if "FAISS_SIMD_LEVEL" in os.environ:
        import faiss
        faiss.omp_set_num_threads(1)
    while True:
        try:
            task, arguments = pipe.recv()
        except EOFError:  # the bench has ended
            return
        pipe.send(task(*arguments))


class Elsewhere:
    """Call functions of a bench in a process that was started with other environment variables."""

    def __init__(self, **environment: str) -> None:
        self.ours, theirs = multiprocessing.Pipe()
        before: Mapping[str, str | None] = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def __call__(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``task(*arguments)``, run there."""
        self.ours.send((task, arguments))
        return self.ours.recv()


def faiss_pq(codebooks: np.ndarray) -> Any:
    """Return a faiss.ProductQuantizer of our codebooks (m, K, dsub)."""
    import faiss
    m, K, dsub = codebooks.shape
    pq = faiss.ProductQuantizer(m * dsub, m, K.bit_length() - 1)
    faiss.copy_array_to_vector(np.ascontiguousarray(codebooks, np.float32).ravel(), pq.centroids)
    return pq
