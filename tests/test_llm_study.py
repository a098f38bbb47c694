"""A study by a plan: pilots, tuning, judged runs; what is there is not played again; a stopped one goes on."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel

from fpo.llm import Policy, Workbench, panels, settings, study, train
from fpo.llm.plan import Plan
from fpo.llm.study import main, play_again
from fpo.parameters import ParameterError


@pytest.fixture(scope="module")
def content(tiny):
    common = {**tiny, "prompts": "packaged:study", "prompt_count": 8, "steps": 4, "window": 2, "oracle": "answer"}
    return {
        "common": {**common, "candidates": 2, "max_new_tokens": 6, "head_start": "blind spot", "measure_kl": False},
        "settings": {"planted": {"head_prompts": 4}, "fixed": {"gamma": 2.0}},
        "arms": {
            "standard": {"rule": "standard"},
            "relaxed": {"rule": "relaxed", "weights": [0.5, 2.0]},
            "placebo": {"rule": "relaxed-permuted", "weight_of": "relaxed"},
        },
        "tuning": {"setting": "planted", "seeds": [100], "pilots": [100]},
        "judged": [
            {"setting": "planted", "arms": ["standard"], "seeds": [1, 2]},
            {"setting": "planted", "arms": ["relaxed", "placebo"], "seeds": [1]},
            {"setting": "fixed", "arms": ["standard", "relaxed"], "seeds": [1]},
        ],
        "watch_at": [0, 2, 4],
        "group": 3,
    }


@pytest.fixture(scope="module")
def short(monkeypatch_module):
    """Panels of three prompts."""
    original = panels.load_prompts
    monkeypatch_module.setattr(panels, "load_prompts", lambda source, count: original(source, 3))


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def played(content, short, tmp_path_factory):
    """The study played in this process, group by group, and the order in which its runs came."""
    folder = tmp_path_factory.mktemp("study")
    plan, names = Plan(content, folder / "runs"), []
    plan.out.mkdir()
    while missing := plan.missing():
        jobs = plan.groups(missing)[0]
        names.append([job.name for job in jobs])
        study.play(plan, jobs, folder)
    return plan, names


def read(plan, name):
    return json.loads((plan.out / f"{name}.json").read_text())


def test_pilots_come_first_and_judged_runs_when_their_weights_are_chosen(played):
    plan, names = played
    assert names == [
        ["planted-pilot-standard-100"],
        ["planted-standard-1", "planted-standard-2"],
        ["fixed-standard-1", "fixed-relaxed-1"],
        ["planted-relaxed@0.5-100", "planted-relaxed@2-100"],
        ["planted-relaxed-1", "planted-placebo-1"],
    ]
    left = {path.name.partition("-")[0] for path in plan.out.parent.glob("*.pt")}
    assert left == {"references"}, "checkpoints of runs that are done are gone"


@pytest.mark.parametrize("count", range(1, 12))
def test_groups_are_few_and_even_and_stay_what_they_are_when_the_first_is_done(played, count):
    plan, _ = played
    pilot = plan.pilots()[0]
    jobs = [replace(pilot, seed=seed, stage=stage) for stage in ("tuning", "judged") for seed in range(count)]
    groups = plan.groups(jobs)
    sizes = [len(group) for group in groups]
    assert [job for group in groups for job in group] == jobs
    assert len(sizes) == 2 * -(-count // 3) and max(sizes) - min(sizes) <= 1
    assert plan.groups(jobs[sizes[0] :]) == groups[1:]


def test_weights_are_in_units_of_spreads_and_chosen_on_the_probe(played):
    plan, _ = played
    spreads = read(plan, "planted-pilot-standard-100")["spreads"]
    assert plan.units()["relaxed"] == pytest.approx(spreads["reward"] / spreads["relaxed"])
    ends = {w: np.mean(read(plan, f"planted-relaxed@{w}-100")["watched"][-1]["probe"]["utility"]) for w in ("0.5", "2")}
    best = float(max(ends, key=ends.get))
    assert plan.chosen("relaxed") == best
    judged, placebo = read(plan, "planted-relaxed-1"), read(plan, "planted-placebo-1")
    assert judged["weight"] == placebo["weight"] == best
    assert judged["settings"]["gamma"] == pytest.approx(best * plan.units()["relaxed"])
    assert placebo["settings"]["gamma"] == pytest.approx(best * plan.units()["relaxed-permuted"])
    assert read(plan, "fixed-relaxed-1")["settings"]["gamma"] == 2.0


def test_an_arm_with_a_single_weight_is_not_tuned(content, played):
    arms = content["arms"] | {"relaxed": {"rule": "relaxed", "weights": [0.7]}}
    plan = Plan(content | {"arms": arms}, played[0].out)
    assert plan.chosen("relaxed") == 0.7 and not plan.tuning()
    judged = {job.name: job for job in plan.judged()}["planted-relaxed-1"]
    assert judged.weight == 0.7 and judged.settings.gamma == pytest.approx(0.7 * plan.units()["relaxed"])


def test_what_a_run_s_file_holds(played):
    plan, _ = played
    run = read(plan, "planted-relaxed-1")
    assert [each["position"] for each in run["watched"]] == [0, 2, 4]
    for each in run["watched"]:
        assert len(each["heldout"]["utility"]) == 3 and np.shape(each["probe"]["utility"]) == (3, 4)
        assert np.shape(each["probe"]["reward"]) == np.shape(each["probe"]["refit_reward"]) == (3, 4)
        assert 0 <= each["accuracy"] <= 1 and list(each["heldout"]["texts"]) == ["heldout-001"]
    assert run["watched"][0]["heldout"]["kl"] == pytest.approx(0, abs=1e-4)
    assert run["watched"][0]["heldout"]["reward"] == run["watched"][0]["heldout"]["first_reward"]
    assert len(run["trace"]["reward"]) == 2 and len(run["winners"]) == 4
    assert run["labels_asked"] == run["labels_needed"] == 4 * 3
    assert run["settings"]["seed"] == 1 and run["provenance"]["runs_beside"] == 1
    tuned = read(plan, "planted-relaxed@2-100")["watched"]
    assert [set(each) for each in tuned] == [{"position", "probe"}], "no held-out prompt is looked at in tuning"


def test_seeds_differ_and_arms_of_a_seed_start_alike(played):
    plan, _ = played
    first = {name: read(plan, f"planted-{name}")["watched"][0] for name in ("standard-1", "standard-2", "relaxed-1")}
    assert first["standard-1"] == first["relaxed-1"] != first["standard-2"]
    assert first["standard-1"]["heldout"]["texts"] != first["standard-2"]["heldout"]["texts"]


def test_a_group_that_other_code_began_begins_afresh_and_says_so(content, played, tmp_path, monkeypatch, capsys):
    plan = Plan(content, tmp_path / "runs")
    plan.out.mkdir()
    jobs = plan.groups(plan.missing())[0]
    name = f"{jobs[0].name}+{len(jobs) - 1}"
    left = [tmp_path / f"{name}.pt", tmp_path / f"{name}-0123456789abcdef.pt"]  # the first, before code was in a name
    found = []
    for other in (None, *left):
        for path in left:
            path.unlink(missing_ok=True)
        if other:
            other.write_bytes(b"neither read nor removed")
        study.play(plan, jobs, tmp_path)
        told = capsys.readouterr().out
        assert told == (f"{other} was written by other code: its runs begin afresh\n" if other else "")
        assert other is None or other.read_bytes() == b"neither read nor removed"
        found.append([read(plan, job.name)["winners"] for job in jobs])
    assert found == [[read(played[0], job.name)["winners"] for job in jobs]] * 3
    # What the first group kept for others is kept by its code as well: it is made again by another.
    kept = set(tmp_path.glob("references-*.pt"))
    asked, train_together = [], study.train_together
    monkeypatch.setattr(study, "code", lambda module: asked.append(module) or "fedcba9876543210")
    monkeypatch.setattr(study, "train_together", lambda *given: asked.append(given[4]) or train_together(*given))
    study.play(plan, jobs, tmp_path)
    assert asked == ["fpo.llm.panels", tmp_path / f"{name}-fedcba9876543210.pt"]
    assert kept and len(set(tmp_path.glob("references-*.pt")) - kept) == len(kept)


def test_the_command_plays_what_is_missing(content, played, tmp_path, capsys):
    """In workers of their own, to the same numbers; a second time there is nothing to do."""
    plan, _ = played
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**content, "judged": content["judged"][2:]}))
    command = [str(file), str(tmp_path / "runs"), "--workers", "1", "--work", str(tmp_path / "work"), "--only", "fixed"]
    assert main(command) == 0
    assert "how long one takes will be known after the first ones" in capsys.readouterr().out
    run = json.loads((tmp_path / "runs" / "fixed-relaxed-1.json").read_text())
    assert run["winners"] == read(plan, "fixed-relaxed-1")["winners"]
    assert main(command) == 0
    assert "2 runs are there, 1 can be played now" in capsys.readouterr().out


def test_a_group_that_fails_is_told_while_others_go_on(content, tmp_path, monkeypatch, capsys):
    """They may take hours, and a worker stands idle meanwhile."""
    told, before = Event(), []

    def work(plan, jobs, folder, steps):
        if jobs[0].setting == "planted":
            raise ValueError("no room left")
        before.append(told.wait(60))

    def write(text, file):
        print(text, file=file)
        told.set()

    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(study, "_work", work)
    monkeypatch.setattr(study.tqdm, "write", staticmethod(write))
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**content, "group": 2}))
    assert main([str(file), str(tmp_path / "runs"), "--workers", "4", "--work", str(tmp_path / "work")]) == 1
    assert before and all(before)
    error = capsys.readouterr().err
    assert "planted-" in error and ": no room left" in error


def test_a_prompt_to_which_nothing_was_written_has_no_spread(content, tmp_path):
    job = Plan(content, tmp_path).pilots()[0]
    line = dict.fromkeys((*study.TRACED, "winner", "labels_asked", "labels_needed"))
    trace = [line | {"spreads": {"reward": value}} for value in (1.0, math.nan, 3.0, math.nan)]
    group = SimpleNamespace(traces=[trace], watched=[[]], observed=("reward",))
    assert study.content_of(job, group, 0, {})["spreads"] == {"reward": 2.0}


def test_a_stored_run_s_adapter_can_be_made_again(content, played, tmp_path, capsys):
    """One command; the folder is PEFT's own, and gives any copy of the base what the run had learned."""
    plan, _ = played
    file, folder = tmp_path / "plan.yaml", tmp_path / "adapter"
    file.write_text(yaml.safe_dump(content))
    assert main([str(file), str(plan.out), "--again", "fixed-relaxed-1", str(folder)]) == 0
    assert "all 4 winners are those of the stored run" in capsys.readouterr().out
    own = settings(**read(plan, "fixed-relaxed-1")["settings"])
    alone = Workbench(own)
    train(own, bench=alone)
    other = Policy(own)
    ids = torch.tensor([other.encode("What is it?", "Answer.")])
    with other.base():
        base = other.model(ids).logits
    loaded = PeftModel.from_pretrained(Policy(own)._peft.unload(), folder)
    assert torch.allclose(loaded(ids).logits, alone.policy.model(ids).logits, atol=1e-5)
    assert not torch.allclose(loaded(ids).logits, base, atol=1e-5)
    path = plan.out / "fixed-relaxed-1.json"
    stored = read(plan, path.stem)
    changed = {**stored, "winners": [stored["winners"][0], 1 - stored["winners"][1], *stored["winners"][2:]]}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / path.name).write_text(json.dumps(changed))
    assert "the first 1 of 4 winners" in play_again(Plan(content, tmp_path / "runs"), path.stem, folder)
    assert main([str(file), str(plan.out), "--again", "fixed-relaxed-9", str(folder)]) == 1
    assert "has no run 'fixed-relaxed-9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"setting": "pl', "is damaged"), ("[]", "is damaged"), ('{"a": 1}', "is no run of a study: it has no 'prov")],
)
def test_a_damaged_run_is_named(content, tmp_path, capsys, text, message):
    file, runs = tmp_path / "plan.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(content))
    runs.mkdir()
    (runs / "planted-pilot-standard-100.json").write_text(text)
    for more in ([], ["--again", "planted-pilot-standard-100", str(tmp_path / "adapter")]):
        assert main([str(file), str(runs), "--work", str(tmp_path / "work"), *more]) == 1
        told = capsys.readouterr().err
        assert message in told and "planted-pilot-standard-100.json" in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": None}, "plan: must have the entries arms, common"),
        ({"judged": [{"setting": "other", "arms": [], "seeds": []}]}, "judged: 'other' is none of its settings"),
        ({"judged": [{"setting": "fixed", "arms": ["kl"], "seeds": []}]}, "judged: 'kl' is none of its arms"),
        ({"arms": {"standard": {"rule": "best"}}, "judged": []}, "rule = 'best': must be one of"),
    ],
)
def test_plans_that_are_none(content, tmp_path, changes, message):
    other = {name: value for name, value in {**content, **changes}.items() if value is not None}
    with pytest.raises(ParameterError, match=message):
        Plan(other, tmp_path)
