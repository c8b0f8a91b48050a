"""engine.telemetry.durations: percentiles and histograms of the newest."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.telemetry.durations import Durations

SECONDS = st.lists(st.floats(0, 100), max_size=60)


def of(seconds, most=512):
    """Durations of these."""
    durations = Durations(most)
    for one in seconds:
        durations.add(one)
    return durations


def test_without_any():
    """Zeros, and no division by them."""
    assert Durations().quantiles_s(0.5, 0.99) == [0.0, 0.0]
    assert Durations().histogram((1.0,)) == [0, 0]


def test_percentiles_are_of_the_newest_and_the_count_of_all():
    """A hundred of 1 to 100 s, after others that are forgotten."""
    durations = of([1e6] * 50 + list(range(1, 101)), most=100)
    assert durations.quantiles_s(0.0, 0.5, 0.95, 0.99, 1.0) == [1, 51, 96, 100, 100]
    assert durations.count == 150
    assert repr(durations) == "<Durations 150: median 51 s>"


@given(SECONDS, st.sets(st.floats(0, 100), min_size=1, max_size=5))
def test_a_histogram_counts_each_once(seconds, edges):
    """As a naive one does."""
    bounds = [0.0, *sorted(edges), float("inf")]
    naive = [sum(low <= one < high for one in seconds) for low, high in pairwise(bounds)]
    assert of(seconds).histogram(sorted(edges)) == naive
