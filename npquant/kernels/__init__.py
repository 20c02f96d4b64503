"""Pure functions over arrays: the only place where numba is imported, and there only at the first heavy call.

Every kernel is a compiled function and a NumPy twin with the same signature; where the Arithmetic rule binds
(scores, tables, nearest codewords, k-means sums) the two give the same bits, so which one ran cannot be seen.
"""
