"""Lets hivemind's network parts be imported without the rest of it, for processes that learn nothing.

`import hivemind.p2p` runs `hivemind/__init__.py` and `hivemind/utils/__init__.py`, and these import all of it: torch,
averaging, experts. A seed peer wants 60 MB and not 300, and a machine for one need not have torch at all. So before
hivemind is imported for the first time, two of its packages are entered in `sys.modules` as empty ones (their
`__init__` is then not run, their submodules are found as ever), and two modules that need torch, and that neither P2P
nor DHTNode uses, as modules with nothing but a name in them. hivemind is pinned; tests/test_bootstrap.py starts such a
process and fails when this stops being enough.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from swarm.errors import NetworkError

_PACKAGES = ("hivemind", "hivemind.dht")
_UNUSED = {"hivemind.utils.mpfuture": "MPFuture", "hivemind.utils.tensor_descr": "TensorDescriptor"}


def leave_out_torch() -> None:
    """Call it before anything imports hivemind; afterwards it does nothing. Raises NetworkError if there is none."""
    if "hivemind" in sys.modules:
        return
    spec = find_spec("hivemind")
    if spec is None or not spec.submodule_search_locations:
        raise NetworkError("hivemind is not installed; pip install hivemind")
    root = Path(spec.submodule_search_locations[0])
    for name in _PACKAGES:
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    for name, content in _UNUSED.items():
        module = ModuleType(name)
        setattr(module, content, type(content, (), {}))
        sys.modules[name] = module
