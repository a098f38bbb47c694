"""The study's verdicts on studies that are made up: they can hold, fail and stay open, and follow the stated rules."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from tools.verdicts import play

from fpo import results
from fpo.llm.plan import Plan

PLAN = yaml.safe_load((Path(__file__).parents[1] / "notebooks" / "parameters" / "llm_study.yaml").read_text())
PROMPTS = 84
MARKS = PLAN["watch_at"]


def look(position, utility, rng, slope=0.5, reward=0.2):
    """One look at a run whose mean utility is about `utility` and whose RM ranks candidates so well."""
    values = rng.normal(utility, 1.3, PROMPTS)
    prompt, own = rng.normal(0, 2.5, (17, 1)), rng.normal(0, 0.6, (17, 4))
    truth = utility + prompt + own  # the RM knows which prompt is easy, and of its candidates as much as `slope` says
    seen = prompt + slope * own + 0.6 * np.sqrt(1 - slope**2) * rng.normal(size=truth.shape)
    return {
        "position": position,
        "accuracy": 0.5,
        "heldout": {
            "utility": values.tolist(), "reward": reward, "first_reward": reward + position / 1000,
            "kl": position / 10, "length": 20.0, "texts": {f"heldout-{1 + 7 * i:03d}": "A text." for i in range(12)},
        },
        "probe": {"utility": truth.tolist(), "reward": seen.tolist(), "refit_reward": seen.tolist()},
    }  # fmt: skip


def run(setting, arm, seed, change, stage="judged", slope=0.5, rises=True):
    rng = np.random.default_rng([seed, *arm.encode(), *setting.encode()])
    start = np.random.default_rng([seed, *setting.encode()])
    middle = [look(mark, 2.5 + change * mark / MARKS[-1] + rng.normal(0, 0.02), rng, slope) for mark in MARKS[1:]]
    windows = PLAN["common"]["steps"] // PLAN["common"]["window"]
    reward = np.linspace(0.2, 0.5 if rises else -0.1, windows)
    return {
        "setting": setting, "arm": arm, "weight": None, "seed": seed, "stage": stage,
        "settings": {"seed": seed}, "provenance": {"cpu_seconds_a_run": 200.0},
        "labels_asked": 640, "labels_needed": 256, "winners": [0] * PLAN["common"]["steps"],
        "trace": {name: reward.tolist() for name in ("reward", "utility")},
        "watched": [look(0, 2.5, start, slope), *middle],
    }  # fmt: skip


def study(change, slope=0.5, settings=("planted", "honest", "paper"), fewer=()):
    """All runs of the plan, `change` by arm (else that of ""), and the pilots."""
    pilots = PLAN["tuning"]["pilots"]
    found = {f"planted-pilot-standard-{seed}": run("planted", "standard", seed, 0.0, "pilot") for seed in pilots}
    for part in PLAN["judged"]:
        for arm in part["arms"]:
            for seed in part["seeds"] if arm not in fewer else part["seeds"][:3]:
                if part["setting"] in settings:
                    name = f"{part['setting']}-{arm}-{seed}"
                    found[name] = run(part["setting"], arm, seed, change.get(arm, change[""]), slope=slope)
    return found


def standard_only(change, slope=0.5):
    """The pilots and the standard runs: no other arm is judged, which is quick."""
    made = study({"": change}, slope=slope)
    return {name: record for name, record in made.items() if record["arm"] == "standard"}


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    def of(stored, figures=False, **others):
        folders = {"llm_study": stored} | {f"llm_{name}": others.get(name, {}) for name in ("encoder", "policy")}
        monkeypatch.setattr(results, "stored_runs", folders.__getitem__)
        return play("llm_study", tmp_path / "results.json", figures, again_prompts=0)

    return of


def test_a_collapse_that_foresight_prevents(verdicts):
    saved = {"relaxed": 1.5, "exact": 1.6, "best-of-u": 0.0, "overconfidence": 0.0, "relaxed-permuted": 0.0}
    held = {"kl": -0.1, "practical": 0.0, "refit-kl": 0.1, "exact-centered": 0.1}
    found, content = verdicts(study({"": -1.6, **saved, **held}, slope=0.0), figures=True)
    assert content["results"]["gate"]["planted"]["passed"] and found["gate-planted"] == "new"
    for arm in ("relaxed", "exact", "kl", "practical", "best-of-u"):
        assert (found[f"prevents-{arm}"], found[f"better-{arm}"]) == ("new", "new")
    for arm in ("random", "refit"):
        assert (found[f"prevents-{arm}"], found[f"better-{arm}"]) == ("does not hold", "does not hold")
    assert found["simple-relaxed"] == found["simple-exact"] == "new"
    assert found["simple-refit"] == "does not hold"
    assert found["foresight"] == "new" and found["oracle"] == "does not hold"
    assert found["why"] == "new" and found["again"] == "open"
    drawn = content["results"]["why"]
    assert drawn["gain"]["low"] < drawn["gain"]["mean"] < drawn["gain"]["high"] and drawn["refit_gain"]["mean"] == 0
    final = content["results"]["final_utility"]["planted"]
    assert list(final["standard"]) == [str(seed) for seed in range(10)] and "early-stop" in final


def test_a_collapse_that_labels_prevent(verdicts):
    """Relaxed FPO does what its control does: no foresight, and the oracle is enough. The RM's slope stays good."""
    same = dict.fromkeys(("relaxed", "overconfidence", "relaxed-permuted", "best-of-u"), 0.5)
    found, _ = verdicts(study({"": -1.6, **same}, slope=0.8))
    assert found["prevents-relaxed"] == "new" and found["foresight"] == "does not hold"
    assert found["oracle"] == "new" and found["why"] == "does not hold"


def test_without_a_collapse_there_is_nothing_to_prevent(verdicts):
    found, content = verdicts(study({"": -0.2}))
    assert not any(row["passed"] for row in content["results"]["gate"].values())
    assert found.pop("gate-planted") == found.pop("gate-honest") == "does not hold"
    assert found.pop("honest-relaxed") == "new"  # it does not ask for a collapse
    assert set(found.values()) == {"open"}
    values = {claim["id"]: claim["value"] for claim in content["claims"]}
    assert values["study-prevents-kl"] == values["study-foresight"] == "no collapse to prevent"


def test_with_an_honest_reward_model_arms_are_compared_whether_it_collapses_or_not(verdicts):
    def compared(change, fewer=()):
        found, content = verdicts(study(change, settings=("honest", "paper"), fewer=fewer))
        there = content["results"]
        assert there["paper"]["relaxed"]["of"] == 4 and there["honest"]["planned"] == 6
        return [found[f"honest-{arm}"] for arm in ("kl", "random", "relaxed")], there["honest"]["lost"]

    held, lost = compared({"": -1.6, "kl": 0.0, "random": 0.0, "relaxed": 0.2})
    assert held == ["new"] * 3
    assert (lost["standard"]["lost"], lost["standard"]["of"]) == (8, 8)
    assert (lost["kl"]["lost"], lost["kl"]["of"]) == (0, 6)
    assert compared({"": 0.0, "kl": -1.0, "random": -1.0, "relaxed": 1.6})[0] == ["does not hold"] * 3
    assert compared({"": 0.0})[0] == ["open", "open", "new"]
    assert compared({"": -1.6, "kl": 0.0, "random": 0.0}, fewer=("kl",))[0] == ["open", "new", "open"]


def test_four_seeds_pass_no_gate_and_have_no_claim(verdicts):
    found, content = verdicts(standard_only(-3.0))
    assert found["gate-planted"] == "new" and "gate-paper" not in found
    paper = content["results"]["gate"]["paper"]
    assert paper["seeds"] == 4 and not paper["passed"] and not paper["failed"]


def test_an_interval_astride_the_margin_leaves_the_gate_open(verdicts):
    """Three seeds of ten collapse: the mean fall is above the margin, and its interval on both sides of it."""
    stored = study({"": -1.6}, settings=("planted",))
    stored |= {f"planted-standard-{seed}": run("planted", "standard", seed, 0.0) for seed in range(3, 10)}
    stored |= {f"planted-standard-{seed}": run("planted", "standard", seed, -3.0) for seed in range(3)}
    found, content = verdicts(stored)
    gate = content["results"]["gate"]["planted"]
    assert gate["low"] < content["results"]["delta"] < gate["high"] and (gate["fallen"], gate["far"]) == (3, 3)
    assert set(found.values()) == {"open"}
    claims = {claim["id"]: claim for claim in content["claims"]}
    assert claims["study-prevents-kl"]["value"].startswith("10 of 10 seeds are there")


@pytest.mark.parametrize(("own", "texts", "verdict"), [(0, 0, "does not hold"), (10, 0, "new"), (0, 6, "new")])
def test_a_fall_that_the_reward_model_sees_is_no_collapse(verdicts, own, texts, verdict):
    """Its own reward rises on so many seeds, the first RM's of the texts on so many."""
    stored = standard_only(-1.6)
    for seed in range(10):
        record = stored[f"planted-standard-{seed}"]
        record["trace"]["reward"] = sorted(record["trace"]["reward"], reverse=seed >= own)
        for each in record["watched"]:
            each["heldout"]["first_reward"] = each["position"] * (1 if seed < texts else -1)
    found, content = verdicts(stored)
    gate = content["results"]["gate"]["planted"]
    assert (gate["own_rises"], gate["texts_rise"], gate["satisfied"]) == (own, texts, max(own, texts))
    assert found["gate-planted"] == verdict and gate["failed"] == (verdict == "does not hold")


def test_an_rm_that_knows_nothing_is_not_right_in_value(verdicts):
    """Its level error cannot grow, because it is as large as can be: that once passed for right in value."""
    stored, rng = standard_only(-1.6, slope=0.0), np.random.default_rng(0)
    for seed in range(10):
        for each in stored[f"planted-standard-{seed}"]["watched"]:
            each["probe"]["reward"] = rng.normal(size=(17, 4)).tolist()
    found, content = verdicts(stored)
    level = content["results"]["why"]["level"]
    assert level["end"] < 1.1 * level["start"] and found["why"] == "does not hold"


def test_what_is_not_played_yet_stays_open(verdicts):
    stored = study({"": -1.6}, settings=("planted",), fewer=("relaxed",))
    found, content = verdicts(stored)
    assert found["gate-planted"] == "new" and found["gate-honest"] == "open"
    assert found["prevents-relaxed"] == found["prevents-kl"] == found["foresight"] == "open"
    values = {claim["id"]: claim["value"] for claim in content["claims"]}
    assert values["study-better-relaxed"] == "3 of 10 seeds are there; decided when all arms are complete"
    assert values["study-oracle"].startswith("relaxed 3, best-of-u 10 of 10 seeds are there")
    there = content["results"]
    assert there["judged_there"] == len(stored) - len(PLAN["tuning"]["pilots"])
    assert (there["verdicts"]["needed"], there["exploratory"]["planned"]) == (146, 72)
    assert there["judged_there"] == there["verdicts"]["there"] + there["exploratory"]["there"]
    assert there["exploratory"]["there"] == 24 and there["so_far"]["seeds"] == 3
    found, content = verdicts({}, figures=True)
    assert set(found.values()) == {"open"} and content["results"]["final_utility"]["planted"] == {}


def with_other(setting, change, seeds=range(5)):
    """Five arms with another model, `change` by arm, and their pilots."""
    arms = ("standard", "kl", "relaxed", "best-of-u", "random")
    found = {f"{setting}-pilot-standard-{s}": run(setting, "standard", s, 0.0, "pilot") for s in (1000, 1001, 1002)}
    return found | {f"{setting}-{arm}-{s}": run(setting, arm, s, change.get(arm, 0.0)) for arm in arms for s in seeds}


@pytest.mark.parametrize(
    ("setting", "change", "gate", "kl", "chance", "relaxed"),
    [
        ("policy", {"standard": -1.6}, "new", "new", "new", "new"),
        ("encoder", {"standard": -1.6, "relaxed": 1.5}, "new", "new", "new", "does not hold"),
        ("policy", {"kl": -1.6, "random": -1.6}, "does not hold", "does not hold", "does not hold", "does not hold"),
        ("encoder", {"standard": -0.5}, "open", "new", "new", "new"),
    ],
    ids=["as before", "foresight", "reversed", "astride"],
)
def test_what_carries_over_to_another_model(verdicts, setting, change, gate, kl, chance, relaxed):
    found, content = verdicts(standard_only(-1.6), **{setting: with_other(setting, change)}, figures=gate == "new")
    names = [f"{setting}-{name}" for name in ("gate", "kl", "random", "relaxed")]
    assert [found[name] for name in names] == [gate, kl, chance, relaxed]
    told = content["results"]
    assert told["models"][setting]["gate"]["seeds"] == told["models"]["planned"] == 5
    assert found["gate-planted"] == "new" and told["pilots"] == len(PLAN["tuning"]["pilots"])
    # Only another policy has a margin of its own.
    assert (told["own_delta"] is not None) == (setting == "policy")
    other = "policy" if setting == "encoder" else "encoder"
    assert {found[f"{other}-{name}"] for name in ("gate", "kl", "random", "relaxed")} == {"open"}


@pytest.mark.parametrize("name, model", [("encoder", "reward_model"), ("policy", "policy")])
def test_the_plan_of_another_model_changes_that_model_alone(name, model):
    folder = Path(__file__).parents[1] / "notebooks"
    own = yaml.safe_load((folder / "parameters" / f"llm_{name}.yaml").read_text())
    assert own["common"] == PLAN["common"] | {model: own["common"][model]}
    assert own["settings"] == {name: PLAN["settings"]["planted"]}
    study = Plan(PLAN, folder / "runs" / "llm_study")
    for arm, record in own["arms"].items():
        weights = {"weights": [study.chosen(arm)]} if "weights" in record else {}
        assert record == PLAN["arms"][arm] | weights


def test_with_too_few_seeds_of_another_model_nothing_is_decided(verdicts):
    found, content = verdicts(standard_only(-1.6), encoder=with_other("encoder", {"standard": -1.6}, range(4)))
    assert {found[f"encoder-{name}"] for name in ("gate", "kl", "random", "relaxed")} == {"open"}
    assert content["results"]["models"]["encoder"]["kl"]["pairs"] == 4
