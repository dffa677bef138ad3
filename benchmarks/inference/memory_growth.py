"""Peak memory of a prediction of 10,000 and of 1,000,000 rows: rank 0, and the process beside it that reads and writes.

python -m benchmarks.inference.memory_growth [--rows 1000000]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from benchmarks.inference.adding_ranks import finish, start

SMALL = 10_000
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    many = parser.parse_args().rows
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in (SMALL, many):
            data = Path(folder) / f"{rows}.jsonl"
            draw = random.Random(rows)
            with data.open("w") as file:
                for _ in range(rows):
                    file.write('{"text": "%s"}\n' % ("abcdefgh" * min(12, int(draw.lognormvariate(0.7, 0.7)) + 1)))
            result = finish(start(data, Path(folder) / f"{rows}-out.jsonl", [0.0]))
            assert result["rows"] == rows
            peaks[rows] = result["peak_bytes"]
            named = ", ".join(f"{peak / MIB:.1f} MiB" for peak in peaks[rows])
            print(f"{rows:>9,} rows: {named} (rank 0, reader); {rows / result['seconds']:,.0f} rows/s", flush=True)
    growth = [later / before - 1 for before, later in zip(peaks[SMALL], peaks[many], strict=True)]
    print(f"growth: rank 0 {growth[0]:+.1%}, reader {growth[1]:+.1%} (target: under 5 %)")


if __name__ == "__main__":
    main()
