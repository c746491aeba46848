"""One node that shares as GenRL 0.3.0 does. Runs in an environment where that is installed, and imports nothing of ours
but how to talk to whoever started it.

GenRL takes `get_dht_time` from hivemind's top level, where hivemind 1.1.12 does not have it any more: it is put back.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.bench.child import report

PATIENCE_S = 20
"""For a round, which it would wait 600 s for."""


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    os.environ["HIVEMIND_WORLD_SIZE"] = "2"
    hivemind = importlib.import_module("hivemind")
    hivemind.get_dht_time = importlib.import_module("hivemind.utils").get_dht_time  # type: ignore[attr-defined]
    if task["loop"] == "asyncio":
        importlib.import_module("hivemind.dht.dht").switch_to_uvloop = _plain_loop  # type: ignore[attr-defined]
    module = importlib.import_module("genrl.communication.hivemind.hivemind_backend")
    module.HivemindRendezvouz.init(is_master=not task["peers"])
    backend = module.HivemindBackend(initial_peers=task["peers"] or None, timeout=PATIENCE_S)
    addresses = [str(address) for address in backend.dht.get_visible_maddrs()]
    report({"addresses": [a for a in addresses if "/127.0.0.1/tcp/" in a] or addresses})
    sys.stdin.readline()
    for path in task["rounds"]:
        groups = [bytes.fromhex(body) for body in json.loads(Path(path).read_text())]
        began, theirs = time.time(), 0
        with suppress(Exception):  # whatever ends a round, it has failed
            everybody = backend.all_gather_object({"groups": groups})
            theirs = sum(len(payload["groups"]) for peer, payload in everybody.items() if peer != backend.get_id())
        report({"began": began, "ended": time.time(), "groups": theirs})
    report({})
    sys.stdin.readline()
    os._exit(0)  # hivemind's process may be dead already, and is waited for


def _plain_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


if __name__ == "__main__":
    main()
