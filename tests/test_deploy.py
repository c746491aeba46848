"""The unit and the container file say of the program what the program is."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from node import cli, exit_codes, stopping
from node.commands import status
from node.service_manager import LOOK_S

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "configs/deploy/swarm-node.service"
CONTAINERFILE = ROOT / "configs/deploy/Containerfile"
INSTRUCTIONS = {
    *("FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "VOLUME", "EXPOSE"),
    *("STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    unit.read_string(UNIT.read_text())
    return unit["Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/swarm-node/bin/swarm-node", shutil.which("true") or "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_times_and_exit_codes_are_the_programs(service: configparser.SectionProxy) -> None:
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"]) > stopping.DEADLINE_S
    assert int(service["WatchdogSec"]) > 10 * LOOK_S, "a busy machine is no dead one"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == str(exit_codes.USAGE), "and no other: everything else may pass"
    assert service["ExecStart"].split()[1] in cli.COMMANDS


def instructions() -> list[tuple[str, str]]:
    text = CONTAINERFILE.read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_container_file_is_one() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    assert instructions()[0][0] == "FROM"
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    assert all((ROOT / source).exists() for sources in copied for source in sources)


def test_it_does_not_run_as_root_and_is_checked() -> None:
    found = dict(instructions())  # the last of each
    assert found["USER"] not in ("root", "0")
    assert json.loads(found["ENTRYPOINT"]) == ["swarm-node"]
    assert json.loads(found["CMD"])[0] in cli.COMMANDS
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["swarm-node", "status"]
    assert "--check" in check
    assert "--check" in status.EPILOG
