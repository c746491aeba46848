"""Regenerates swarm/wire/v1 from proto/: `python -m swarm.wire.generate [OUTPUT]`. Needs grpcio-tools (the dev extra).

protoc writes imports as if proto/ were on the path ("from swarm.v1 import ..."); they are rewritten to this package,
because a top-level `proto` or a second `swarm` package would be shadowed.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = Path(__file__).parent / "v1"
SCHEMAS = ("exchange", "node")


def generate(target: Path) -> None:
    """Writes the modules and stubs for every schema into `target`."""
    from grpc_tools import protoc  # a development tool: not needed at run time

    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{resources.files('grpc_tools') / '_proto'}"]
        arguments += [f"--python_out={scratch}", f"--pyi_out={scratch}", f"--grpc_python_out={scratch}"]
        if protoc.main([*arguments, *(f"swarm/v1/{name}.proto" for name in SCHEMAS)]) != 0:
            raise SystemExit("protoc failed")
        for made in sorted((Path(scratch) / "swarm" / "v1").iterdir()):
            if made.name == "exchange_pb2_grpc.py":
                continue  # no service in it
            text = made.read_text().replace("from swarm.v1 import", "from swarm.wire.v1 import")
            (target / made.name).write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
