"""Draws: random numbers as functions of (seed, stream, ids), the same wherever and whenever they are evaluated."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F


@dataclass(frozen=True)
class Draws:
    """Random columns of one seed; equal stream and ids give an equal number, others an independent one."""

    seed: int

    def uniform(self, stream: str, *ids: Column) -> Column:
        """Uniform in (0, 1), neither end included."""
        keys = (F.lit(self.seed), F.lit(zlib.crc32(stream.encode())), *ids)
        hashed = F.xxhash64(*(key.cast("bigint") for key in keys))
        # The upper 53 bits, which a double holds exactly.
        return (F.shiftrightunsigned(hashed, 11).cast("double") + F.lit(0.5)) / F.lit(float(2**53))

    def normal(self, stream: str, *ids: Column) -> Column:
        """Standard normal. Source: Box and Muller (1958)."""
        radius = F.sqrt(F.lit(-2.0) * F.log(self.uniform(f"{stream}/radius", *ids)))
        return radius * F.cos(F.lit(2 * math.pi) * self.uniform(f"{stream}/angle", *ids))

    def exponential(self, mean: float, stream: str, *ids: Column) -> Column:
        """Exponential with this mean."""
        return F.lit(-mean) * F.log(self.uniform(stream, *ids))

    def below(self, count: Column | int, stream: str, *ids: Column) -> Column:
        """A whole number from 0 to ``count`` - 1."""
        return F.floor(count * self.uniform(stream, *ids))


def dot(left: Column, right: Column) -> Column:
    """Sum of products of two arrays of double, always added in their order."""
    products = F.zip_with(left, right, lambda one, other: one * other)
    return F.aggregate(products, F.lit(0.0), lambda total, product: total + product)


def chosen(values: tuple[float, ...], place: Column) -> Column:
    """The literal at a 0-based place."""
    return F.element_at(F.array(*(F.lit(value) for value in values)), place.cast("int") + 1)
