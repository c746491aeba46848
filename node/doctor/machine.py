"""Checks of the machine: what is installed, and whether there is room. The rules are pure, the looking is apart."""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import resource
import shutil
import socket
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from node.config import NodeConfig, RpcConfig
from node.datadir import DataDirectory
from node.disk import largest_checkpoint
from node.doctor.findings import Finding, failed, ok, warning
from node.engine.available import EngineStatus, engines

OURS = "swarm-node"
SHOWN = ("torch", "transformers", "hivemind", "protobuf")
MIN_OPEN_FILES = 1024
"""libp2p keeps up to 512 connections, and the process has files of its own."""
MIN_MEMORY_BYTES = 2 << 30
GROUP_BYTES = 20_000
"""That a group takes in the journal: 8 rollouts of 256 tokens, as text with numbers."""
STATE_PER_WEIGHT = 3
"""A checkpoint's size over that of its float32 weights: they and the two moments of AdamW."""
SPARE_BYTES = 100 << 20
SMI_S = 3.0


async def python(_: NodeConfig) -> Sequence[Finding]:
    wanted = metadata.metadata(OURS)["Requires-Python"]
    return [python_finding(platform.python_version(), wanted)]


def python_finding(version: str, wanted: str) -> Finding:
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return ok("python", version)
    return failed("python", f"{version}; {OURS} needs {wanted}", "Install it in an environment of that Python.")


async def packages(_: NodeConfig) -> Sequence[Finding]:
    wanted = [Requirement(line) for line in metadata.requires(OURS) or ()]
    needed = [pin for pin in wanted if pin.marker is None or pin.marker.evaluate({"extra": ""})]
    return [packages_finding(needed, {pin.name: _version(pin.name) for pin in needed})]


def packages_finding(needed: Sequence[Requirement], versions: Mapping[str, str]) -> Finding:
    """`versions`: of those that are needed; empty for one that is missing."""
    wrong = [
        (f"{pin.name} {versions[pin.name]}" if versions[pin.name] else f"no {pin.name}", f'"{pin.name}{pin.specifier}"')
        for pin in needed
        if not versions[pin.name] or not pin.specifier.contains(versions[pin.name], prereleases=True)
    ]
    if wrong:
        found, install = zip(*wrong, strict=True)
        return failed("packages", ", ".join(found), f"pip install {' '.join(install)}")
    return ok("packages", ", ".join(f"{name} {versions[name]}" for name in SHOWN if versions.get(name)))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


async def engine(config: NodeConfig) -> Sequence[Finding]:
    return [engine_finding(config.engine.type, engines())]


def engine_finding(wanted: str, found: Mapping[str, EngineStatus]) -> Finding:
    """`wanted`: as in `engine.type`."""
    here = [f"{name} {status.version}" for name, status in found.items() if status.usable]
    status = found.get(wanted)
    if status is not None and not status.usable:
        return failed("engine", f"{wanted} is not usable", f"{status.reason[0].upper()}{status.reason[1:]}.")
    if not here:
        return failed("engine", "none is usable", "; ".join(status.reason for status in found.values()))
    return ok("engine", ", ".join(here))


async def gpu(config: NodeConfig) -> Sequence[Finding]:
    return [gpu_finding(config.policy.device, await _gpus())]


async def _gpus() -> list[str]:
    """Name and memory of each, by the driver's own tool: torch takes seconds to ask."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = ("--query-gpu=name,memory.total", "--format=csv,noheader")
    process = await asyncio.create_subprocess_exec(tool, *query, stdout=PIPE, stderr=DEVNULL, stdin=DEVNULL)
    try:
        async with asyncio.timeout(SMI_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return []
    return said.decode(errors="replace").splitlines() if process.returncode == 0 else []


def gpu_finding(device: str, gpus: Sequence[str]) -> Finding:
    """`device`: as in `policy.device`."""
    if gpus:
        return ok("gpu", "; ".join(gpus))
    if device.startswith("cuda"):
        return failed(
            "gpu", f"none, and policy.device is {device}", 'Install the driver, or set policy.device = "cpu".'
        )
    return ok("gpu", "none: the policy runs on the CPU")


async def memory(_: NodeConfig) -> Sequence[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [memory_finding(cores, page * os.sysconf("SC_PHYS_PAGES"))]


def memory_finding(cores: int, total_bytes: int) -> Finding:
    found = f"{cores} CPU cores, {size(total_bytes)} RAM"
    if total_bytes < MIN_MEMORY_BYTES:
        return warning("memory", found, f"Less than {size(MIN_MEMORY_BYTES)} is too little for torch beside a model.")
    return ok("memory", found)


async def open_files(_: NodeConfig) -> Sequence[Finding]:
    return [open_files_finding(resource.getrlimit(resource.RLIMIT_NOFILE)[0])]


def open_files_finding(limit: int) -> Finding:
    if 0 <= limit < MIN_OPEN_FILES:
        advice = f"Raise it (ulimit -n {4 * MIN_OPEN_FILES}, or LimitNOFILE= in a systemd unit)."
        return warning("open files", f"at most {limit}", advice)
    return ok("open files", "no limit" if limit < 0 else f"at most {limit}")


async def data_dir(config: NodeConfig) -> Sequence[Finding]:
    return [await asyncio.to_thread(data_dir_finding, config.data_dir)]


def data_dir_finding(path: Path) -> Finding:
    """Leaves nothing behind that was not there, and takes nobody's lock for longer than a moment."""
    existing = existing_part(path)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = "Make it writable for this user, or set data_dir to another place."
        return failed("data_dir", f"{existing} is not writable: {error.strerror}", advice)
    if existing != path:
        return ok("data_dir", f"{path} will be made")
    held = _holder(path / "node.lock")
    if held is not None:
        advice = "Stop that one, or give this one a data_dir of its own."
        return failed("data_dir", f"{path} is in use by another node (pid {held})", advice)
    return ok("data_dir", f"{path} is writable, and no node runs in it")


def _holder(lock: Path) -> str | None:
    """The pid of the node that holds it."""
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(32).decode(errors="replace").strip() or "unknown"
    except OSError:
        pass  # Nobody has ever run here.
    return None


def existing_part(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


async def disk(config: NodeConfig) -> Sequence[Finding]:
    def look() -> Finding:
        free = shutil.disk_usage(existing_part(config.data_dir)).free
        return disk_finding(free, checkpoint_bytes(config), config.checkpoint.keep, config.journal.max_groups)

    return [await asyncio.to_thread(look)]


def disk_finding(free: int, checkpoint: int | None, keep: int, groups: int) -> Finding:
    """`free` and `checkpoint` (of one; None if that is not known) in bytes; one more than `keep` is there at times."""
    need = (keep + 1) * (checkpoint or 0) + groups * GROUP_BYTES
    what = f"{keep + 1} checkpoints of {'unknown size' if checkpoint is None else size(checkpoint)} and the journal"
    found = f"{size(free)} free; {what} need about {size(need)}"
    advice = "Make room, or lower checkpoint.keep and journal.max_groups, or set data_dir to another disk."
    if free < (checkpoint or 0) + SPARE_BYTES:
        return failed("disk", found, advice)
    return warning("disk", found, advice) if free < need else ok("disk", found)


def checkpoint_bytes(config: NodeConfig) -> int | None:
    """Of the largest there is, else estimated from the model's files; None for a model that is not on this machine."""
    if there := largest_checkpoint(DataDirectory(config.data_dir).checkpoints):
        return there
    if config.policy.model == "seed":
        return STATE_PER_WEIGHT * (4 << 20)
    weights = sum(file.stat().st_size for file in Path(config.policy.model).glob("*.safetensors"))
    return STATE_PER_WEIGHT * weights if weights else None


async def rpc_port(config: NodeConfig) -> Sequence[Finding]:
    return [rpc_finding(config.rpc)]


def rpc_finding(rpc: RpcConfig) -> Finding:
    if rpc.port == 0:
        return ok("rpc port", "any that is free")
    try:
        with socket.create_server((rpc.host, rpc.port)):
            return ok("rpc port", f"{rpc.host}:{rpc.port} is free")
    except OSError as error:
        found = f"{rpc.host}:{rpc.port} cannot be used: {error.strerror}"
        return failed("rpc port", found, "Stop what uses it, or set rpc.port to 0 or to another port.")


def size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
