"""White noise: a pure function of seed, member, stage, day, row and column, and as good as independent numbers."""

from itertools import combinations, product

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xdeepsd.models.noise import day_keys, white_noise

WIDE = st.integers(-(2**40), 2**40)
SOME = st.lists(st.integers(-(2**31), 2**31), min_size=1, max_size=4, unique=True)


def by_hand(seed, member, stage, channel, day, row, column):
    """One number in Python's own integers."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = 0
    for word in (seed, member, stage, day, channel, row):
        key = mix(mix((word + golden) % 2**64) ^ ((key + golden) % 2**64))
    bits = mix((key + column * golden) % 2**64)
    return np.float32(stats.norm.ppf(((bits >> 12) + 0.5) / 2**52))


@settings(max_examples=50, deadline=None)
@given(WIDE, st.integers(0, 1000), st.integers(0, 9), SOME, SOME, SOME)
def test_every_number_depends_on_its_own_place_alone(seed, member, stage, days, rows, columns):
    noise = white_noise(seed, member, days, rows, columns, stage=stage, channels=2)
    assert noise.dtype == np.float32
    assert noise.shape == (len(days), 2, len(rows), len(columns))
    for (d, day), c, (i, row), (j, column) in product(
        enumerate(days), range(2), enumerate(rows), enumerate(columns)
    ):  # fmt: skip
        expected = by_hand(seed, member, stage, c, day, row, column)
        np.testing.assert_allclose(noise[d, c, i, j], expected, rtol=1e-6)
        alone = white_noise(seed, member, [day], [row], [column], stage=stage, channels=c + 1)
        assert alone[0, c, 0, 0] == noise[d, c, i, j]


def test_the_generator_is_splitmix64():
    """The first outputs for the seed 1234567, as published with the algorithm (state advanced before each)."""
    from xdeepsd.models.noise import _GOLDEN, _mix

    with np.errstate(over="ignore"):
        found = _mix(np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * _GOLDEN)
    assert found.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_any_cut_gives_the_same_bits():
    days, rows, columns = day_keys(pd.date_range("2000-02-27", periods=6)), np.arange(-3, 20), np.arange(100, 131)
    whole = white_noise(7, 3, days, rows, columns, channels=2)
    for d, r, c in ((slice(2, 5), slice(4, 9), slice(1, 30, 7)), (slice(None, None, -1), slice(0, 1), slice(30, 31))):
        part = white_noise(7, 3, days[d], rows[r], columns[c], channels=2)
        np.testing.assert_array_equal(part, whole[d, :, r, c])
    assert white_noise(7, 3, days[:0], rows, columns).shape == (0, 1, 23, 31)


def samples():
    """Noise that differs in one thing at a time from the first: seed, member, stage, channel, day, row, column."""
    cells = np.arange(300)
    base = white_noise(0, 0, [20000101], cells, cells, channels=2)
    yield base[0, 0]
    yield base[0, 1]
    for seed, member, day, shift, stage in (
        (1, 0, 20000101, 0, 0), (0, 1, 20000101, 0, 0), (0, 0, 20000102, 0, 0), (0, 0, 20000101, 300, 0),
        (0, 0, 20000101, 0, 1), (1, 1, 20000101, 0, 0), (0, 0, 20010101, 0, 0), (2**32, 0, 20000101, 0, 0),
    ):  # fmt: skip
        yield white_noise(seed, member, [day], cells + shift, cells, stage=stage)[0, 0]


def test_the_numbers_are_standard_normal():
    for noise in samples():
        n = noise.size
        assert abs(noise.mean()) < 5 / np.sqrt(n)
        assert abs(noise.astype(float).var() - 1) < 5 * np.sqrt(2 / n)
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    many = white_noise(5, 0, np.arange(40), np.arange(300), np.arange(300)).ravel()
    assert stats.kstest(many, "norm").pvalue > 1e-3
    assert (many > 4).sum() == pytest.approx(
        many.size * stats.norm.sf(4), abs=5 * np.sqrt(many.size * stats.norm.sf(4))
    )
    assert np.isfinite(many).all()


def test_nothing_is_correlated():
    noises = list(samples())
    limit = 5 / np.sqrt(noises[0].size)
    for one, other in combinations(noises, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < limit
        assert abs(np.corrcoef(one.ravel() ** 2, other.ravel() ** 2)[0, 1]) < limit
    for noise in noises:  # neighbours, and up to 20 cells away
        for lag in range(1, 21):
            for a, b in ((noise[lag:], noise[:-lag]), (noise[:, lag:], noise[:, :-lag]),
                         (noise[lag:, lag:], noise[:-lag, :-lag])):  # fmt: skip
                assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 6 / np.sqrt(a.size)
    for one in noises:  # neither rows nor columns nor maps repeat
        assert len(np.unique(one)) > 0.99 * one.size


def test_members_and_seeds_of_small_numbers_do_not_swap():
    """Hashing seed and member together must not make (1, 2) of (2, 1), nor of (0, 3)."""
    keys = {white_noise(s, m, [d], [r], [c], stage=k).item() for s, m, k, d, r, c in product(range(3), repeat=6)}
    assert len(keys) == 3**6


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian", "proleptic_gregorian"])
def test_days_are_known_by_their_date_in_any_calendar(calendar):
    time = xr.date_range("1999-12-25", periods=80, calendar=calendar, use_cftime=True)
    keys = day_keys(time)
    assert keys[0] == 19991225
    assert len(set(keys.tolist())) == 80
    np.testing.assert_array_equal(day_keys(time[7:9]), keys[7:9])
    if calendar == "proleptic_gregorian":
        np.testing.assert_array_equal(keys, day_keys(pd.date_range("1999-12-25", periods=80)))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_dates_before_1970_and_hours_of_the_day(unit):
    dates = ["1850-01-01T00:00", "1969-12-31T23:59", "1970-01-01T12:00", "2000-02-29T06:00", "2100-12-31T18:00"]
    expected = [18500101, 19691231, 19700101, 20000229, 21001231]
    assert day_keys(np.array(dates, f"datetime64[{unit}]")).tolist() == expected
    assert day_keys([cftime.DatetimeNoLeap(1850, 1, 1, 12)]).tolist() == [18500101]


def test_other_times():
    assert day_keys(np.array([0, 36, 240], "timedelta64[h]")).tolist() == [0, 1, 10]
    with pytest.raises(TypeError, match="of dtype int64; needed: dates"):
        day_keys(np.arange(3))
