"""What the doctor says, and how checks are run. Each has a deadline; one that breaks is a finding, not the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from node.config import NodeConfig


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    outcome: Outcome
    found: str
    advice: str = ""
    """What to do, a sentence; empty when all is well."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Outcome.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Outcome.WARNING, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Outcome.FAILED, found, advice)


Examine = Callable[[NodeConfig], Awaitable[Sequence[Finding]]]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    deadline_s: float
    examine: Examine


async def run_checks(checks: Sequence[Check], config: NodeConfig) -> AsyncIterator[Finding]:
    """One after the other: some use the same ports."""
    for check in checks:
        for finding in await _in_time(check, config):
            yield finding


async def _in_time(check: Check, config: NodeConfig) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(check.deadline_s):
            return await check.examine(config)
    except TimeoutError:
        found = f"no result after {check.deadline_s:g} s"
        return [failed(check.name, found, "Try again when the machine is less busy.")]
    # A doctor who faints helps nobody: what one check did not expect is told, and the next one goes on.
    except Exception as error:  # noqa: BLE001
        return [failed(check.name, f"could not be tested: {error!r}", "Please report this as a bug.")]


def lines(finding: Finding) -> list[str]:
    """One, and a second with what to do."""
    first = f"{finding.outcome:8} {finding.check:13} {finding.found}"
    return [first, *([f"{'':8} {'':13} -> {finding.advice}"] if finding.advice else [])]


def summary(findings: Sequence[Finding]) -> str:
    counts = {outcome: sum(finding.outcome is outcome for finding in findings) for outcome in Outcome}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]}


def healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.outcome is not Outcome.FAILED for finding in findings)
