"""What announcements say of their peers' worth, on the wire."""

from __future__ import annotations

from swarm.types import CellValue
from swarm.wire import bounds
from swarm.wire.v1 import exchange_pb2 as pb

#: Of one announcement.
MAX_CELL_VALUES = 64
MAX_DIFFICULTY_CHARS = 200
#: Far more rollouts than anybody makes, far fewer than a float32 can hold.
MAX_MASS = 1e12


def value_message(cell: CellValue) -> pb.CellValue:
    return pb.CellValue(source=cell.source, difficulty=cell.difficulty, value=cell.value, mass=cell.mass)


def read_value(message: pb.CellValue) -> CellValue:
    return CellValue(
        source=message.source,
        difficulty=message.difficulty,
        value=bounds.shortest(message.value),
        mass=bounds.shortest(message.mass),
    )


def bounded_value(cell: CellValue) -> CellValue:
    """`cell`, if every peer would read it; else WireError."""
    bounds.label("source of a value", cell.source)
    bounds.label("difficulty of a value", cell.difficulty, MAX_DIFFICULTY_CHARS)
    bounds.between("value", cell.value, 0, 1)
    bounds.between("mass of a value", cell.mass, 0, MAX_MASS)
    return cell
