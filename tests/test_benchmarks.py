"""The summary of the benchmarks; the timings themselves are never asserted."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("run", Path(__file__).parent / "benchmarks" / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)


def test_slow_route_is_scaled_to_the_fast_ones_work():
    rows = [("test_fast", 0.5, 100), ("test_slow", 3.0, 4)]
    report = {
        "benchmarks": [
            {"group": "g", "name": name, "stats": {"median": seconds}, "extra_info": {"units": units}}
            for name, seconds, units in rows
        ]
    }
    assert run.summarize(report) == {
        "g": {"ratio": 150.0, "fast_seconds": 0.5, "slow_seconds": 75.0, "units": 100, "slow_units_measured": 4}
    }


def test_a_case_of_many_is_told_by_its_group():
    rows = [
        {"group": f"g_{case}", "name": f"{name}[{case}]", "stats": {"median": seconds}, "extra_info": {"units": 1}}
        for case, times in (("a", (1.0, 2.0)), ("b", (1.0, 3.0)))
        for name, seconds in zip(("test_fast", "test_slow"), times, strict=True)
    ]
    assert {name: row["ratio"] for name, row in run.summarize({"benchmarks": rows}).items()} == {"g_a": 2.0, "g_b": 3.0}


def test_what_else_a_benchmark_says_is_passed_on():
    rows = [
        {"group": "g", "name": name, "stats": {"median": 1.0}, "extra_info": {"units": 1, **more}}
        for name, more in (("test_fast", {"compile_seconds": 40.0}), ("test_slow", {}))
    ]
    assert run.summarize({"benchmarks": rows})["g"]["compile_seconds"] == 40.0


def test_a_missing_route_is_an_error():
    row = {"group": "g", "name": "test_fast", "stats": {"median": 1.0}, "extra_info": {"units": 1}}
    with pytest.raises(KeyError, match="test_slow"):
        run.summarize({"benchmarks": [row]})
