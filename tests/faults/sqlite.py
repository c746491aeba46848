"""SQLite's own writes, watched and made to fail: its "unix" VFS opens files as ever, with three of their methods ours.

What SQLite writes and fsyncs (xWrite, xTruncate, xSync) is recorded in order, and any of it can be refused with an
error of SQLite's. Needs the library that Python's `sqlite3` uses as a shared one.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FULL, IOERR_WRITE, IOERR_FSYNC = 13, 10 | 3 << 8, 10 | 4 << 8
SECTOR = 512

_Open = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)
)
_Delete = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
_Write = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_Truncate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("max_path", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("delete", ctypes.c_void_p),
    )


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, version 3."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("close", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("write", ctypes.c_void_p),
        ("truncate", ctypes.c_void_p),
        ("sync", ctypes.c_void_p),
        *((f"other{n}", ctypes.c_void_p) for n in range(13)),
    )


@dataclass(frozen=True)
class Event:
    kind: str
    """open, write, truncate, sync, delete."""
    file: str
    offset: int = 0
    data: bytes = b""


@dataclass
class Watched:
    events: list[Event] = field(default_factory=list)
    refuse: Callable[[Event], int] = lambda event: 0
    """SQLite's error code for what is not to be done, 0 for everything else."""

    def take(self, event: Event) -> int:
        if code := self.refuse(event):
            return code
        self.events.append(event)
        return 0


def library() -> ctypes.CDLL | None:
    """The one that `sqlite3` uses; None where it is a part of Python."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libsqlite3" in line:
            return ctypes.CDLL(line.split()[-1])
    try:
        linked = ctypes.CDLL(_sqlite3.__file__)
        return linked if hasattr(linked, "sqlite3_vfs_find") else None
    except OSError:
        return None


@contextmanager
def watching() -> Iterator[Watched]:
    """Files that SQLite opens inside are watched; they must be closed inside, too."""
    sqlite = library()
    assert sqlite is not None
    sqlite.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    vfs = sqlite.sqlite3_vfs_find(None).contents
    watched, kept = Watched(), list[object]()
    opened, delete = _Open(vfs.open), _Delete(vfs.delete)
    names: dict[int, str] = {}
    ours: dict[int, _Methods] = {}

    def methods(original: int) -> _Methods:
        if original not in ours:
            copy = _Methods.from_buffer_copy(_Methods.from_address(original))
            write, truncate, sync = _Write(copy.write), _Truncate(copy.truncate), _Sync(copy.sync)

            @_Write
            def our_write(file: int, data: int, size: int, offset: int) -> int:
                event = Event("write", names[file], offset, ctypes.string_at(data, size))
                return watched.take(event) or write(file, data, size, offset)

            @_Truncate
            def our_truncate(file: int, size: int) -> int:
                return watched.take(Event("truncate", names[file], size)) or truncate(file, size)

            @_Sync
            def our_sync(file: int, flags: int) -> int:
                return watched.take(Event("sync", names[file])) or sync(file, flags)

            for name, callback in (("write", our_write), ("truncate", our_truncate), ("sync", our_sync)):
                setattr(copy, name, ctypes.cast(callback, ctypes.c_void_p).value)
                kept.append(callback)
            ours[original] = copy
        return ours[original]

    @_Open
    def our_open(vfs: int, name: int | None, file: int, flags: int, out: ctypes._Pointer) -> int:
        code = opened(vfs, name, file, flags, out)
        pointer = ctypes.c_void_p.from_address(file)
        if code == 0 and name is not None and pointer.value:
            names[file] = os.path.basename(ctypes.string_at(name).decode())  # SQLite keeps the pointer
            watched.take(Event("open", names[file]))
            pointer.value = ctypes.addressof(methods(pointer.value))
        return code

    @_Delete
    def our_delete(vfs: int, name: bytes, sync: int) -> int:
        return watched.take(Event("delete", os.path.basename(name.decode()), sync)) or delete(vfs, name, sync)

    before = vfs.open, vfs.delete
    vfs.open = ctypes.cast(our_open, ctypes.c_void_p).value
    vfs.delete = ctypes.cast(our_delete, ctypes.c_void_p).value
    try:
        yield watched
    finally:
        vfs.open, vfs.delete = before


def files_after(
    before: Mapping[str, bytes], events: list[Event], image: str, rng: random.Random | None = None
) -> dict[str, bytes]:
    """What is there after a power cut behind the last of `events`: "all" of it, what was "synced", or that and of each
    later write any of its sectors ("mixed", by `rng`)."""
    durable = {name: bytearray(content) for name, content in before.items()}
    pending: dict[str, list[Event]] = {}
    for event in events:
        if event.kind == "sync":
            for write in pending.pop(event.file, []):
                _apply(durable, write)
        elif event.kind == "delete" and event.offset:  # and the directory is synced
            pending.pop(event.file, None)
            _apply(durable, event)
        else:
            pending.setdefault(event.file, []).append(event)
    for writes in pending.values():
        for write in writes:
            if image == "all":
                _apply(durable, write)
            elif write.kind == "open":
                durable.setdefault(write.file, bytearray())
            elif image == "mixed" and write.kind == "write":
                assert rng is not None
                for start in range(0, len(write.data), SECTOR):
                    if rng.random() < 0.5:
                        piece = Event("write", write.file, write.offset + start, write.data[start : start + SECTOR])
                        _apply(durable, piece)
    return {name: bytes(content) for name, content in durable.items()}


def _apply(files: dict[str, bytearray], event: Event) -> None:
    if event.kind == "delete":
        files.pop(event.file, None)
        return
    content = files.setdefault(event.file, bytearray())
    if event.kind == "write":
        content.extend(bytes(max(0, event.offset - len(content))))
        content[event.offset : event.offset + len(event.data)] = event.data
    elif event.kind == "truncate":
        del content[event.offset :]
