"""The neural game against the release's runs, a slow reference, autograd, dense algebra and itself."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slow.neural
import torch
from tools.interrupts import interrupting

from fpo import files, mlp, neural
from fpo.neural import ARMS, Config
from fpo.parameters import ParameterError

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT.parent / "shared" / "reference" / "released_runs.json"
SMALL = {"hidden": [6, 5], "dimensions": 4, "buffer_size": 12, "inner_steps": 3, "precision": "float64"}
softplus = torch.nn.functional.softplus


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the release's runs are not beside this checkout")
def test_parity_with_the_release():
    reference = json.loads(REFERENCE.read_text())["neural"]
    config = Config(seeds=[0, 1], arms=["standard", "relaxed", "practical"], pairing="released")
    result = neural.simulate(config)
    for i, seed in enumerate(config.seeds):
        runs = reference[str(seed)]
        for form in ("relaxed", "practical"):
            for arm, name in (("standard", "rlhf"), (form, form)):
                ours = result.of(arm)[runs["iterations"], i]
                np.testing.assert_allclose(ours, runs[form][name]["utility"], atol=0.02, rtol=0)


@pytest.mark.parametrize("dimensions", [1, 4, 10, 17])
@pytest.mark.parametrize("seed", [0, 3])
def test_stream_is_torchs_plain_one(seed, dimensions):
    config = Config(dimensions=dimensions, signal_dimensions=1, outer_steps=5, inner_steps=4, new_samples=3)
    plain, stream = slow.neural.rng(seed, config), neural.Stream(seed, config)
    policy, buffer = (tensor[0] for tensor in neural.noise_tensors(1, config))
    for _ in range(2):
        for ours, theirs in zip(stream.reward_model(), next(plain), strict=True):
            assert torch.equal(ours[0], theirs.weight) and torch.equal(ours[1], theirs.bias)
        for _ in range(config.outer_steps):
            stream.noise(policy, buffer)
            rows, more = next(plain)
            assert torch.equal(policy, torch.stack(rows)) and torch.equal(buffer, more)


def test_a_game_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    neural.simulate(Config(seeds=[1], outer_steps=2, pairing="released"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("route", ["autograd", "closed-form"])
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pairing": "released"},
        {"through_oracle": [], "utility_at": "mean"},
        {"through_oracle": ARMS, "utility_at": "mean", "gamma_relaxed": 0.1},
        {"damping": 0.5, "gamma_exact": 0.3},
    ],
    ids=str,
)
def test_batched_run_is_the_plain_loop(arm, changes, route):
    config = Config(seeds=[3, 11], outer_steps=20, gradient=route, arms=ARMS, **SMALL, **changes)
    result = neural.simulate(config)
    for i, seed in enumerate(config.seeds):
        wanted = slow.neural.run(seed, arm, config)
        for quantity, expected in zip(("utility", "reward", "noise"), wanted, strict=True):
            # The exact arm solves with a matrix of large condition number, here by another route.
            tolerance = 1e-6 if arm == "exact" else 1e-9
            np.testing.assert_allclose(result.of(arm, quantity)[:, i], expected, atol=tolerance, rtol=0)


def test_the_papers_network_is_the_plain_loop_too():
    config = Config(seeds=[5], outer_steps=4, inner_steps=2, precision="float64")
    result = neural.simulate(config)
    for arm in ARMS:
        np.testing.assert_allclose(result.of(arm)[:, 0], slow.neural.run(5, arm, config)[0], atol=1e-6, rtol=0)


def test_same_numbers_again_and_whatever_the_batch():
    config = Config(seeds=[5, 2, 9], outer_steps=30, **SMALL)
    whole = neural.simulate(config)
    np.testing.assert_array_equal(whole.utility, neural.simulate(config).utility)
    shuffled = neural.simulate(config.replace(seeds=[9, 5, 2], arms=tuple(reversed(ARMS))))
    for arm in ARMS:
        alone = neural.simulate(config.replace(seeds=[9], arms=[arm]))
        for quantity in ("utility", "reward", "noise"):
            expected = whole.of(arm, quantity)[:, 2]
            tolerance = 1e-6 if arm == "exact" else 1e-10
            np.testing.assert_allclose(shuffled.of(arm, quantity)[:, 0], expected, atol=tolerance, rtol=0)
            np.testing.assert_allclose(alone.of(arm, quantity)[:, 0], expected, atol=tolerance, rtol=0)


def test_float32_is_reproducible_bit_by_bit():
    config = Config(seeds=[0, 1], outer_steps=25)
    np.testing.assert_array_equal(neural.simulate(config).reward, neural.simulate(config).reward)


def test_both_precisions_play_the_same_game():
    config = Config(seeds=[0, 1], outer_steps=25, arms=["standard", "relaxed", "practical"])
    fine = neural.simulate(config.replace(precision="float64"))
    np.testing.assert_allclose(neural.simulate(config).utility, fine.utility, atol=1e-4, rtol=0)


def test_pairing():
    """Paired arms start from one reward model; released ones share theirs with each other, not with the standard."""
    config = Config(seeds=[4], outer_steps=2)
    paired, released = (neural.simulate(config.replace(pairing=way), keep=[0]) for way in ("paired", "released"))
    first = {way: run.reward_models[0][0][0, :, 0] for way, run in (("paired", paired), ("released", released))}
    assert all(np.array_equal(first["paired"][0], other) for other in first["paired"])
    assert np.array_equal(first["released"][0], first["paired"][0])
    assert not np.array_equal(first["released"][1], first["released"][0])
    assert all(np.array_equal(first["released"][1], other) for other in first["released"][1:])
    np.testing.assert_array_equal(paired.of("standard"), released.of("standard"))


def test_record_holds_what_it_says():
    config = Config(seeds=[1, 7], outer_steps=12, precision="float64")
    result = neural.simulate(config, keep=[0, 5, 11])
    for i, t in enumerate(result.keep):
        theta = torch.from_numpy(result.actions[i])
        torch.testing.assert_close(config.landscape()(theta).numpy(), result.utility[t])
        np.testing.assert_allclose(np.linalg.norm(theta[..., 2:], axis=-1), result.noise[t])
        for j, arm in enumerate(ARMS):
            for k, seed in enumerate(config.seeds):
                value = mlp.reward(result.reward_model(arm, seed, t), theta[j, k][None])
                np.testing.assert_allclose(float(value), result.reward[t, j, k])
    table = result.by_arm_and_seed(result.utility[-1])
    assert table["relaxed"]["7"] == result.of("relaxed")[-1, 1] and set(table) == set(ARMS)


def test_best_action_has_the_best_utility():
    config = Config()
    assert float(config.landscape()(config.landscape().center)) == config.utility_scale


def test_nothing_is_kept_unless_asked_for():
    result = neural.simulate(Config(seeds=[0], outer_steps=2, arms=["standard"]))
    assert result.keep == () and result.actions.shape == (0, 1, 1)


# Divergence


def test_a_diverging_run_is_marked_and_the_others_go_on():
    wild = Config(seeds=[0, 1], outer_steps=12, clip=1e6, gamma_relaxed=1e6, policy_lr=1e3, action_cost=1e-3, **SMALL)
    result = neural.simulate(wild, keep=range(12))
    calm = ["standard", "practical"]
    for arm in ("relaxed", "exact"):
        j = ARMS.index(arm)
        assert (result.diverged_at[j] >= 0).all()
        for i in range(2):
            at = result.diverged_at[j, i]
            assert np.isfinite(result.of(arm)[:at, i]).all() and np.isnan(result.of(arm)[at:, i]).all()
            assert np.isnan(result.actions[at:, j, i]).all() and np.isfinite(result.actions[:at, j, i]).all()
    alone = neural.simulate(wild.replace(arms=calm))
    for arm in calm:
        assert (result.diverged_at[ARMS.index(arm)] == -1).all()
        np.testing.assert_allclose(result.of(arm), alone.of(arm), atol=1e-9)


# Long runs


class Stop(Exception):
    """Ends a game in the middle."""


def stopped(config, folder, at, monkeypatch, keep=()):
    """A game that is cut off in iteration `at`, after a checkpoint of each iteration before."""
    learn = neural.Batch.learn

    def until(self, t):
        if t == at:
            raise Stop
        learn(self, t)

    with monkeypatch.context() as patch:
        patch.setattr(neural.Batch, "learn", until)
        with pytest.raises(Stop):
            neural.simulate(config, keep, folder, save_every=0)


def same(ours, theirs):
    for name in ("utility", "reward", "signal", "noise", "diverged_at", "actions"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for mine, other in zip(ours.reward_models, theirs.reward_models, strict=True):
        np.testing.assert_array_equal(mine[0], other[0])


@pytest.mark.parametrize("pairing", ["paired", "released"])
def test_an_interrupted_game_goes_on_to_the_same_numbers(pairing, tmp_path, monkeypatch):
    config = Config(seeds=[0, 3], outer_steps=16, pairing=pairing)
    keep = [2, 9, 15]
    stopped(config, tmp_path, 9, monkeypatch, keep)
    same(neural.simulate(config, keep, tmp_path), neural.simulate(config, keep))


# Where in iteration 5 an interrupt comes: what is called there, which of its calls it is, and whether it does its work
# first. There are two batches, and noise of two seeds.
MOMENTS = {
    "before anything": (neural.Stream, "noise", 11, False),
    "between two seeds' noise": (neural.Stream, "noise", 12, False),
    "before the first batch's step": (neural.Batch, "step", 11, False),
    "after the first batch's step": (neural.Batch, "step", 11, True),
    "before the first block learns": (neural.Batch, "learn", 11, False),
    "between the batches": (neural.Batch, "learn", 11, True),
    "in the middle of learning": (torch.optim.Adam, "step", 12, False),
    "when everything has learned": (neural.Batch, "learn", 12, True),
    "while the state is copied": (neural.Batch, "state", 12, False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_control_c_saves_the_last_whole_iteration(moment, tmp_path, monkeypatch):
    config, keep = Config(seeds=[0, 3], outer_steps=8, inner_steps=2), [2, 5, 6]
    with monkeypatch.context() as patch:
        interrupting(patch, *MOMENTS[moment])
        with pytest.raises(KeyboardInterrupt):
            neural.simulate(config, keep, tmp_path, save_every=1e6)
    (left,) = tmp_path.iterdir()
    assert files.load(left)["next"] == 5
    same(neural.simulate(config, keep, tmp_path), neural.simulate(config, keep))


def test_control_c_in_a_save_saves_again(tmp_path, monkeypatch):
    config = Config(seeds=[0, 3], outer_steps=8, inner_steps=2)
    with monkeypatch.context() as patch:
        interrupting(patch, os, "replace", 3, False)
        with pytest.raises(KeyboardInterrupt):
            neural.simulate(config, (), tmp_path, save_every=0)
    (left,) = tmp_path.iterdir()
    assert files.load(left)["next"] == 3
    same(neural.simulate(config, (), tmp_path), neural.simulate(config))


def test_control_c_without_a_whole_iteration_or_a_folder_writes_nothing(tmp_path, monkeypatch):
    config = Config(seeds=[0, 3], outer_steps=8, inner_steps=2)
    monkeypatch.chdir(tmp_path)
    for moment, folder in (("before the first", tmp_path), ("later", None)):
        with monkeypatch.context() as patch:
            interrupting(patch, neural.Batch, "learn", 1 if moment == "before the first" else 6, False)
            with pytest.raises(KeyboardInterrupt):
                neural.simulate(config, (), folder, save_every=1e6)
        assert not list(tmp_path.iterdir())


def test_a_finished_game_is_read_back(tmp_path, monkeypatch):
    config = Config(seeds=[0], outer_steps=4)
    first = neural.simulate(config, [1], tmp_path)
    monkeypatch.setattr(neural.Batch, "step", lambda *_: pytest.fail("played again"))
    again = neural.simulate(config, [1], tmp_path)
    np.testing.assert_array_equal(first.utility, again.utility)
    np.testing.assert_array_equal(first.actions, again.actions)
    # The time it took is that of the game, not of reading it.
    assert 0 < again.seconds <= first.seconds


def test_a_game_with_other_settings_starts_afresh(tmp_path):
    config = Config(seeds=[0], outer_steps=4, arms=["standard"])
    neural.simulate(config, (), tmp_path)
    other = neural.simulate(config.replace(action_cost=0.5), (), tmp_path)
    np.testing.assert_array_equal(other.utility, neural.simulate(config.replace(action_cost=0.5)).utility)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_of_other_code_is_not_used(monkeypatch):
    config = Config(seeds=[0])
    name = neural.checkpoint_name(config)
    assert neural.checkpoint_name(config, start=np.ones((4, 1, 10))) != name != neural.checkpoint_name(config, [3])
    with monkeypatch.context() as patch:
        patch.setattr(files, "code_digest", lambda module: "other")
        assert neural.checkpoint_name(config) != name
    assert neural.checkpoint_name(config) == name


@pytest.mark.parametrize("module", ["neural", "mlp", "landscapes", "games", "parameters"])
def test_a_checkpoint_hangs_on_every_module_that_the_game_plays(module, monkeypatch):
    """`tests/test_files.py` tests what of a module counts; here, which modules do."""
    before, read = neural.checkpoint_name(Config(seeds=[0])), Path.read_bytes

    def changed(path):
        return read(path) + (b"\nCHANGED = 1\n" if path.name == f"{module}.py" and path.parent.name == "fpo" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert neural.checkpoint_name(Config(seeds=[0])) != before


PROGRAM = """
import signal, sys
from fpo import neural
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs in the background without it
learn = neural.Batch.learn
def announced(self, t):
    learn(self, t)
    if t == 7:
        print("here", flush=True)
        sys.stdin.read()  # ended by the signal, or by the end of the input that comes after it
neural.Batch.learn = announced
config = neural.Config(seeds=[0, 1], outer_steps=400, inner_steps=2, arms=["standard"])
neural.simulate(config, (), sys.argv[1], save_every=1e6)
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows sends Control-C to every process of a console, this one too")
def test_control_c_leaves_whole_files_only(tmp_path):
    """A real interrupt of a real process in the middle of an iteration."""
    environment = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdout.readline() == "here\n", program.stderr.read()
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate()
    assert program.returncode != 0 and "KeyboardInterrupt" in errors
    # The bar says how far it was and how long it would have taken.
    assert "neural:" in errors and "/400" in errors and "<" in errors
    (left,) = tmp_path.iterdir()
    assert files.load(left)["next"] == 7


def test_a_failed_save_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    config = Config(seeds=[0], outer_steps=6, inner_steps=2)
    whole, sync, calls = neural.simulate(config), os.fsync, [0]

    def full(handle):
        calls[0] += 1
        if calls[0] == 4:
            os.ftruncate(handle, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="make room and start again; the game resumes from its last checkpoint") as caught:
        neural.simulate(config, (), tmp_path, save_every=0)
    (left,) = tmp_path.iterdir()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(left)
    assert files.load(left)["next"] == 3
    same(neural.simulate(config, (), tmp_path), whole)


def test_a_damaged_checkpoint_is_named(tmp_path):
    config = Config(seeds=[0], outer_steps=2)
    path = tmp_path / neural.checkpoint_name(config, ())
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=f"{path.name} is damaged or no checkpoint of this program: remove it"):
        neural.simulate(config, (), tmp_path)


# Settings


def test_defaults_are_the_papers():
    """The table of the neural environment, but for the seeds, the arms and what only this book has."""
    ours = {"seeds", "arms", "gamma_exact", "damping", "through_oracle", "pairing", "gradient", "device", "threads"}
    assert Config().model_dump(exclude=ours) == {
        "gamma_relaxed": 0.005, "gamma_practical": 0.005, "utility_at": "sample", "outer_steps": 4000,
        "inner_steps": 15, "new_samples": 5, "buffer_size": 50, "action_cost": 0.01, "policy_lr": 0.05,
        "policy_lr_end": 0.001, "sigma": 0.1, "sigma_end": 0.001, "schedule_power": 4.0, "clip": 1.0, "rm_lr": 1e-3,
        "rm_decay": 1e-3, "hidden": (32, 32), "initial_scale": 0.1, "dimensions": 10, "signal_dimensions": 2,
        "target": 2.5, "utility_scale": 10.0, "utility_sharpness": 0.2, "precision": "float32", "label_spread": 1.0,
        "rm_steps": 1, "replay": 0, "follower": "own", "trust": 0.0, "remedy": "none", "remedy_weight": 1.0,
        "members": 1, "cost_center": "zero", "wide_labels": 0, "label_noise": 0.0, "offset": 0.0, "start_distance": 0.0,
        "noise_target": 0.0, "sharpness_factors": (), "second_peak": False, "oracle_level": 0.0, "oracle_tilt": 0.0,
        "oracle_share": 1.0,
    }  # fmt: skip


BAD = {
    "unknown arm": ({"arms": ["foresight"]}, ["arms", "foresight", "standard, relaxed, practical, exact"]),
    "arm twice": ({"arms": ["exact", "exact"]}, ["arms", "at most once"]),
    "seeds as a string": ({"seeds": "01"}, ["seeds", "'01'", "a list"]),
    "one gamma for all": ({"gamma": 0.1}, ["gamma", "no such parameter", "gamma_relaxed"]),
    "negative gamma": ({"gamma_practical": -1}, ["gamma_practical", "-1", "from 0 to"]),
    "buffer too small": ({"buffer_size": 4}, ["buffer_size", "4", "from new_samples to"]),
    "float steps": ({"outer_steps": 4e3}, ["outer_steps", "4000.0", "whole number"]),
    "unknown pairing": ({"pairing": "unpaired"}, ["pairing", "'unpaired'", "'paired', 'released'"]),
    "unknown precision": ({"precision": "float16"}, ["precision", "'float16'", "'float32', 'float64'"]),
    "no hidden layer": ({"hidden": []}, ["hidden", "[]", "1 to 8 whole numbers"]),
    "empty hidden layer": ({"hidden": [32, 0]}, ["hidden", "[32, 0]", "from 1 to 4,096"]),
    "more signal than there is": ({"dimensions": 1}, ["signal_dimensions", "2", "number of dimensions"]),
    "refit beside others": ({"follower": "refit"}, ["follower", "'refit'", "standard arm alone"]),
    "singular refit": ({"arms": ["standard"], "follower": "refit", "rm_decay": 0.0}, ["rm_decay", "0.0", "damping"]),
    "no RM step": ({"rm_steps": 0}, ["rm_steps", "0", "from 1 to"]),
    "singular Hessian": ({"rm_decay": 0.0}, ["rm_decay", "0.0", "damping"]),
    "two faults": ({"clip": 0.0, "sigma": -1.0}, ["2 parameters", "clip = 0.0", "sigma = -1.0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case):
    values, words = BAD[case]
    with pytest.raises(ParameterError) as caught:
        Config(**values)
    for word in words:
        assert word in str(caught.value)


def test_without_the_exact_arm_no_ridge_is_needed():
    Config(arms=["standard", "relaxed"], rm_decay=0.0)
    Config(rm_decay=0.0, damping=0.1)


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParameterError, match="device = 'cuda': must be 'cpu', or 'cuda' where torch finds"):
        Config(device="cuda")


@pytest.mark.parametrize("keep", [[-1], [4], [1, 1]])
def test_bad_iterations_are_refused(keep):
    with pytest.raises(ValueError, match=r"keep = .*from 0 to 3"):
        neural.simulate(Config(seeds=[0], outer_steps=4), keep)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder = .*existing folder"):
        neural.simulate(Config(seeds=[0], outer_steps=4), (), tmp_path / "missing")


def test_threads_are_set_for_the_game_and_put_back():
    before, seen = torch.get_num_threads(), []
    step = neural.Batch.step

    def spy(self, *rest):
        seen.append(torch.get_num_threads())
        return step(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neural.Batch, "step", spy)
        neural.simulate(Config(seeds=[0], outer_steps=1, threads=2))
    assert set(seen) == {2} and torch.get_num_threads() == before


# Other machinery


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile does not link from a folder with a blank in its name")
def test_compiled_route_is_the_closed_form():
    config = Config(seeds=[0, 1], outer_steps=6, inner_steps=2, gradient="closed-form")
    plain, compiled = neural.simulate(config), neural.simulate(config.replace(gradient="compiled"))
    np.testing.assert_allclose(plain.utility, compiled.utility, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("route", ["autograd", "closed-form"])
def test_cuda_plays_the_same_game(route):
    config = Config(seeds=[0, 1], outer_steps=10, precision="float64", gradient=route)
    there = neural.simulate(config.replace(device="cuda"), keep=[9])
    here = neural.simulate(config, keep=[9])
    np.testing.assert_allclose(here.utility, there.utility, atol=1e-8, rtol=0)
    np.testing.assert_allclose(here.actions, there.actions, atol=1e-8, rtol=0)
