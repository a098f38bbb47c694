"""Idle threads sleep wherever this project loads torch, and other machines are played as they are described."""

import os
import subprocess
import sys

import pytest
from tools import portable

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PRINT = f"import os; print(*map(os.environ.get, {VARIABLES}))"


def surroundings(**more):
    return {name: value for name, value in os.environ.items() if name not in VARIABLES} | more


def told(code: str, **more) -> str:
    """What a program of this project prints, started where nothing is set yet."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=portable.ROOT, env=surroundings(**more), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_module_lets_idle_threads_sleep_before_it_loads_torch():
    code = "import sys, fpo; assert 'torch' not in sys.modules; " + PRINT
    assert told(code) == "PASSIVE 1000"


@pytest.mark.parametrize(
    ("name", "value", "left"), [(VARIABLES[0], "ACTIVE", "ACTIVE None"), (VARIABLES[1], "5", "None 5")]
)
def test_a_users_own_setting_wins(name, value, left):
    assert told("import fpo; " + PRINT, **{name: value}) == left


@pytest.mark.parametrize("script", ["book/build.py", "tests/benchmarks/run.py"])
def test_a_script_hands_it_on_to_what_it_starts(script):
    """The build driver's notebook kernels, the benchmarks' pytest."""
    code = f"import runpy; runpy.run_path({script!r}); " + PRINT
    assert told(f"import sys; sys.path.insert(0, 'book'); {code}") == "PASSIVE 1000"


def test_these_tests_run_with_it():
    assert os.environ.keys() & set(VARIABLES)


def test_busy_processes_are_there_for_the_block_and_gone_after_it():
    started = []

    def spy(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    popen = subprocess.Popen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", spy)
        with portable.spinning(2):
            assert [process.poll() for process in started] == [None, None]
    assert len(started) == 2 and all(process.poll() is not None for process in started)


@pytest.mark.parametrize("name", portable.MACHINES)
def test_a_machine_is_played_as_it_is_described(name, monkeypatch, capfd):
    """What the tests of a played machine get to see: variables, umask, cores; and all is as before afterwards."""
    machine = portable.MACHINES[name]
    cores = "len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 0"
    look = f"import os; print(os.umask(0), {cores})"
    run = subprocess.run

    def instead(command, cwd, env):
        assert command[1:3] == ["-m", "pytest"] and "notebooks" in command and "-n" in command or machine.cores == 1
        assert machine.surroundings.items() <= env.items() and env["TZ"]
        assert os.listdir(env["TORCHINDUCTOR_CACHE_DIR"]) == []
        return run([sys.executable, "-c", look], cwd=cwd, env=env)

    before = os.umask(0o022)
    os.umask(before)
    monkeypatch.setattr(subprocess, "run", instead)
    status, _ = portable.play(machine, [])
    mask, cores = map(int, capfd.readouterr().out.split()[-2:])
    assert status == 0
    if os.name == "posix":
        assert mask == machine.umask
    if machine.cores and cores:
        assert cores == machine.cores
    after = os.umask(before)
    assert after == before


def test_an_unknown_machine_is_refused(capsys):
    assert portable.main(["quantum"]) == 2
    assert "must be of small, old" in capsys.readouterr().err
