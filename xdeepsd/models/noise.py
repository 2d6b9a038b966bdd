"""White noise that is a function of place, date and member: the same numbers however the work is cut up (numpy).

Nothing is drawn one after another, so that any chunk, any part of the days or of the domain, and any worker gives the
numbers that the whole would give.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd


def white_noise(
    seed: int, member: int, days: Any, rows: Any, columns: Any, *, stage: int = 0, channels: int = 1
) -> np.ndarray:
    """Independent standard normal numbers, each a function of its seed, member, stage, channel, day, row and column.

    Parameters
    ----------
    seed, member, stage
        Whole numbers; another value gives independent numbers.
    days
        ``(day,)`` whole numbers, such as those of `day_keys`.
    rows, columns
        ``(lat,)`` and ``(lon,)``: whole numbers of the cells on a grid that does not depend on the part computed.
    channels
        How many maps for each day; the first ones do not depend on how many there are.

    Returns
    -------
    ``(day, channel, lat, lon)`` float32. The same bits for any selection of days, rows and columns.

    Notes
    -----
    A row is a stream of SplitMix64 (Steele et al., OOPSLA 2014), entered at the column; its start is the hash of all
    else. The upper 52 bits make a uniform number, whose normal quantile is the result.

    >>> whole = white_noise(0, 1, [20010203], rows=[5, 6], columns=[7, 8])
    >>> bool(whole[0, 0, 1, 0] == white_noise(0, 1, [20010203], rows=[6], columns=[7]).item())
    True
    """
    days, rows, columns = (np.asarray(values).astype(np.int64).view(np.uint64) for values in (days, rows, columns))
    key = np.zeros((), np.uint64)
    for number in (seed, member, stage):
        key = _mixed(key, np.asarray(number, np.int64).view(np.uint64))
    noise = np.empty((days.size, channels, rows.size, columns.size), np.float32)
    maps = _mixed(_mixed(key, days)[:, None], np.arange(channels, dtype=np.uint64))
    with np.errstate(over="ignore"):
        along = columns * _GOLDEN
        for day, channel in np.ndindex(maps.shape):  # one map at a time stays in the cache
            bits = _mix(_mixed(maps[day, channel], rows)[:, None] + along)
            noise[day, channel] = ndtri(((bits >> np.uint64(12)) + 0.5) * 2.0**-52)
    return noise


def day_keys(time: Any) -> np.ndarray:
    """A whole number for each date, ``yyyymmdd``, whatever the calendar and the time of day; for `white_noise`.

    Parameters
    ----------
    time
        ``(time,)`` datetime64 or cftime dates; or lead times (timedelta64), which give whole days.

    Returns
    -------
    ``(time,)`` int64. TypeError for anything else.

    >>> day_keys(np.array(["2001-02-03T12"], "datetime64[ns]"))
    array([20010203])
    """
    time = np.asarray(time)
    if time.dtype.kind == "m":
        return time.astype("timedelta64[D]").astype(np.int64)
    if time.dtype.kind == "M":
        years, months, days = (time.astype(f"datetime64[{unit}]") for unit in "YMD")
        month = (months - years).astype(np.int64) + 1  # months since January
        day = (days - months).astype(np.int64) + 1
        return (years.astype(np.int64) + 1970) * 10000 + month * 100 + day
    if time.dtype == object and all(hasattr(date, "timetuple") for date in time):
        return np.array([date.year * 10000 + date.month * 100 + date.day for date in time], np.int64)
    raise TypeError(f"The times are of dtype {time.dtype}; needed: dates (datetime64 or cftime).")


def _mixed(key: np.ndarray, word: np.ndarray) -> np.ndarray:
    """The hash of a key and one more word."""
    with np.errstate(over="ignore"):
        return _mix(_mix(word + _GOLDEN) ^ (key + _GOLDEN))


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of ``z``."""
    z = z ^ (z >> np.uint64(30))
    with np.errstate(over="ignore"):
        z = z * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
