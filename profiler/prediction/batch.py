"""Batch prediction: rows as arrays, networks as indices into them.

:func:`profiler.prediction.predict.sum_parts` does the same for one network; here a million take seconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from profiler.prediction.interpolate import Guess
from profiler.prediction.predict import Array, MissingPartsError
from profiler.table.latency_table import Row

__all__ = ["LatencyArrays", "Networks", "PartsSums"]

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Networks:
    """Networks as indices into :class:`LatencyArrays`.

    Attributes:
        network: ``(P,)`` network of each block, ascending.
        row: ``(P,)`` row of each block.
        count: number of networks ``N``.
    """

    network: Places
    row: Places
    count: int


@dataclass(frozen=True)
class PartsSums:
    """:class:`profiler.prediction.predict.PartsSum` of many networks as arrays ``(N,)``.

    ``ms`` and ``half_ms`` are NaN for a network with a failed block.
    """

    ms: Array
    half_ms: Array
    count: Array


@dataclass(frozen=True)
class LatencyArrays:
    """Rows of a table, and guesses for missing ones.

    Attributes:
        place: index of each key in the arrays.
        median_ms: ``(R,)``, NaN for failures.
        half_ms: ``(R,)`` half-widths of the intervals.
        guessed: ``(R,)`` whether a row is a guess.
    """

    place: Mapping[str, int]
    median_ms: Array
    half_ms: Array
    guessed: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Mapping[str, Row], guesses: Mapping[str, Guess] | None = None) -> Self:
        """Collect rows by key, from :meth:`profiler.table.latency_table.LatencyTable.current`, failures included.

        ``guesses`` serve keys without a row.
        """
        added = {key: guess for key, guess in (guesses or {}).items() if key not in rows}
        values = [
            *((row.median_ms, row.low_ms, row.high_ms) for row in rows.values()),
            *((guess.ms, guess.low_ms, guess.high_ms) for guess in added.values()),
        ]
        table = np.array(values, dtype=np.float64).reshape(-1, 3)  # None becomes NaN
        guessed = np.arange(len(values)) >= len(rows)
        place = {key: index for index, key in enumerate([*rows, *added])}
        return cls(place, table[:, 0], (table[:, 2] - table[:, 1]) / 2, guessed)

    def find(self, keys_of: Sequence[Iterable[str]]) -> Networks:
        """Look up the blocks of networks, given one key per block of each network, repeated ones included.

        Raises:
            MissingPartsError: some keys have no row; names them all.
        """
        listed = [keys if isinstance(keys, Sequence) else list(keys) for keys in keys_of]
        sizes = np.fromiter(map(len, listed), dtype=np.int64, count=len(listed))
        found = map(self.place.get, chain.from_iterable(listed))
        try:
            row = np.fromiter(found, dtype=np.int64, count=int(sizes.sum()))
        except TypeError:  # a missing key gave None
            absent = dict.fromkeys(key for keys in listed for key in keys if key not in self.place)
            raise MissingPartsError(list(absent)) from None
        return Networks(np.repeat(np.arange(len(listed)), sizes), row, len(listed))

    def sum(self, networks: Networks) -> PartsSums:
        """Add up the blocks of every network, as :func:`profiler.prediction.predict.sum_parts` does for one.

        Errors of guesses within one network count as fully correlated: their half-widths add up linearly.
        """
        network, row, count = networks.network, networks.row, networks.count
        ms = np.bincount(network, weights=self.median_ms[row], minlength=count).astype(np.float64, copy=False)
        # A repeated row repeats the same error: equal (network, row) pairs are counted first.
        pairs, times = np.unique(network * len(self.median_ms) + row, return_counts=True)
        owner, used = np.divmod(pairs, max(len(self.median_ms), 1))
        error = times * self.half_ms[used]
        guessed = self.guessed[used]
        together = np.bincount(owner[guessed], weights=error[guessed], minlength=count)
        apart = np.bincount(owner[~guessed], weights=error[~guessed] ** 2, minlength=count)
        counts: Array = np.bincount(network, minlength=count).astype(np.float64)
        return PartsSums(ms, np.hypot(together, np.sqrt(apart)), counts)
