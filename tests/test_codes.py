import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hashgym import codes

settings.register_profile("untimed", deadline=None)  # busy machines are slow
settings.load_profile("untimed")


def bits_of(**sides):
    return hnp.arrays(np.bool_, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, **sides))


@given(bits_of(max_side=140))
def test_unpack_undoes_pack(bits):
    words = codes.pack(bits)
    assert words.dtype == np.uint64
    assert words.shape == (*bits.shape[:-1], codes.word_count(bits.shape[-1]))
    np.testing.assert_array_equal(codes.unpack(words, bits.shape[-1]), bits)


@given(hnp.arrays(np.bool_, st.integers(1, 200)))
def test_words_are_the_digits_of_one_binary_number(bits):
    number = sum(int(word) << 64 * w for w, word in enumerate(codes.pack(bits)))
    assert number == sum(1 << b for b, bit in enumerate(bits) if bit)


@given(bits_of(max_side=140))
def test_bytes_are_those_of_packbits(bits):
    octets = codes.pack(bits).astype("<u8").view(np.uint8)
    expected = np.packbits(bits, axis=-1, bitorder="little")
    np.testing.assert_array_equal(octets[..., : expected.shape[-1]], expected)
    assert not octets[..., expected.shape[-1] :].any()


@given(hnp.arrays(st.sampled_from([np.uint8, np.int64, np.int8]), (3, 70), elements=st.integers(0, 1)))
def test_integers_pack_like_booleans(bits):
    np.testing.assert_array_equal(codes.pack(bits), codes.pack(bits != 0))


@st.composite
def spans(draw):
    bits = draw(st.integers(1, 200))
    start = draw(st.integers(0, bits - 1))
    return bits, start, draw(st.integers(start + 1, bits))


@given(spans(), st.integers(0, 2**32))
def test_span_is_a_slice(span, seed):
    width, start, stop = span
    bits = np.random.default_rng(seed).random((4, width)) < 0.5
    words = codes.pack(bits)
    np.testing.assert_array_equal(codes.span(words, start, stop), codes.pack(bits[:, start:stop]))
    np.testing.assert_array_equal(words, codes.pack(bits))  # untouched


@given(spans())
def test_span_mask_selects_the_span(span):
    bits, start, stop = span
    mask = codes.unpack(codes.span_mask(start, stop, bits), bits)
    np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(start, stop))


@given(st.integers(1, 140), st.integers(0, 2**32))
def test_hamming_counts_differing_bits(bits, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((5, bits)) < 0.5, rng.random((3, bits)) < 0.5
    distance = codes.hamming(codes.pack(a)[:, None], codes.pack(b)[None])
    assert distance.dtype == np.int64
    assert distance.tolist() == [[sum(x != y for x, y in zip(p, r, strict=True)) for r in b] for p in a]


def test_codes_of_other_lengths_have_no_distance():
    with pytest.raises(ValueError, match="codes of 1 and of 2 words have no distance"):
        codes.hamming(codes.pack(np.ones((2, 64), bool)), codes.pack(np.ones((2, 128), bool)))


def test_codes_of_no_items():
    assert codes.pack(np.zeros((0, 70), bool)).shape == (0, 2)
    assert codes.unpack(np.zeros((0, 2), np.uint64), 70).shape == (0, 70)


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (np.zeros((2, 8), np.float32), "threshold"),
        (np.array([[0, 2]]), "0 or 1"),
        (np.array([[-1, 1]]), "code > 0"),
        (np.zeros((2, 0), bool), "at least one bit"),
        (np.True_, "at least one bit"),
    ],
)
def test_pack_rejects(bits, reason):
    with pytest.raises(ValueError, match=reason):
        codes.pack(bits)


def test_unpack_rejects_another_number_of_words():
    with pytest.raises(ValueError, match="65 bits take 2 words, got 1"):
        codes.unpack(np.zeros((3, 1), np.uint64), 65)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (4, 2), (0, 65)])
def test_spans_outside_the_code_are_rejected(start, stop):
    with pytest.raises(ValueError, match="a span needs"):
        codes.span_mask(start, stop, 64)
    with pytest.raises(ValueError, match="a span needs"):
        codes.span(np.zeros((2, 1), np.uint64), start, stop)


@st.composite
def code_tables(draw):
    """Codes (n, K, q) of which many are equal, and which of them are kept."""
    bits = draw(st.sampled_from([1, 2, 64, 70]))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    words = rng.random((3, bits)) < 0.5
    kept = rng.random(shape) < 0.6
    kept[:, 0] = True
    return words[rng.integers(3, size=shape)], kept


@given(code_tables())
def test_code_sets_keep_the_first_of_equal_codes(table):
    bits, kept = table
    sets = codes.CodeSets.of(bits, kept)
    for i, row in enumerate(bits):
        seen = []
        for k, code in enumerate(row.tolist()):
            assert sets.kept[i, k] == (kept[i, k] and code not in seen)
            seen += [code] if kept[i, k] else []
    np.testing.assert_array_equal(codes.unpack(sets.words, sets.bits), bits)
    assert (len(sets), sets.bits, sets.words.dtype) == (len(bits), bits.shape[-1], np.uint64)
    assert sets.anhc == pytest.approx(np.mean([len({tuple(c) for c in row[k]}) for row, k in zip(*table, strict=True)]))


@given(code_tables())
def test_filling_repeats_codes_of_the_item(table):
    sets = codes.CodeSets.of(*table)
    assert sets.filled.shape == sets.words.shape
    for words, own, kept in zip(sets.filled.tolist(), sets.words.tolist(), sets.kept, strict=True):
        assert {tuple(w) for w in words} == {tuple(w) for w, k in zip(own, kept, strict=True) if k}
        assert words[0] == own[0]


@given(code_tables(), st.data())
def test_rows_of_code_sets(table, data):
    bits, kept = table
    mask = data.draw(hnp.arrays(np.bool_, len(bits)).filter(np.any))
    for rows in (mask, np.flatnonzero(mask)[::-1], slice(0, int(mask.sum()))):
        some, same = codes.CodeSets.of(bits, kept)[rows], codes.CodeSets.of(bits[rows], kept[rows])
        np.testing.assert_array_equal(some.words, same.words)
        np.testing.assert_array_equal(some.kept, same.kept)
        assert some.bits == same.bits


def test_one_code_each_and_all_codes_kept():
    single = codes.CodeSets.of(np.eye(3, dtype=bool))
    assert (single.words.shape, single.anhc) == ((3, 1, 1), 1)
    every = codes.CodeSets.of([[[1, 0], [0, 1], [1, 0]]])
    assert (every.kept.tolist(), every.anhc) == ([[True, True, False]], 2)


CODES = np.zeros((2, 3, 5), bool)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: codes.CodeSets.of(np.zeros(5, bool)), r"\(n, q\) or \(n, K, q\), got \(5,\)"),
        (lambda: codes.CodeSets.of(CODES.astype(float)), "threshold"),
        (lambda: codes.CodeSets.of(CODES, np.ones((2, 2), bool)), r"kept must be bool \(2, 3\), got bool \(2, 2\)"),
        (lambda: codes.CodeSets.of(CODES, np.ones((2, 3))), "kept must be bool .* got float64"),
        (lambda: codes.CodeSets.of(CODES, np.zeros((2, 3), bool)), "always has its own code"),
        (lambda: codes.CodeSets.of(CODES[:0]), "not empty"),
        (lambda: codes.CodeSets.of(CODES)[np.zeros(2, bool)], "not empty"),
        (lambda: codes.CodeSets(codes.pack(CODES), np.ones((2, 3), bool), 65), "packed codes of 65 bits"),
        (lambda: codes.CodeSets(~codes.pack(CODES), np.ones((2, 3), bool), 5), "bits set beyond bit 4"),
        (lambda: codes.CodeSets(codes.pack(CODES).astype(int), np.ones((2, 3), bool), 5), "got int64"),
        (lambda: codes.CodeSets(codes.pack(CODES[:, 0]), np.ones((2, 1), bool), 5), r"got uint64 \(2, 1\)"),
    ],
)
def test_code_sets_reject(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()
