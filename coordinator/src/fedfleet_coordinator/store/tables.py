"""One table for each kind of row, and how a row becomes a tuple of columns and back.

Everything is made from the structs in `rows`, so a field is written down once. Text sorts by code point everywhere, as
Python sorts it. What has structure (labels, configurations, metrics) is one column of msgpack: unlike JSON it gives
back NaN, infinity and bytes as they were put in.
"""

import enum
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, Double, Index, LargeBinary, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

from fedfleet_coordinator.rows import KINDS, Row

METADATA = MetaData()
_TEXT = Text().with_variant(Text(collation="C"), "postgresql")
_INDEXES = {
    "run": (("state",),),
    "exchange": (("state",), ("run", "state")),
    "task": (("run", "n", "state"), ("run", "agent", "state"), ("agent", "state")),
    "blob": (("stored_at",),),
    "ref": (("holder",), ("run", "n")),
    "agent": (("token",), ("state",)),
}

Codec = Callable[[Any], Any]


class Shape:
    """How the rows of one kind are kept.

    Attributes:
        names: the fields, in the order of the columns.
        table: where they are. primary: the columns of the key.
    """

    def __init__(self, kind: type[Row]) -> None:
        self.kind = kind
        self.names = kind.__struct_fields__
        hints = typing.get_type_hints(kind)
        kept = {name: _kept(hints[name]) for name in self.names}
        name = kind.__name__.lower()
        self.table = Table(
            name,
            METADATA,
            *(
                Column(field, column, primary_key=field in kind.KEY, nullable=nullable, autoincrement=False)
                for field, (column, nullable, _, _) in kept.items()
            ),
            *(Index("_".join(("ix", name, *fields)), *fields) for fields in _INDEXES.get(name, ())),
        )
        self.primary = tuple(self.table.c[field] for field in kind.KEY)
        self._writers = {field: write for field, (_, _, write, _) in kept.items() if write is not None}
        self._readers = [(i, read) for i, field in enumerate(self.names) if (read := kept[field][3]) is not None]
        self._in_order = [(i, self._writers[field]) for i, field in enumerate(self.names) if field in self._writers]

    def column(self, name: str, value: Any) -> Any:
        """Return what the column of a field holds for a value."""
        write = self._writers.get(name)
        return value if write is None or value is None else write(value)

    def key(self, key: tuple[Any, ...]) -> dict[str, Any]:
        """Return what the columns of a key hold."""
        return {name: self.column(name, value) for name, value in zip(self.kind.KEY, key, strict=True)}

    def columns(self, row: Row) -> dict[str, Any]:
        """Return what the columns of a row hold."""
        values = [getattr(row, name) for name in self.names]
        for i, write in self._in_order:
            if values[i] is not None:
                values[i] = write(values[i])
        return dict(zip(self.names, values, strict=True))

    def row(self, columns: typing.Sequence[Any]) -> Row:
        """Return the row that these columns hold."""
        values = list(columns)
        for i, read in self._readers:
            if values[i] is not None:
                values[i] = read(values[i])
        return self.kind(**dict(zip(self.names, values, strict=True)))


def _kept(hint: Any) -> tuple[TypeEngine[Any], bool, Codec | None, Codec | None]:
    """Return column type, whether it may be empty, and the functions that write and read a value of this type."""
    nullable = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        some = [one for one in typing.get_args(hint) if one is not type(None)]
        nullable = len(some) < len(typing.get_args(hint))
        hint = some[0] if len(some) == 1 else Any
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    if typing.get_origin(hint) is typing.Literal or hint is str:
        return _TEXT, nullable, _text, None
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        return _TEXT, nullable, str.__str__, hint
    plain: dict[Any, tuple[TypeEngine[Any], Codec | None, Codec | None]] = {
        bool: (Boolean(create_constraint=False), None, bool),
        int: (BigInteger(), None, None),
        float: (Double(), float, None),
        bytes: (LargeBinary(), None, bytes),
    }
    if hint in plain:
        column, write, read = plain[hint]
        return column, nullable, write, read
    return LargeBinary(), nullable or hint is Any, msgspec.msgpack.encode, msgspec.msgpack.Decoder(hint).decode


def _text(value: str) -> str:
    """Return the text as databases take it: PostgreSQL has no NUL, and no database half a surrogate pair."""
    if value.isascii() and "\0" not in value:
        return value
    return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


SHAPES: dict[type[Row], Shape] = {kind: Shape(kind) for kind in KINDS}
