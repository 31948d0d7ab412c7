"""All GPU measurements in one command with a time limit: `python -m benchmarks.quarter_hour --into FOLDER`.

Each step is a process with a time limit of its own. Its results and its output are in FOLDER even if its limit ends it.
Then the next step begins. The steps are: GPU tests, speed and profile of a training step at the paper's size, and
speed of answers.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import RESULTS

TESTS = ("-m", "pytest", "-m", "gpu", "tests/gpu", "--durations=5", "-p", "no:cacheprovider")
PROFILED = "compiled, own length"
# Name, seconds that it may take, arguments of Python.
STEPS = {
    "training": (300, ("-m", "benchmarks.gpu", "--profile", PROFILED)),
    "generation": (80, ("-m", "benchmarks.gpu_generation")),
    "smoke": (120, TESTS),
}


def main() -> None:
    arguments = parse_arguments()
    arguments.into.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in arguments.steps:
        limit, command = STEPS[name]
        if command != TESTS:
            command = (*command, "--into", str(arguments.into), *arguments.shape)
        started = time.monotonic()
        status = run(command, arguments.into / f"{name}.log", limit)
        print(f"{name}: {status}, {time.monotonic() - started:.0f} s", flush=True)
        if status != "done":
            failed.append(name)
    sys.exit(1 if failed else 0)


def run(command: tuple[str, ...], log: Path, limit: float) -> str:
    """How it ended: "done", "exit N" or "cut off"."""
    with log.open("w") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-u", *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "cut off"
    return "done" if done.returncode == 0 else f"exit {done.returncode}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.quarter_hour", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for result files and logs")
    parser.add_argument(
        "--shape",
        nargs=argparse.REMAINDER,
        default=[],
        help="the last option: passed on to the benchmarks, e.g. --experiment mini --device cpu --layers 1 1 1",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
