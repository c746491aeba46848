import logging
import sys

# peft imports bitsandbytes wherever it finds it: a second of CPU time and 45 MB for nodes that have no use for it. Who
# has one says so (nf4.py). And where the package `kernels` is installed, transformers and bitsandbytes may fetch code
# from the hub and run it. None of that is needed, nor the warning.
sys.modules["kernels"] = None  # type: ignore[assignment]  # such an import fails from now on
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
