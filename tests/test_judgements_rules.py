"""The judgements chapter on other verdicts: its rules can hold and fail, and the release's files are counted right."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch
from tools import pages
from tools.verdicts import play

import fpo.llm
from fpo import results, stats
from fpo.parameters import ParameterError

STORED = results.stored_run
REPORTED = STORED("judgements/reported")
PAIRS = {name: (row["first"], row["second"]) for name, row in REPORTED["pairs"].items()}
JUDGE = {
    "judges": [[0.0] * 384 + [0.0]] * 5,
    "ridge": "0.001",
    "ridges": {"0.001": {"within": 0.6, "auc": 0.6, "accuracy": 0.6, "majority": 0.6}},
}


def released(share=0.6, kappa=0.5):
    """What a file of counts made from the release would hold, with judges that prefer the first arm so often."""
    judge = stats.binomial(int(400 * share), 400 - int(400 * share)) | {
        "difference": 0.1,
        "interval": [0.05, 0.15],
        "agreement": {"agreement": 0.5, "kappa": kappa, "low": kappa - 0.1, "high": kappa + 0.1},
    }
    counted = ("wins", "losses", "ties", "identical", "by_category")
    return {
        "pairs": {
            name: {key: row[key] for key in counted}
            | {"identical_ties": row["identical"], "one_cut": stats.binomial(5, 4), "longer": stats.binomial(5, 4)}
            | {"judges": {"truth": judge, "similarity": judge}}
            for name, row in REPORTED["pairs"].items()
        },
        "sha256": {"verdicts": "another", "answers": "another"},
        "words": dict(REPORTED["mean_words"]),
        "without_end_mark": {"standard": REPORTED["standard_without_end_mark"], "practical": 600, "relaxed": 600},
    }


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    def of(reported=REPORTED, counted=None, **values):
        stored = {
            "judgements/reported": reported,
            "judgements/released": {"results": {"released": counted or released()}},
            "truthfulqa/judge": JUDGE,
        }
        monkeypatch.setattr(results, "stored_run", lambda name: stored[name])
        return play("judgements", tmp_path / "results.json", figures=False, **values)

    return of


def test_an_effect_that_is_there_is_found(verdicts):
    reported = copy.deepcopy(REPORTED)
    for name, row in reported["pairs"].items():
        row["wins"], row["losses"] = 330, 170
        row["by_category"] = {
            "factual": [330, 170, row["ties"]],
            "deceptive": [0, 0, 0],
            "sycophancy_safety": [0, 0, 0],
        }
        row["reported_share"], row["reported_p"] = 0.66, stats.binomial(330, 170)["two_sided"]
        assert name in PAIRS
    for row in reported["accuracy"].values():
        row["standard_error"] = 0.002
    found, _ = verdicts(reported, released(0.7))
    assert {found[name.replace("_", "-")] for name in PAIRS} == {"reproduced"}
    assert found["p-values"] == found["shares"] == found["mmlu"] == found["arc"] == "reproduced"
    assert found["truth-judge"] == found["similarity-judge"] == found["agreement"] == "new"
    # The counts are no longer those of the files, and say so.
    assert found["files"] == "partly"


def test_the_opposite_effect_fails(verdicts):
    reported = copy.deepcopy(REPORTED)
    for row in reported["pairs"].values():
        row["wins"], row["losses"] = 170, 330
        row["by_category"] = {
            "factual": [170, 330, row["ties"]],
            "deceptive": [1, 0, 0],
            "sycophancy_safety": [0, 1, 0],
        }
        row["by_category"] |= {"factual": [169, 329, row["ties"]]}
    for task in reported["accuracy"].values():
        task["relaxed"] = task["practical"] = task["standard"] - 0.3
    found, _ = verdicts(reported, released(0.3, kappa=-0.5))
    for name in (*(name.replace("_", "-") for name in PAIRS), "p-values", "shares", "mmlu"):
        assert found[name] == "not reproduced", name
    assert found["truth-judge"] == found["similarity-judge"] == found["agreement"] == "does not hold"
    assert found["capability"] == "does not hold"


def test_the_reported_counts_settle_nothing(verdicts):
    found, content = verdicts(counted=released(0.5, kappa=0.0))
    assert {found[name.replace("_", "-")] for name in PAIRS} == {"open"}
    assert found["truth-judge"] == found["agreement"] == "open" and found["files"] == "reproduced"
    row = content["results"]["binomial"]["relaxed_standard"]
    assert set(row) >= {"wins", "losses", "ties", "two_sided", "one_sided", "reported"}
    # What the exact test leaves open, halved ties decide; power is at shares that were not found.
    split, power = content["results"]["split"]["relaxed_standard"], content["results"]["power"]
    assert split["p"] < 0.05 / 3 < row["two_sided"] and row["family_low"] < 0.5 < split["family_low"]
    assert stats.power(power["visible"], 332, 0.05 / 3) == pytest.approx(0.8, abs=1e-4)
    assert power["55"]["chance"] < 0.5 < 0.8 < power["60"]["chance"] and power["55"]["needed"] > 817
    planned = power["reported"]
    assert planned["share"] == 0.566 and set(planned) == {"share", "decided_needed", "needed"}
    assert stats.power(0.566, planned["decided_needed"], 0.05 / 3) >= 0.8
    assert 817 < planned["needed"] < power["55"]["needed"]
    assert found["capability"] == "new"
    row = content["results"]["capability"]["mmlu"]
    assert row["accuracy"]["standard"] == pytest.approx(48.42) and row["either_way"] == pytest.approx(1.96 * 0.91)
    # No difference of accuracies could have met these rules.
    assert found["mmlu"] == found["arc"] == "open"
    rules = [claim["rule"] for claim in content["claims"] if claim["id"] in ("judgements-mmlu", "judgements-arc")]
    assert len(rules) == 2 and all("no difference could have met it" in rule for rule in rules)


class Encoder:
    """Features that say which word an answer begins with."""

    def __init__(self, settings):
        pass

    def features(self, texts, prompts=None):
        places = {"right": 0, "wrong": 1}
        return torch.nn.functional.one_hot(torch.tensor([places[t.split()[0]] for t in texts]), 384).float()


QUESTIONS = [f"Question {i}?" for i in range(12)]


def release(folder, **changes):
    """Files in the release's shape: relaxed is right about the first eight, the other two about the last six."""
    answers = {
        "prompts": QUESTIONS,
        "answers_theoretical": ["right one." if i < 8 else "wrong one." for i in range(12)],
        "answers_baseline": ["right one." if i >= 6 else "wrong and longer" for i in range(12)],
        "answers_practical": ["right one." if i >= 6 else "wrong and longer" for i in range(12)],
    } | changes.get("answers", {})
    columns = ["question", "category", "baseline_vs_practical", "baseline_vs_relaxed", "relaxed_vs_practical"]
    columns += ["words_baseline", "words_practical", *changes.get("columns", ["words_relaxed"])]
    said = ["relaxed"] * 6 + ["tie"] * 2 + ["baseline"] * 3 + [changes.get("said", "tie")]
    rows = [
        [q, changes.get("kind", "Standard - Factual"), "tie", s, s.replace("baseline", "practical"), 3, 3, 3]
        for q, s in zip(QUESTIONS, said, strict=True)
    ]
    with open(folder / "verdicts.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    (folder / "answers.json").write_text(json.dumps(answers))
    with open(folder / "questions.csv", "w", encoding="utf-8", newline="") as file:
        head = ["Question", "Best Answer", "Correct Answers", "Incorrect Answers"]
        known = QUESTIONS[: changes.get("known", 12)]
        csv.writer(file).writerows([head, *([q, "right", "right", "wrong"] for q in known)])
    names = {"released_verdicts": "verdicts.csv", "released_answers": "answers.json", "questions": "questions.csv"}
    return {key: str(folder / name) for key, name in names.items()}


def test_the_files_of_the_release_are_counted(verdicts, monkeypatch, tmp_path):
    monkeypatch.setattr(fpo.llm, "RewardModel", Encoder)
    weight = torch.zeros(5, 385, dtype=torch.float64)
    weight[:, 0] = 1.0
    monkeypatch.setitem(JUDGE, "judges", weight.tolist())
    found, content = verdicts(**release(tmp_path))
    counted = content["results"]["released"]
    row = counted["pairs"]["relaxed_standard"]
    assert [row[key] for key in ("wins", "losses", "ties", "identical", "identical_ties")] == [6, 3, 3, 2, 2]
    for judge in ("truth", "similarity"):
        own = row["judges"][judge]
        assert (own["wins"], own["losses"], own["ties"]) == (6, 4, 2)
        assert own["agreement"]["kappa"] == 1 and own["difference"] > 0
    assert (row["one_cut"]["wins"], row["one_cut"]["losses"]) == (6, 0)
    assert (row["longer"]["wins"], row["longer"]["losses"]) == (0, 6)
    assert counted["pairs"]["practical_standard"]["identical_ties"] == 12
    assert counted["without_end_mark"] == {"standard": 6, "practical": 6, "relaxed": 0}
    assert counted["words"]["relaxed"] == 2 and counted["words"]["standard"] == 2.5
    assert row["by_category"] == {"factual": [6, 3, 3], "deceptive": [0, 0, 0], "sycophancy_safety": [0, 0, 0]}
    assert found["files"] in ("partly", "not reproduced") and len(counted["sha256"]["verdicts"]) == 64
    value = next(claim["value"] for claim in content["claims"] if claim["id"] == "judgements-files")
    assert "by category: no" in value
    assert "not the files that were counted before: released_verdicts, released_answers" in value


class Blind(Encoder):
    """To it all texts are alike."""

    def features(self, texts, prompts=None):
        return torch.ones(len(texts), 384)


def test_the_release_itself_is_recognized_and_counted(monkeypatch, tmp_path, capsys):
    """By checksum, and with the counts that are stored; the judges are left out."""
    shared = Path(__file__).parents[2] / "shared"
    given = {
        "released_verdicts": shared / "reference" / "released_judgements.csv",
        "released_answers": shared / "reference" / "released_generations.json",
        "questions": shared / "data" / "truthfulqa.csv",
    }
    if missing := [path.name for path in given.values() if not path.exists()]:
        pytest.skip(f"needs the authors' released files in ../shared: there is no {missing[0]}")
    monkeypatch.setattr(fpo.llm, "RewardModel", Blind)
    values = {key: str(path) for key, path in given.items()}
    found, content = play("judgements", tmp_path / "results.json", figures=False, **values)
    assert found["files"] == "reproduced"
    assert "the files that were counted before, by SHA-256" in capsys.readouterr().out
    new, stored = content["results"]["released"], STORED("judgements/released")["results"]["released"]
    assert new["sha256"] == stored["sha256"] and new["words"] == pytest.approx(stored["words"], abs=1e-3)
    assert new["without_end_mark"] == stored["without_end_mark"]
    for name, row in stored["pairs"].items():
        counted = {key: value for key, value in row.items() if key != "judges"}
        own = {key: new["pairs"][name][key] for key in counted}
        assert own == {**counted, "one_cut": own["one_cut"], "longer": own["longer"]}, name
        for kind in ("one_cut", "longer"):
            assert own[kind] == pytest.approx(counted[kind], abs=1e-3)


def test_an_address_gives_the_file_that_was_counted_or_none(verdicts, monkeypatch, tmp_path):
    monkeypatch.setattr(fpo.llm, "RewardModel", Encoder)
    monkeypatch.setitem(JUDGE, "judges", torch.zeros(5, 385, dtype=torch.float64).tolist())
    folder = tmp_path / "release"
    folder.mkdir()
    given = release(folder)
    digests = {
        kind: hashlib.sha256(Path(given[f"released_{kind}"]).read_bytes()).hexdigest()
        for kind in ("verdicts", "answers")
    }
    with pages.served(folder) as address:
        there = {f"released_{kind}": address + Path(given[f"released_{kind}"]).name for kind in digests}
        _, content = verdicts(counted=released() | {"sha256": digests}, **given | there)
        assert content["results"]["released"]["sha256"] == digests
        with pytest.raises(ParameterError, match=r"released_verdicts: http://\S+ is not the file counted before"):
            verdicts(**given | there)
        with pytest.raises(ParameterError, match="released_answers: cannot be read .*404"):
            verdicts(**given | {"released_answers": address + "nothing"})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"columns": []}, None),
        ({"answers": {"prompts": QUESTIONS[::-1]}}, "other questions than the verdicts'"),
        ({"known": 11}, "lacks 'Question 11\\?' and 0 more"),
        ({"kind": "Other"}, "released_verdicts: category says 'Other'"),
        ({"said": "error"}, "released_verdicts: baseline_vs_relaxed says 'error'"),
        (
            {"answers": {"answers_baseline": ["right"]}},
            "released_answers: needs 12 texts in each of prompts, answers_b",
        ),
        ({"answers": {"answers_practical": [3] * 12}}, "released_answers: needs 12 texts"),
    ],
)
def test_files_that_do_not_fit_are_refused(changes, message, verdicts, monkeypatch, tmp_path):
    monkeypatch.setattr(fpo.llm, "RewardModel", Encoder)
    given = release(tmp_path, **changes)
    if message is None:
        (tmp_path / "verdicts.csv").write_text("question,winner\nQuestion 0?,relaxed\n")
        message = "the CSV has other columns"
    with pytest.raises(ParameterError, match=message):
        verdicts(**given)


def test_files_that_are_not_there_or_broken_are_refused(verdicts, tmp_path):
    given = release(tmp_path)
    with pytest.raises(ParameterError, match="give all three or none"):
        verdicts(**given | {"questions": ""})
    for name in ("released_verdicts", "released_answers"):
        with pytest.raises(ParameterError, match=f"{name}: cannot be read .*No such file"):
            verdicts(**given | {name: str(tmp_path / "nothing")})
    (tmp_path / "answers.json").write_text('{"prompts": [')
    with pytest.raises(ParameterError, match="released_answers: cannot be read"):
        verdicts(**given)
    (tmp_path / "answers.json").write_text("[]")
    with pytest.raises(ParameterError, match="released_answers: needs 12 texts"):
        verdicts(**given)
    (tmp_path / "verdicts.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match="released_verdicts: cannot be read"):
        verdicts(**given)
