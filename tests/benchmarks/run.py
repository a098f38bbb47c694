"""Time each fast route against its slow one and write _build/benchmarks.json.

A file bench_NAME.py holds `test_fast` and `test_slow` in one pytest-benchmark group; each says in `extra_info["units"]`
how much work one round is. The slow route is timed on less work and scaled to the fast one's. Both are timed in this
run on this machine, so the ratio means something and the seconds little.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fpo

assert fpo  # imported for what it does: idle threads sleep

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "_build" / "benchmarks.json"


def summarize(report: dict) -> dict[str, dict[str, float]]:
    """From pytest-benchmark's report to name -> ratio, fast_seconds, slow_seconds (both for `units` of work).

    What else a benchmark says in its `extra_info`, such as the seconds to compile, is passed on.
    """
    groups: dict[str, dict[str, tuple[float, int]]] = {}
    extra: dict[str, dict[str, float]] = {}
    for row in report["benchmarks"]:
        group = groups.setdefault(row["group"], {})
        group[row["name"].partition("[")[0]] = (row["stats"]["median"], row["extra_info"]["units"])
        more = {key: value for key, value in row["extra_info"].items() if key != "units"}
        extra.setdefault(row["group"], {}).update(more)
    summary = {}
    for name, group in groups.items():
        (fast, units), (slow, measured) = group["test_fast"], group["test_slow"]
        slow *= units / measured
        summary[name] = {
            "ratio": slow / fast,
            "fast_seconds": fast,
            "slow_seconds": slow,
            "units": units,
            "slow_units_measured": measured,
            **extra[name],
        }
    return summary


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        files = sorted(map(str, HERE.glob("bench_*.py")))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={raw}", *files]
        # One thread each way unless a benchmark says otherwise: the comparison is of algorithms.
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        if status := subprocess.run(
            command, env={**os.environ, **threads, "PYTHONPATH": paths, "TQDM_DISABLE": "1"}
        ).returncode:
            return status
        summary = summarize(json.loads(raw.read_text()))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{'benchmark':24}{'fast [s]':>12}{'slow [s]':>12}{'ratio':>10}   units of work")
    for name, row in summary.items():
        print(f"{name:24}{row['fast_seconds']:12.3f}{row['slow_seconds']:12.1f}{row['ratio']:10.3g}   {row['units']}")
    print(f"written to {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
