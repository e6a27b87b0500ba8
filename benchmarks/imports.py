"""100,000 imported rows: time and peak memory of `import-results`, from the file to the summary.

    python benchmarks/imports.py [--rows 100000]

The file has the twelve tasks, five seeds, five sparsities per method and as many made methods as it
takes: 1,665 cells (method × sparsity) for 100,000 rows. The verb runs in a process of its own, so
its start counts. The exit code is 1 if that takes 10 s or more, or 1 GiB of memory or more.

Measured on one thread of a virtual machine with two cores (Intel Xeon, model not told), which other
work shared: 2.5 s wall, 2.5 s CPU, 0.30 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = (
    *("aircraft", "birds", "caltech101", "caltech256", "cars", "cifar10", "cifar100", "dtd"),
    *("flowers", "food101", "pets", "SUN"),
)
SEEDS, LEVELS = 5, 5
SECONDS, BYTES = 10.0, 2**30


def lines(rows: int) -> list[str]:
    """A results file of about `rows` lines with made accuracies, the dense baseline first."""
    draw = random.Random(0)
    per_cell = len(TASKS) * SEEDS
    cells = [("Dense", 0.0)]
    for number in range(rows // per_cell - 1):
        cells.append((f"method {number // LEVELS}", 0.5 + 0.09 * (number % LEVELS)))
    return ["dset,model,sparsity,seed,val_acc"] + [
        f"{task},{method},{sparsity:.2f},seed_{seed},{draw.uniform(0.5, 0.95):.4f}"
        for method, sparsity in cells
        for task in TASKS
        for seed in range(SEEDS)
    ]


def main() -> int:
    """Write the file, import it, print what it took; 1 if that is too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "linear_made.txt"
        path.write_text("\n".join(lines(rows)) + "\n", encoding="utf-8")
        command = ["import-results", str(path), "--runs", folder, "--name", "made", "--json"]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "sparse_transfer", *command],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(done.stdout)
    print(f"{told['rows']:,} rows, {len(told['summary']):,} cells in the summary")
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    print(f"wall {seconds:.1f} s (limit {SECONDS:g}), CPU {cpu:.1f} s")
    print(f"peak memory {peak / 2**30:.2f} GiB (limit {BYTES / 2**30:g})")
    return int(seconds >= SECONDS or peak >= BYTES)


if __name__ == "__main__":
    sys.exit(main())
