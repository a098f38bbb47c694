"""Play other machines on this one: the tests of numbers, notebooks and pages under each of them.

    make portable                     all machines below, one after the other
    make portable MACHINES=old        one of them

What cannot be played here (another instruction set on another kind of processor, one core where the system does not
let a process choose) is left out, and said.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Not the tests of the driver, the documents and the repository: they compute nothing.
SELECTION = ["fpo", *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").glob("test_*.py"))]
LEFT_OUT = ("test_build.py", "test_cards.py", "test_documents.py", "test_extension.py", "test_repository.py")
SPINNER = "print(flush=True)\nwhile True: pass"


@dataclass(frozen=True)
class Machine:
    """Surroundings of a run; `processor` only where this processor is of the kind."""

    about: str
    processor: dict[str, str]
    surroundings: dict[str, str]
    umask: int
    cores: int | None = None
    busy: int = 0


MACHINES = {
    "small": Machine(
        "one core, AVX2, C locale, half a day ahead, private files, wide letters",
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "OPENBLAS_CORETYPE": "Haswell",
            "MKL_CBWR": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
        {"LC_ALL": "C", "TZ": "Pacific/Kiritimati", "OMP_NUM_THREADS": "1", "FPO_FONTS": "mono"},
        umask=0o077,
        cores=1,
    ),
    "old": Machine(
        "two threads, no AVX, beside a process that keeps a core busy, half a day behind, letters with serifs",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "OPENBLAS_CORETYPE": "Nehalem",
            "MKL_CBWR": "COMPATIBLE",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
        },
        {"LC_ALL": "C.UTF-8", "TZ": "America/St_Johns", "OMP_NUM_THREADS": "2", "FPO_FONTS": "serif"},
        umask=0o002,
        busy=1,
    ),
}


@contextmanager
def spinning(count: int):
    """`count` processes that keep a core busy each, all of them at it before the block begins."""
    started = [subprocess.Popen([sys.executable, "-c", SPINNER], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in started:
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


@contextmanager
def fewer_cores(count: int | None):
    """This process and its children on `count` cores, where the system lets a process choose."""
    if count is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(machine: Machine) -> dict[str, str]:
    """The variables of a run: this process's own, then the machine's."""
    intel = platform.machine().lower() in ("x86_64", "amd64")
    return os.environ | (machine.processor if intel else {}) | machine.surroundings


def play(machine: Machine, selection: list[str]) -> tuple[int, float]:
    """Exit status and seconds of the tests on one machine."""
    # As `make test` has them.
    workers = [] if machine.cores == 1 else ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    command = [sys.executable, "-m", "pytest", *workers, *selection, "--nbval-lax", "notebooks"]
    started = time.monotonic()
    mask = os.umask(machine.umask)
    try:
        # A machine of its own has no code that another one has compiled: torch takes it all the same, and gives NaN.
        with spinning(machine.busy), fewer_cores(machine.cores), tempfile.TemporaryDirectory() as compiled:
            own = {"TQDM_DISABLE": "1", "TORCHINDUCTOR_CACHE_DIR": compiled}
            status = subprocess.run(command, cwd=ROOT, env=environment(machine) | own).returncode
    finally:
        os.umask(mask)
    return status, time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("machines", nargs="*", help=f"out of {', '.join(MACHINES)}; by default all")
    given = parser.parse_args(arguments).machines or list(MACHINES)
    if unknown := [name for name in given if name not in MACHINES]:
        print(f"portable: MACHINES = {' '.join(unknown)}: must be of {', '.join(MACHINES)}", file=sys.stderr)
        return 2
    selection = [each for each in SELECTION if Path(each).name not in LEFT_OUT]
    rows = []
    for name in given:
        print(f"\n{name}: {MACHINES[name].about}", flush=True)
        if MACHINES[name].cores and not hasattr(os, "sched_setaffinity"):
            print("(all cores: this system does not let a process choose)", flush=True)
        rows.append((name, *play(MACHINES[name], selection)))
    for name, status, seconds in rows:
        print(f"{name:8}{'passed' if status == 0 else 'FAILED'} in {seconds / 60:.0f} min")
    return max(status for _, status, _ in rows)


if __name__ == "__main__":
    sys.exit(main())
