"""Does the config's model fit into this machine? Asked of a process that imports torch, which takes it seconds."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from pathlib import Path

from node.config import NodeConfig
from node.doctor.findings import Finding, failed, ok, warning

ANSWER_S = 24.0
NAME = "model"


async def model(config: NodeConfig) -> Sequence[Finding]:
    if config.policy.model == "seed":
        return [ok(NAME, "the built-in one, of less than a million parameters")]
    answer = await _answer(config)
    return [model_finding(answer) if answer is not None else unanswered(config.policy.model)]


def unanswered(name: str) -> Finding:
    if Path(name).is_dir():
        advice = "Try again when the machine is less busy; a node that starts tests it as well."
        return warning(NAME, f"not tested: no answer within {ANSWER_S:g} s", advice)
    found = f"not tested: {name!r} is no directory here, and the hub did not answer within {ANSWER_S:g} s"
    return warning(NAME, found, "Mend policy.model if a directory was meant; if not, see whether the hub is reachable.")


def model_finding(answer: str) -> Finding:
    """`answer`: as node/engine/fits.py prints it."""
    said = json.loads(answer)
    if said["fits"]:
        return ok(NAME, said["found"])
    return failed(NAME, said["found"], "Change what is named, or take a machine with more memory.")


async def _answer(config: NodeConfig) -> str | None:
    """None where there is none in time."""
    path = os.pathsep.join(place for place in sys.path if place)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "node.engine.fits"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        async with asyncio.timeout(ANSWER_S):
            said, _ = await process.communicate(config.model_dump_json().encode())
    except TimeoutError:
        said = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return said.decode().splitlines()[-1] if said else None
