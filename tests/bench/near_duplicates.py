"""What a look at a group for near-duplicates costs: 8 responses of 256 tokens, about 1 kB each, to a known task.

python -m tests.bench.near_duplicates
"""

from __future__ import annotations

import time

from tests.test_near_duplicates import TEXTS, THIEF, knowing, of, prose


def main() -> None:
    memory, fresh = knowing(of(*TEXTS)), [of(*(prose(8 * i + j) for j in range(8)), origin=THIEF) for i in range(1, 40)]
    costs = []
    for one in fresh:
        begun = time.process_time()
        assert memory.complaint(one) is None
        costs.append(time.process_time() - begun)
    print(f"{1000 * min(costs):.2f} ms of CPU, the least of {len(costs)} looks; target: at most 0.20 ms")


if __name__ == "__main__":
    main()
