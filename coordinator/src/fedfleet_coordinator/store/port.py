"""What the coordinator asks of a store."""

from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from fedfleet_coordinator.rows import Row

R = TypeVar("R", bound=Row)


class Tx(Protocol):
    """A transaction: everything in it happens, or nothing of it does. Sees its own writes."""

    def get(self, kind: type[R], *key: Any) -> R | None:
        """Return the row of that kind with that key, locked until the transaction ends, or None."""
        ...

    def find(
        self,
        kind: type[R],
        *,
        order: tuple[str, ...] = (),
        after: tuple[str, Any] | None = None,
        limit: int | None = None,
        **equal: Any,
    ) -> list[R]:
        """Return the rows whose fields equal those given.

        Args:
            order: fields to sort by, ascending; "-name" descending. Default: by key.
            after: only rows whose field (first) is greater than a value (second).
            limit: at most so many rows.
            equal: a value, or a tuple of values of which the field must be one.
        """
        ...

    def put(self, *rows: Row) -> None:
        """Insert the rows, or replace those with the same keys."""
        ...

    def delete(self, *rows: Row) -> None:
        """Remove the rows with these keys; one that is not there is no error."""
        ...


class Store(Protocol):
    """Where rows are kept."""

    def transaction(self) -> AbstractContextManager[Tx]:
        """Begin a transaction; leaving it commits durably, leaving it by an exception changes nothing.

        Writers are serialised: what is read in a transaction cannot change before it ends.

        Raises:
            StoreUnavailable: the database cannot be reached or is full; nothing was changed. Try again later.
        """
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...
