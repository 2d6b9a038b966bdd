"""Units of precipitation, by the pint registry of cf-xarray."""

from __future__ import annotations

import functools
import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pint

RATE = "mm day-1"  # what models are in unless told otherwise; known without the registry
ACCEPTED = (
    "mm day-1", "mm/day", "mm d-1", "mm h-1", "mm s-1", "m s-1", "m day-1", "inch day-1", "kg m-2 s-1", "kg m-2 day-1",
)  # fmt: skip
ACCEPTED_DAILY = ("mm", "inch", "m", "kg m-2")

# What files write and pint does not know: periods of several hours ("mm/3h", "mm 3hr-1"), amounts per step, the "da" of
# some NCEP files (to pint a tenth of a year), and words that say that it is water.
_HOURS = r"\(?(\d+)\s*(h(?:ou)?rs?|h|d(?:ays?)?)\)?"
_WRITTEN = (
    (re.compile(r"\b(of |lwe |liquid )*water( equivalent)?\b|\blwe\b|\bw\.\s?e\.", re.IGNORECASE), ""),
    (re.compile(r"(/|\bper\b)\s*(time[\s_-]?)?step\b|\b(time[\s_-]?)?step(-1|\*\*-1|\^-1)", re.IGNORECASE), ""),
    (re.compile(r"(/\s*|\bper\s+)da\b"), r"\1day"),
    (re.compile(rf"(?:/|\bper\b)\s*{_HOURS}(?![\w^*-])", re.IGNORECASE), r" / (\1 \2)"),
    (re.compile(rf"(?<![\w/^*.-]){_HOURS}\s*(?:\*\*|\^)?-1", re.IGNORECASE), r" / (\1 \2)"),
)


@functools.cache
def _registry() -> pint.UnitRegistry:
    """The registry, when it is first needed: to build it takes a quarter of a second."""
    # It redefines a few units on purpose; pint would log a warning for each.
    log = logging.getLogger("pint.util")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import cf_xarray.units
    finally:
        log.setLevel(level)
    return cf_xarray.units.units


@functools.lru_cache(maxsize=64)
def _parse(units: str) -> pint.Quantity:
    """One unit of ``units``; ``mm/3h`` is a third of a millimetre an hour."""
    import pint

    text, registry = units.strip(), _registry()
    for written, known in _WRITTEN:
        text = written.sub(known, text)
    try:
        return registry.Quantity(1.0, registry.parse_units(text))
    except (pint.errors.PintError, ValueError):
        if text != text.lower():  # "Inches", "MM/DAY"
            return _parse(text.lower())
        if not re.search(r"^[\d.]|\(\d+ ", text):  # a number in front, or several hours
            raise
        return registry.Quantity(registry.parse_expression(text))


def is_amount(units: str) -> bool:
    """True for units of an amount (``mm``, ``kg m-2``), which make a rate only in daily data.

    >>> is_amount("mm"), is_amount("mm day-1")
    (True, False)
    """
    if units.strip() == RATE:
        return False
    quantity = _parse(units)
    return bool(quantity.check("[length]") or quantity.check("[mass] / [length] ** 2"))


def _as_rate(units: str) -> pint.Quantity:
    """One unit of ``units`` as a length per time; amounts are taken as daily."""
    quantity, registry = _parse(units), _registry()
    if quantity.check("[mass] / [length] ** 2") or quantity.check("[mass] / [length] ** 2 / [time]"):
        quantity = quantity / registry.Quantity(1000.0, "kg m-3")
    if quantity.check("[length]"):
        quantity = quantity / registry.Quantity(1.0, "day")
    return quantity.to("mm / day")


def precipitation_factor(source: str | None, target: str = RATE) -> float:
    """The number by which to multiply precipitation in ``source`` units to get ``target`` units.

    A kilogram of water per square metre is a millimetre. ``mm``, ``inch``, ``m`` and ``kg m-2`` are taken as daily
    amounts. Raises ValueError if the units are missing, unknown or not units of precipitation.

    >>> round(precipitation_factor("kg m-2 s-1"))
    86400
    >>> precipitation_factor("mm", "mm/day"), round(precipitation_factor("mm/3h"), 9)
    (1.0, 8.0)
    """
    accepted = f"Accepted: {', '.join(ACCEPTED)}; for daily amounts {', '.join(ACCEPTED_DAILY)}."
    if source is None or not str(source).strip():
        raise ValueError(
            f"The precipitation has no units. {accepted} Type ds['NAME'].attrs['units'] = 'mm day-1' with its true "
            "units, or units='mm day-1' to downscale."
        )
    if str(source).strip() == str(target).strip():
        return 1.0
    import pint

    factors = []
    for units in (str(source), target):
        try:
            factors.append(_as_rate(units).magnitude)
        except (pint.errors.PintError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise ValueError(
                f"The units {units!r} are not units of precipitation. {accepted} "
                "Type ds['NAME'].attrs['units'] = 'mm day-1' with its true units, or units='mm day-1' to downscale."
            ) from error
    return float(factors[0] / factors[1])
