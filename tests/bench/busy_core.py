#!/usr/bin/env python3
"""What another busy process on one core costs the cpu backend.

    python3 tests/bench/busy_core.py [--tributary FILE] [--rounds N] [--streams N] [--least RATIO]

Runs `tributary bench` in turns with nothing beside it and with a loop that keeps one core busy, and
compares the medians of output tokens a second. On two cores a fair share of what is left is 3/4 of
them, and one core alone would be 1/2; threads that spin while they wait for one that doesn't run
fall far below that. Fails below --least (0.55: a loss of at most 45 %). Only ratios of this
machine to itself are compared, so it can run anywhere that is otherwise idle.
"""
import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys


def spin(core):
    os.sched_setaffinity(0, {core})
    while True:
        pass


def output_rate(options):
    done = subprocess.run(
        [options.tributary, "bench", "--csv", "--kinds", "base", "--rounds", "1", "--streams",
         str(options.streams), "--prompt", "64", "--generate", "32", "--bandwidth", "20"],
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{options.tributary} failed:\n{done.stderr[-2000:]}")
    names, row = [line.split(",") for line in done.stdout.splitlines()
                  if line and not line.startswith("#")]
    return float(row[names.index("output")])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tributary", default="./tributary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--least", type=float, default=0.55)
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    alone, beside = [], []
    for _ in range(options.rounds):
        alone.append(output_rate(options))
        loop = multiprocessing.Process(target=spin, args=(core,), daemon=True)
        loop.start()
        beside.append(output_rate(options))
        loop.kill()
        loop.join()
    ratio = statistics.median(beside) / statistics.median(alone)
    print(f"{options.streams} streams on {len(os.sched_getaffinity(0))} cores: "
          f"{statistics.median(alone):.1f} tokens/s, {statistics.median(beside):.1f} beside a busy "
          f"loop on core {core}: {ratio:.2f} (at least {options.least})")
    sys.exit(0 if ratio >= options.least else 1)


if __name__ == "__main__":
    main()
