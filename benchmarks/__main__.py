"""``make bench``: the benchmarks that need no data of others. Quality on MovieLens-1M: `benchmarks.movielens_1m`."""

from __future__ import annotations

import sys

from benchmarks import loader

if __name__ == "__main__":
    sys.stdout.write("loader: one worker, 22 columns, batches of 4096\n")
    loader.main()
