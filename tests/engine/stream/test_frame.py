"""A group survives the trip through bytes, and bytes that are no group are refused."""

import contextlib
from dataclasses import replace

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.stream import frame
from engine.stream.frame import ALIGN, MAGIC, PREFIX_BYTES, StreamError, body_bytes, decode, encode, header, wrap
from engine.types import EpisodeGroup, EventKind, Outcome, Reward, Sampling, Source, Span, StopReason, Tokens
from tests.parts.stream_groups import assert_same, episode, group, tokens, without_tokens

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def ledgers(draw):
    """Any ledger that obeys the format: ordered spans inside the ids, one log-probability per span token."""
    spans, end = [], 0
    for gap, length, version in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 99)))):
        spans.append(Span(start=end + gap, length=length, version=version))
        end += gap + length
    n_ids = end + draw(st.integers(0, 4))
    ids = draw(st.lists(st.integers(0, draw(st.sampled_from([9, 2**16, 2**32 - 1]))), min_size=n_ids, max_size=n_ids))
    n_policy = sum(span.length for span in spans)
    logprobs = draw(st.lists(st.floats(width=32), min_size=n_policy, max_size=n_policy))
    return Tokens(ids=np.array(ids, np.uint32), logprobs=np.array(logprobs, np.float32), spans=tuple(spans))


@st.composite
def groups(draw):
    """Any group, episodes with and without ledger and reward."""
    fraction = st.floats(0, 1)
    episodes = tuple(
        replace(
            episode("g000001", index, draw(st.none() | ledgers())),
            messages=tuple(
                draw(st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=2))
            ),
            outcome=draw(st.sampled_from(Outcome)),
            stop=draw(st.sampled_from(StopReason)),
            reward=draw(st.none() | st.builds(Reward, value=fraction, F=fraction, N=fraction, I=fraction)),
            final_state=draw(json_values),
            adapter=draw(st.none() | st.text()),
        )
        for index in range(draw(st.integers(1, 3)))
    )
    return EpisodeGroup(
        id=draw(st.text()),
        position=draw(st.integers(0, 2**40)),
        task_id=draw(st.text()),
        source=draw(st.sampled_from(Source)),
        sampling=draw(st.builds(Sampling, temperature=fraction, stop=st.lists(st.text(), max_size=2).map(tuple))),
        episodes=episodes,
    )


@settings(max_examples=150)
@given(groups(), st.floats(0, 1e6))
def test_round_trip(group, written_s):
    """Every field and every array bit of any group comes back, and the header says the same without the arrays."""
    content = encode(group, written_s)
    assert_same(decode(content), group)
    found = header(content)
    assert found.group == without_tokens(group)
    assert found.written_s == written_s
    assert found.counts == tuple(
        None if each.tokens is None else (len(each.tokens.ids), len(each.tokens.logprobs)) for each in group.episodes
    )


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_fuzzed_bytes_are_refused(noise):
    """Bytes of any kind raise StreamError and nothing else, bare, as a frame's payload, and as a frame's body."""
    squeezed = zstandard.ZstdCompressor().compress(noise)
    for content in (noise, wrap(MAGIC, noise, 0), wrap(MAGIC, squeezed, 0)):
        for read in (decode, header):
            with pytest.raises(StreamError):
                read(content)


@settings(max_examples=300)
@given(st.data())
def test_flipped_byte_is_refused(data):
    """No frame with a changed byte decodes, wherever the byte is."""
    content = bytearray(encode(group(7)))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StreamError):
        decode(bytes(content))


@settings(max_examples=300)
@given(st.data())
def test_wrong_json_behind_right_checksums_is_refused(data):
    """A header whose values were exchanged for others is refused or decodes; it never crashes."""
    body = zstandard.ZstdDecompressor().decompress(encode(group(7, episodes=1))[PREFIX_BYTES:])
    end = 8 + int.from_bytes(body[:8], "little")
    text = orjson.loads(body[8:end])
    place = data.draw(st.sampled_from([text, text["task_group"], text["task_group"]["episodes"][0]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(json_values)
    changed = orjson.dumps(text)
    changed += b" " * (-(8 + len(changed)) % ALIGN)
    body = len(changed).to_bytes(8, "little") + changed + body[end + -end % ALIGN :]
    content = wrap(MAGIC, zstandard.ZstdCompressor(level=1).compress(body), 7)
    for read in (decode, header):
        with contextlib.suppress(StreamError):
            read(content)


def test_arrays_are_aligned_views_that_torch_accepts():
    """Wide ids and log-probabilities start on 64 bytes, are writable and share one buffer: nothing was copied."""
    episode_group = replace(group(1), episodes=(episode("g000001", 0, tokens(1, n_ids=64, largest_id=2**20)),))
    ledger = decode(encode(episode_group)).episodes[0].tokens
    assert ledger is not None
    for array in (ledger.ids, ledger.logprobs):
        assert array.ctypes.data % ALIGN == 0
        assert array.flags.writeable
        assert not array.flags.owndata
    assert ledger.ids.dtype == np.uint32
    assert ledger.logprobs.dtype == np.float32


def test_small_vocabulary_takes_two_bytes_an_id():
    """Ids up to 65,535 are stored in two bytes, larger ones in four."""
    sizes = {}
    for largest in (2**16, 2**16 + 1):
        ledger = Tokens(ids=np.full(10_000, largest - 1, np.uint32), logprobs=np.empty(0, np.float32), spans=())
        sizes[largest] = body_bytes(encode(replace(group(1), episodes=(episode("g000001", 0, ledger),))))
    assert sizes[2**16 + 1] - sizes[2**16] == pytest.approx(20_000, abs=ALIGN)


def test_any_mapping_may_be_an_argument():
    """Events hold Mappings, not only dicts; values that are no JSON are refused by the group's name."""

    class Opaque(dict):
        pass

    good = group(3)
    event = replace(good.episodes[0].events[0], arguments=Opaque(a=1))
    first = replace(good.episodes[0], events=(event,))
    assert decode(encode(replace(good, episodes=(first,)))).episodes[0].events[0].arguments == {"a": 1}
    assert event.kind is EventKind.CALLED
    with pytest.raises(StreamError, match=r"g000003 cannot be written as JSON.*object"):
        encode(replace(good, episodes=(replace(first, final_state=object()),)))


@pytest.mark.parametrize(
    "spans",
    [
        (Span(start=0, length=3, version=1),),
        (Span(start=0, length=2, version=1), Span(start=1, length=2, version=1)),
        (Span(start=8, length=4, version=1),),
        (Span(start=0, length=0, version=1), Span(start=1, length=4, version=1)),
    ],
    ids=["too few", "overlap", "outside", "empty"],
)
def test_contradictory_ledger_is_not_written(spans):
    """Spans that do not fit ids and log-probabilities are refused before they reach the disk."""
    ledger = Tokens(ids=np.zeros(10, np.uint32), logprobs=np.zeros(4, np.float32), spans=spans)
    with pytest.raises(StreamError, match=r"g000001\.00"):
        encode(replace(group(1), episodes=(episode("g000001", 0, ledger),)))


def test_declared_size_is_bounded(monkeypatch):
    """A frame that declares more than the bound is refused before anything is allocated, written or read."""
    content = encode(group(1))
    monkeypatch.setattr(frame, "MAX_BODY_BYTES", 500)
    for read in (decode, header):
        with pytest.raises(StreamError):
            read(content)
    monkeypatch.setattr(frame, "MAX_BODY_BYTES", len(content) + 1)
    with pytest.raises(StreamError, match="declares a body of"):
        decode(content)
    with pytest.raises(StreamError, match="lower G"):
        encode(group(1))
