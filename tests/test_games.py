"""What both games share: the record, what is kept, and games that differ from the paper's by an argument."""

import numpy as np
import pytest
import slow.linear

from fpo import linear, neural
from fpo.linear import ARMS

LINEAR = linear.Config(seeds=[3, 5], steps=6, dimensions=5)
NEURAL = neural.Config(seeds=[3, 5], outer_steps=6, hidden=[4], dimensions=5, inner_steps=2, precision="float64")
GAMES = {"linear": (linear.simulate, LINEAR), "neural": (neural.simulate, NEURAL)}


@pytest.mark.parametrize("game", GAMES)
def test_both_results_have_one_vocabulary(game):
    simulate, config = GAMES[game]
    result = simulate(config, keep=[5, 0])
    arms, seeds = len(config.arms), len(config.seeds)
    for name in ("utility", "reward", "signal", "noise"):
        assert getattr(result, name).shape[1:] == (arms, seeds)
        np.testing.assert_array_equal(
            result.of("relaxed", name), getattr(result, name)[:, config.arms.index("relaxed")]
        )
    assert result.keep == (5, 0) and result.actions.shape == (2, arms, seeds, 5) and result.seconds > 0
    at = [5, 0]
    np.testing.assert_allclose(result.utility[at], config.landscape()(result.actions))
    np.testing.assert_allclose(
        result.signal[at], np.linalg.norm(result.actions[..., : config.signal_dimensions], axis=-1)
    )
    np.testing.assert_allclose(
        result.noise[at], np.linalg.norm(result.actions[..., config.signal_dimensions :], axis=-1)
    )
    np.testing.assert_array_equal(result.peak(), result.utility.max(axis=0))
    assert result.by_arm_and_seed(result.utility[-1])["standard"]["5"] == result.utility[-1, 0, 1]
    assert result.reward_model("practical", 5, 0) is not None


@pytest.mark.parametrize("game", GAMES)
def test_another_start(game):
    simulate, config = GAMES[game]
    start = np.array([[0.3, -0.2, 0.0, 1.0, 0.1], [0.0, 0.4, -1.0, 0.2, 0.0]])
    # So small a step that the policy stays where it began.
    still = config.replace(policy_lr=1e-9, **({"policy_lr_end": 1e-9} if game == "neural" else {}))
    result = simulate(still, keep=[0], start=start)
    for arm in config.arms:
        np.testing.assert_allclose(result.of(arm, "actions")[0], start, atol=1e-6)
    np.testing.assert_array_equal(simulate(config, start=np.zeros(5)).utility, simulate(config).utility)
    for arm in range(len(config.arms)):
        each = np.zeros((len(config.arms), 2, 5))
        each[arm] = start
        whole, alone = simulate(config, start=each), simulate(config, start=start)
        np.testing.assert_allclose(whole.utility[:, arm], alone.utility[:, arm], atol=1e-9)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("start", [np.zeros(4), np.zeros((3, 5)), np.full(5, np.nan), np.zeros((1, 2, 5))])
def test_a_bad_start_is_refused(game, start):
    simulate, config = GAMES[game]
    with pytest.raises(ValueError, match=r"start of shape .*: must be finite numbers of shape \(5,\), \(2, 5\) or"):
        simulate(config, start=start)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("keep", [[-1], [7], [1, 1]])
def test_bad_iterations_are_refused(game, keep):
    simulate, config = GAMES[game]
    with pytest.raises(ValueError, match=r"keep = .*: must be distinct whole numbers from 0 to [56]"):
        simulate(config, keep)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(
    "changes",
    [
        {"inner_steps": 3},
        {"labels": 4, "label_spread": 0.2},
        {"inner_steps": 2, "labels": 3, "label_spread": 0.5, "through_oracle": False},
    ],
    ids=str,
)
def test_linear_games_beside_the_papers_are_the_plain_loop(arm, changes):
    config = linear.Config(seeds=[3, 11], steps=40, dimensions=7, gradient="forward-difference", **changes)
    start = np.linspace(-0.5, 0.5, 7)
    result = linear.simulate(config, start=start)
    for i, seed in enumerate(config.seeds):
        wanted = slow.linear.run(seed, arm, config, start)
        for quantity, expected in zip(("utility", "signal", "noise"), wanted, strict=True):
            np.testing.assert_allclose(result.of(arm, quantity)[:, i], expected, atol=1e-9, rtol=0)


def test_neural_labels_are_made_where_the_spread_says():
    """Without spread every label of an iteration is the policy's mean; the policy's own noise stays as it is."""
    seen = {}
    for spread in (0.0, 1.0, 2.0):
        config = NEURAL.replace(label_spread=spread, outer_steps=1, arms=["standard"])
        play = neural.Play([config], (), np.zeros((1, 2, 5)), resumed=False)
        play.iteration(0)
        (batch,) = play.batches
        seen[spread] = (batch.buffer[:, : config.new_samples] - batch.theta[:, None]).numpy()
    assert not seen[0.0].any() and seen[1.0].any()
    np.testing.assert_allclose(seen[2.0], 2 * seen[1.0], atol=1e-12)
