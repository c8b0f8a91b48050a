"""engine.http.attempts: how long clients pause between attempts."""

from engine.http.attempts import backoff_s, excerpt


def test_pauses_double_up_to_the_longest_and_differ():
    """Each is between a half and all of its turn's."""
    for attempt, whole_s in enumerate([0.5, 1.0, 2.0, 4.0, 5.0, 5.0]):
        pauses_s = {backoff_s(attempt, 0.5, 5.0) for _ in range(200)}
        assert whole_s / 2 <= min(pauses_s) < max(pauses_s) <= whole_s
        assert max(pauses_s) - min(pauses_s) > whole_s / 4


def test_a_reply_of_any_bytes_can_be_quoted():
    """Its beginning, and what is no UTF-8 replaced."""
    assert excerpt(b"\xffoops" + b"x" * 1_000) == "\N{REPLACEMENT CHARACTER}oops" + "x" * 295
