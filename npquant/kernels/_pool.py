"""Threads: fixed-size blocks of rows on a pool of our own, results in block order.

The block size never depends on the number of threads, so neither does any result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")

_NAME = "npquant-worker"


def available_threads() -> int:
    """``NPQUANT_NUM_THREADS`` if set, else the processors this process may use."""
    asked = os.environ.get("NPQUANT_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_blocks(work: Callable[[int, int], T], n: int, block: int, threads: int | None) -> list[T]:
    """``[work(start, stop), …]`` over the blocks of ``range(n)``, in order, on at most ``threads`` threads.

    A pool lives for one call: its start (about 0.1 ms) is small beside a block, and nothing is left behind
    that a fork could break. On an exception (Ctrl-C included) blocks not yet begun are dropped.
    """
    starts = range(0, n, block)
    workers = min(threads or available_threads(), len(starts))
    if threading.current_thread().name.startswith(_NAME):  # already one of several: more would only queue
        workers = 1
    if workers <= 1:
        return [work(start, min(start + block, n)) for start in starts]
    pool = ThreadPoolExecutor(workers, thread_name_prefix=_NAME)
    try:
        return list(pool.map(lambda start: work(start, min(start + block, n)), starts))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def one_blas_thread() -> AbstractContextManager[object]:
    """Return a context in which the BLAS uses one thread, where threadpoolctl is installed; else one that does nothing.

    For products so small that a second thread costs more than it does: on a busy machine, or one of many cores,
    the threads of a BLAS wait for each other ten times as long as they compute.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits
