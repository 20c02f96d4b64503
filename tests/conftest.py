"""Settings of every test.

Hypothesis: on CI (where ``CI`` is set) examples are derandomized, so that a failure there is anybody's to repeat
and no run fails for its luck; elsewhere they are random, so that new ones are tried all the time, and a failing
one is kept in ``.hypothesis``.
"""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("npquant", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("npquant")


def pytest_terminal_summary(terminalreporter):
    """Say how many tests were skipped, and why: a skip that nobody reads is a test that nobody has."""
    reasons = Counter(skip_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.write_line(f"skipped {sum(reasons.values())}: " + "; ".join(
            f"{count} because {reason!r}" for reason, count in sorted(reasons.items())))


def skip_reason(report):
    where = report.longrepr
    return str(where[2] if isinstance(where, tuple) else where).removeprefix("Skipped: ")


@pytest.fixture
def jit(monkeypatch):
    """A function that sets NPQUANT_JIT for the test."""
    return lambda mode: monkeypatch.setenv("NPQUANT_JIT", mode)
