import logging
import sys

# Where the package `kernels` is installed, transformers may fetch code from the hub and run it, and bitsandbytes (which
# peft imports wherever it finds it) does so when it is imported, on some CPUs. None of it is needed, nor the warning.
sys.modules["kernels"] = None  # type: ignore[assignment]  # such an import fails from now on
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
