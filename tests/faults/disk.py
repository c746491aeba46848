"""What would be on the disk had the power failed just now, by what was fsynced: of a directory that Python code writes.

Every fsync, rename, unlink and mkdir is an event. Just before each, the tree is looked at, so that writes which nobody
can watch (safetensors writes in Rust) are seen as well. Three images of every moment:

* "all": everything has reached the disk; the process alone was killed;
* "synced": nothing has that was not fsynced, contents as well as names;
* "torn": the names have, and of contents that were not fsynced the first half.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

IMAGES = ("all", "synced", "torn")

Names = dict[str, int]
"""Of a directory: name -> which node."""
Nodes = dict[int, Names | bytes]


@dataclass(frozen=True)
class Moment:
    event: str
    now: Nodes
    durable: Nodes
    root: int

    def write(self, image: str, to: Path, rng: random.Random | None = None) -> None:
        """Makes the tree of that image in `to`; "mixed" takes either of each name and content, by `rng`."""
        self._write(self.root, image, to, rng)

    def _write(self, node: int, image: str, to: Path, rng: random.Random | None) -> None:
        now, durable = self.now.get(node), self.durable.get(node)
        if isinstance(now if now is not None else durable, dict):
            to.mkdir(parents=True, exist_ok=True)
            names = self._chosen({}, now, durable, image, rng)
            for name, inner in names.items():
                self._write(inner, image, to / name, rng)
        else:
            to.write_bytes(self._chosen(b"", now, durable, image, rng))

    def _chosen(self, nothing: Any, now: Any, durable: Any, image: str, rng: random.Random | None) -> Any:
        is_name = isinstance(nothing, dict)
        if image == "mixed":
            assert rng is not None
            image = rng.choice(("all", "synced") if is_name else IMAGES)
        if image == "all" or (image == "torn" and is_name) or (image == "torn" and now == durable):
            return now if now is not None else durable
        if image == "torn":
            return (now if now is not None else durable or b"")[: len(now or b"") // 2]
        return nothing if durable is None else durable


class Recorder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.moments: list[Moment] = []
        self._nodes: dict[int, int] = {}  # inode -> node, which is never used again
        self._next = 0
        self._durable: Nodes = {}
        self._durable = dict(self._look()[0])

    def finish(self) -> None:
        self._event("end")

    def _node(self, path: Path) -> int:
        inode = os.stat(path).st_ino
        if inode not in self._nodes:
            self._nodes[inode] = self._next
            self._next += 1
        return self._nodes[inode]

    def _look(self) -> tuple[Nodes, int]:
        nodes: Nodes = {}
        for directory, inner, files in os.walk(self.root):
            here = Path(directory)
            nodes[self._node(here)] = {name: self._node(here / name) for name in (*inner, *files)}
            nodes |= {self._node(here / name): (here / name).read_bytes() for name in files}
        return nodes, self._node(self.root)

    def _event(self, event: str) -> None:
        now, root = self._look()
        self.moments.append(Moment(event, now, dict(self._durable), root))

    @contextmanager
    def recording(self) -> Iterator[None]:
        fsync, unlink, rmdir = os.fsync, os.unlink, os.rmdir

        def synced(descriptor: int) -> None:
            self._event("fsync")
            fsync(descriptor)
            now, _ = self._look()
            node = self._nodes.get(os.fstat(descriptor).st_ino)
            if node in now:
                self._durable[node] = now[node]

        def gone(original: Callable[..., None]) -> Callable[..., None]:
            def remove(path: Any, *, dir_fd: int | None = None) -> None:
                self._event("remove")
                inode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino
                original(path, dir_fd=dir_fd)
                self._nodes.pop(inode, None)

            return remove

        def told(name: str) -> Callable[..., None]:
            original = getattr(os, name)

            def tell(*arguments: Any, **options: Any) -> None:
                self._event(name)
                original(*arguments, **options)

            return tell

        patches = {"fsync": synced, "unlink": gone(unlink), "rmdir": gone(rmdir)}
        patches |= {name: told(name) for name in ("rename", "replace", "mkdir")}
        with mock.patch.multiple(os, **patches):
            yield
        self.finish()


@contextmanager
def failing(number: int, error: int, calls: tuple[tuple[Any, str], ...]) -> Iterator[list[str]]:
    """Of all calls to these functions, (module or class, name), the one with that number raises OSError. Yields the
    names of those that were made."""
    made: list[str] = []

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == number + 1:
                raise OSError(error, os.strerror(error))
            return original(*arguments, **options)

        return call

    patches = [mock.patch.object(owner, name, wrapped(name, getattr(owner, name))) for owner, name in calls]
    for patch in patches:
        patch.start()
    try:
        yield made
    finally:
        for patch in patches:
            patch.stop()
