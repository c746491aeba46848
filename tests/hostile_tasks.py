"""A task source that does what it is told to: for the tests of the judge, in whose process it is imported by name."""

import os
import socket
import subprocess
import sys

from swarm.errors import ConfigError, TaskError
from swarm.tasks.base import SourceSpec
from swarm.types import Task, TaskRef

HANGING, FAILING, MISSING = 100, 101, 102


class Hostile:
    version = "1"
    size = None

    def __init__(self, spec: SourceSpec) -> None:
        if spec.name == "refused":
            raise ConfigError("this one refuses: \x00 everything")
        self.name, self.config, self.path = f"hostile/{spec.name}", spec.config, spec.path

    def task(self, seed: int, index: int) -> Task:
        if index == HANGING:
            while True:
                pass
        if index == FAILING:
            raise ZeroDivisionError("no such luck")
        if index == MISSING:
            raise TaskError("no such task")
        ref = TaskRef(source=self.name, version=self.version, config=self.config, seed=seed, index=index)
        return Task(ref=ref, prompt=f"prompt {seed} {index}", answer="right", difficulty="{}")

    def score(self, task: Task, response: str) -> float:
        what, _, rest = response.partition(" ")
        match what:
            case "hang":
                while True:
                    pass
            case "raise":
                raise ValueError(rest)
            case "return":
                return float(rest)
            case "die":
                os._exit(3)
            case "print":
                print('{"id": 1, "scores": [[1.0, "ok", ""]]}')
                sys.stdout.flush()
            case "read":
                return float(sys.stdin.read() == "")
            case "remember":
                bytearray(1 << 40)
            case "write":
                with open(self.path, "w") as file:
                    file.write(rest)
            case "remove":
                os.remove(self.path)
            case "run":
                subprocess.run(["true"], check=True)
            case "connect":
                socket.create_connection(("127.0.0.1", 9), timeout=1)
            case "environment":
                return float(rest in os.environ)
        return float(response == task.answer)
