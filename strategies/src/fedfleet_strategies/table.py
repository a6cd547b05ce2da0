"""What the server knows of each device: one row of numbers, in columns sorted by id; a million devices are 28 MiB."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

COLUMNS: dict[str, tuple[str, float]] = {
    "loss": ("<f4", np.nan),
    "seconds": ("<f4", np.nan),
    "asked": ("<i4", 0),
    "folded": ("<i4", 0),
    "version": ("<i4", 0),
}
"""Name of each column, its type, and what a device has that was never heard of."""


class ClientTable:
    """One row for each device that was ever asked.

    Attributes:
        ids: of the devices, sorted, uint64.
        loss: as last reported. seconds: of its last training.
        asked, folded: the last round it was asked in, and the last its update was used in; 0 for never.
        version: the round whose model it surely has; 0 for none.
    """

    loss: NDArray[np.float32]
    seconds: NDArray[np.float32]
    asked: NDArray[np.int32]
    folded: NDArray[np.int32]
    version: NDArray[np.int32]

    def __init__(self) -> None:
        self.ids = np.zeros(0, np.uint64)
        for name, (dtype, _) in COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype))

    def rows(self, ids: Sequence[int] | NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the rows of these devices; those that have none get one."""
        wanted = np.asarray(ids, np.uint64)
        new = np.setdiff1d(wanted, self.ids)
        if new.size:
            at = np.searchsorted(self.ids, new)
            self.ids = np.insert(self.ids, at, new)
            for name, (_, default) in COLUMNS.items():
                setattr(self, name, np.insert(getattr(self, name), at, default))
        found: NDArray[np.intp] = np.searchsorted(self.ids, wanted)
        return found

    def look(self, name: str, ids: NDArray[np.uint64]) -> NDArray[Any]:
        """Return a column for these devices; those without a row have its default. The table does not change."""
        column, default = getattr(self, name), COLUMNS[name][1]
        if not self.ids.size:
            return np.full(ids.size, default, column.dtype)
        at = np.minimum(np.searchsorted(self.ids, ids), self.ids.size - 1)
        found: NDArray[Any] = np.where(self.ids[at] == ids, column[at], column.dtype.type(default))
        return found

    def note(self, name: str, ids: Iterable[int], values: Any) -> None:
        """Set a column for these devices."""
        at = self.rows(list(ids))
        getattr(self, name)[at] = values

    def record(self) -> ArrayRecord:
        """Return the table as arrays."""
        columns = {name: Array(getattr(self, name)) for name in COLUMNS}
        return ArrayRecord({"ids": Array(self.ids), **columns})

    def restore(self, record: ArrayRecord) -> None:
        """Be the table that `record` was made of."""
        for name in ("ids", *COLUMNS):
            setattr(self, name, np.array(record[name].numpy()))
