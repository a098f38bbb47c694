"""Questions, answers, the judges that need no network, and verdicts: against definitions and slower routes."""

from __future__ import annotations

import csv
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from fpo.evaluation import answers, capability, judges, verdicts
from fpo.evaluation.questions import COLUMNS, load_questions
from fpo.evaluation.verdicts import Judged
from fpo.llm import Policy, RewardModel, settings
from fpo.llm.prompts import Prompt
from fpo.parameters import ParameterError

HELD_OUT = load_questions("packaged:heldout")


# Questions


def table(path, rows, columns=("Type", *COLUMNS)):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return str(path)


def test_a_csv_of_truthfulqa(tmp_path):
    rows = [["x", "Why?", "B", "A; B ; C;", "no; never"], ["x", 'Who said "so"?', "", "he", "she\nor they"]]
    found = load_questions(table(tmp_path / "q.csv", rows))
    assert found[0] == Prompt("truthfulqa-001", "Why?", ("B", "A", "C"), ("no", "never"))
    assert found[1].correct == ("he",) and found[1].incorrect == ("she\nor they",)


def test_questions_that_are_refused(tmp_path):
    cases = {
        table(tmp_path / "a.csv", [["x", "Why?", "B", "A"]], ("Type", *COLUMNS[:3])): "no column 'Incorrect Answers'",
        table(tmp_path / "b.csv", [["x", "Why?", "B", "A", " ; "]]): "'truthfulqa-001' lacks a text, a correct or",
        table(tmp_path / "c.csv", []): "holds no question",
        table(tmp_path / "e.csv", [["x", " ", "B", "A", "no"]]): "'truthfulqa-001' lacks a text",
        table(
            tmp_path / "f.csv", [["x", "Why?", "B", "A", "no"], ["x", "Who?", "", "; ", "no"]]
        ): "'truthfulqa-002' lacks",
        str(tmp_path / "none.csv"): "cannot be read .*No such file",
        "somebody/something": "must be packaged:heldout, NAME.jsonl, NAME.csv or truthfulqa/truthful_qa",
    }
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe\x00Question")
    cases[str(tmp_path / "d.csv")] = "cannot be read"
    for source, message in cases.items():
        with pytest.raises(ParameterError, match=message):
            load_questions(source)
    (tmp_path / "bare.jsonl").write_text('{"prompt": "Why?"}\n')
    with pytest.raises(ParameterError, match="question '1' lacks a text, a correct or an incorrect answer"):
        load_questions(str(tmp_path / "bare.jsonl"))


@pytest.mark.parametrize("fault", ["", "column", "split"])
def test_truthfulqa_on_the_hub(fault, monkeypatch):
    """A stand-in of its rows: the same questions as from the CSV, and one message where there are other columns."""
    rows = [{"question": "Why?", "best_answer": "B", "correct_answers": ["A", "B", ""], "incorrect_answers": ["no"]}]
    rows = [{name: value for name, value in row.items() if fault != "column" or name != "best_answer"} for row in rows]

    def load(name, kind, split):
        if fault == "split":
            raise OSError("planted")
        assert (name, kind, split) == ("truthfulqa/truthful_qa", "generation", "validation")
        return rows

    datasets = ModuleType("datasets")
    datasets.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    if not fault:
        assert load_questions("truthfulqa/truthful_qa") == [Prompt("truthfulqa-001", "Why?", ("B", "A"), ("no",))]
        return
    message = {"column": "has no column 'best_answer'; needed are", "split": r"the hub does not give it \(OSError: pl"}
    with pytest.raises(ParameterError, match=message[fault]):
        load_questions("truthfulqa/truthful_qa")


# Answers


def test_answer_files_that_do_not_fit(tmp_path):
    good = {"arm": "base", "answers": {question.id: "So." for question in HELD_OUT}, "cut": [HELD_OUT[3].id]}
    assert answers.checked("x", good | {"provenance": {}}, HELD_OUT).cut == [HELD_OUT[3].id]
    assert answers.checked("x", good, HELD_OUT).to(HELD_OUT[:2]) == ["So.", "So."]
    short = {key: value for key, value in good["answers"].items() if key != HELD_OUT[5].id}
    cases = [
        ([], "'content': Input should be a valid dictionary"),
        ({"arm": "base"}, "'answers': Field required"),
        ({"answers": {}}, "'arm': Field required"),
        (good | {"arm": ""}, "'arm': String should have at least 1 character"),
        (good | {"arm": 3}, "'arm': Input should be a valid string"),
        (good | {"answers": []}, "'answers': Input should be a valid dictionary"),
        (good | {"answers": short}, f"lacks an answer to '{HELD_OUT[5].id}'"),
        (good | {"answers": good["answers"] | {"heldout-001": 3}}, "'answers.heldout-001': Input should be a valid s"),
        (good | {"answers": good["answers"] | {"other": "x"}}, "answers what was not asked: 'other'"),
        (good | {"cut": ["other"]}, "says \"cut\" of 'other'"),
        (good | {"cut": [["x"]]}, "'cut.0': Input should be a valid string"),
        *((good | {"cut": cut}, "'cut': Input should be a valid list") for cut in (None, 3, "heldout-001")),
    ]
    for content, message in cases:
        with pytest.raises(ParameterError, match=message) as caught:
            answers.checked("x", content, HELD_OUT)
        assert str(caught.value).startswith("answers x: ") and "\n" not in str(caught.value)
    (tmp_path / "broken.json").write_text('{"arm": ')
    for name, message in (("broken.json", "'content': Invalid JSON"), ("none.json", "cannot be read .*No such file")):
        with pytest.raises(ParameterError, match=f"{name}: {message}"):
            answers.read(tmp_path / name, HELD_OUT)


@pytest.fixture(scope="module")
def policy(tiny):
    return Policy(settings(**tiny))


def test_answers_are_the_likeliest_words(policy):
    """Against one forward pass a word, each question alone."""
    asked = [HELD_OUT[i] for i in (0, 7, 30)]
    texts, cut = answers.write(policy, asked, "Be short.", 9, batch=2)
    for question, text, short in zip(asked, texts, cut, strict=True):
        ids = policy.encode(question.text, "Be short.")
        tokens: list[int] = []
        while len(tokens) < 9 and not (tokens and tokens[-1] in policy.ends):
            with torch.no_grad():
                tokens.append(int(policy.model(input_ids=torch.tensor([ids + tokens])).logits[0, -1].argmax()))
        assert text == policy.text(tokens)
        assert short == (tokens[-1] not in policy.ends)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 3}, {"lora_alpha": 40}], ids=["own", "rank", "alpha"])
def test_an_adapter_answers_as_the_policy_that_wrote_it(changes, tiny, tmp_path):
    """Whatever its rank and scale; the command writes an answer file that can be read."""
    trained = Policy(settings(**tiny, **changes))
    with torch.no_grad():
        for value in trained.adapter.values():
            value.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    trained.save_pretrained(tmp_path / "adapter")
    (tmp_path / "four.jsonl").write_text(
        "".join(
            json.dumps({"prompt": q.text, "id": q.id, "correct": q.correct, "incorrect": q.incorrect}) + "\n"
            for q in HELD_OUT[:4]
        )
    )
    bank, out = load_questions(str(tmp_path / "four.jsonl")), tmp_path / "mine.json"
    command = [str(out), "--arm", "mine", "--questions", str(tmp_path / "four.jsonl"), "--tokens", "6"]
    answers.main([*command, "--adapter", str(tmp_path / "adapter")])
    found = answers.read(out, bank)
    texts, cut = answers.write(trained, bank, settings().system, 6)
    assert found.arm == "mine" and found.to(bank) == texts
    assert found.cut == [question.id for question, short in zip(bank, cut, strict=True) if short]
    assert json.loads(out.read_text())["provenance"]["made_by"].startswith(
        f"python -m fpo.evaluation.answers {out} --arm"
    )
    with trained.base():
        assert answers.write(trained, bank, settings().system, 6)[0] != texts
    with pytest.raises(SystemExit, match="adapter is not a folder"):
        answers.main([*command, "--adapter", str(tmp_path / "none" / "adapter")])


# Judges


def made(questions=40, answers_each=6, features=5, seed=0):
    """Answers whose truth depends on their features, and much more on their question."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"question {i}" for i in range(questions)], answers_each)
    read = rng.normal(size=(len(names), features))
    mark = np.repeat(rng.normal(size=(questions, features)), answers_each, axis=0)
    labels = rng.random(len(names)) < 1 / (1 + np.exp(-3 * read[:, 0]))
    return names, torch.tensor(np.c_[read, mark, np.ones(len(names))]), labels


def test_the_fit_is_logistic_regression():
    from scipy.optimize import minimize

    _, read, labels = made()
    x, sign = read.numpy(), np.where(labels, 1.0, -1.0)

    def loss(w):
        return np.mean(np.logaddexp(0, -sign * (x @ w))) + 0.05 * w @ w

    wanted = minimize(loss, np.zeros(x.shape[1]), tol=1e-10).x
    assert judges.fit(read, labels, 0.1).numpy() == pytest.approx(wanted, abs=1e-4)


def test_no_question_is_judged_by_a_model_that_saw_its_labels():
    """With one column for each question, a model that had seen a question's labels would know them all."""
    names, read, _ = made()
    alike = np.array([int(name.split()[1]) % 2 == 0 for name in names])
    own = torch.tensor(np.eye(40)[[int(name.split()[1]) for name in names]])
    leaking = torch.cat([own, torch.ones(len(own), 1, dtype=own.dtype)], dim=1)
    seen = torch.sigmoid(leaking @ judges.fit(leaking, alike, 1e-4)).numpy()
    assert judges.quality(seen, alike)["accuracy"] == 1  # the planted fault

    def cross(labels):
        return judges.crossed(judges.fit_folds(leaking, labels, list(names), 5, 1e-4), leaking, list(names))

    crossed = cross(alike)
    assert judges.quality(crossed, alike)["accuracy"] < 0.6
    # And a change of a question's labels changes no probability of its own answers.
    flipped = np.where(names == "question 7", ~alike, alike)
    again = cross(flipped)
    same = np.array([judges.fold(name, 5) for name in names]) == judges.fold("question 7", 5)
    assert np.array_equal(again[same], crossed[same]) and not np.array_equal(again[~same], crossed[~same])
    assert judges.fold("Question  7", 5) == judges.fold("question 7", 5)
    with pytest.raises(ValueError, match="too few for 5 folds"):
        judges.fit_folds(read[:6], [True] * 6, list(names[:6]), 5, 0.1)


def test_quality_by_its_definitions():
    rng = np.random.default_rng(1)
    p = rng.random(300).round(2)
    labels = rng.random(300) < p**2
    found = judges.quality(p, labels)
    wins = [(a > b) + (a == b) / 2 for a in p[labels] for b in p[~labels]]
    assert found["auc"] == pytest.approx(np.mean(wins))
    assert found["accuracy"] == np.mean((p > 0.5) == labels)
    assert found["brier"] == pytest.approx(np.mean((p - labels) ** 2))
    assert sum(row[2] for row in found["calibration"]) == 300
    bins = np.minimum((p * 10).astype(int), 9)
    gap = sum(abs(np.sum(p[bins == place]) - np.sum(labels[bins == place])) for place in range(10))
    assert found["calibration_error"] == pytest.approx(gap / 300, abs=1e-12)
    assert np.isnan(judges.quality(p, np.ones(300, bool))["auc"])


def test_within_compares_answers_to_one_question_alone():
    """A score that knows only which question is easy puts half of the pairs right."""
    labels, questions = [True, False, True, True, False], ["a", "a", "b", "b", "b"]
    assert judges.within(np.array([0.9, 0.9, 0.1, 0.1, 0.1]), labels, questions) == 0.5
    assert judges.within(np.array([0.2, 0.1, 0.9, 0.3, 0.4]), labels, questions) == pytest.approx(2 / 3)
    assert np.isnan(judges.within(np.array([1.0]), [True], ["a"]))


def test_a_judge_is_fitted_to_a_file_of_labels(tmp_path):
    lines = [
        {"prompt": f"Q: Question {i}?\nA: Answer {j} is {word}.\nTrue:", "completion": said}
        for i in range(12)
        for j in range(4)
        for word, said in (("so", " yes"), ("not so", " no"))
    ]
    (tmp_path / "labels").write_text("\n".join(map(json.dumps, lines)))
    judges.main([str(tmp_path / "labels"), str(tmp_path / "judge.json"), "--each", "6"])
    found = json.loads((tmp_path / "judge.json").read_text())
    assert (found["answers"], found["questions"], np.shape(found["judges"])) == (72, 12, (5, 385))
    best = found["ridges"][found["ridge"]]
    assert best["within"] > 0.9 and best["brier"] == min(row["brier"] for row in found["ridges"].values())
    bad = {"prompt": "Q: x", "completion": " yes"}
    (tmp_path / "labels").write_text(json.dumps(lines[0]) + "\n" + json.dumps(bad))
    for name, message in (("labels", "line 2 is no labeled answer of TruthfulQA"), ("none", "No such file")):
        with pytest.raises(SystemExit, match=message) as caught:
            judges.main([str(tmp_path / name), str(tmp_path / "new.json")])
        assert "\n" not in str(caught.value) and not (tmp_path / "new.json").exists()


def test_labels_are_drawn_by_their_content_alone(tmp_path):
    """In whichever order the file has them; an answer may hold what elsewhere ends a line."""
    lines = [
        json.dumps({"prompt": f"Q: {q}?\nA: So\u2028{i}. \nTrue:", "completion": said}, ensure_ascii=False)
        for q in ("Why", "Who")
        for i, said in enumerate((" yes", " no", " yes", " no", " yes"))
    ]
    drawn = []
    for place, order in enumerate((lines, lines[::-1])):
        (tmp_path / f"{place}").write_text("\n".join(order) + "\n", encoding="utf-8")
        questions, texts, labels = judges.read_labels(tmp_path / f"{place}", 2)
        assert sorted(questions) == ["Who?"] * 2 + ["Why?"] * 2
        assert labels == [text in ("So\u20280.", "So\u20282.", "So\u20284.") for text in texts]
        drawn.append(set(zip(questions, texts, labels, strict=True)))
    assert drawn[0] == drawn[1]
    assert len(judges.read_labels(tmp_path / "0", 9)[0]) == 10


def test_similarity_takes_the_nearest_reference_of_each_kind(tiny):
    encoder = RewardModel(settings(**tiny))
    asked = [HELD_OUT[0], HELD_OUT[0], HELD_OUT[9]]
    given = [HELD_OUT[0].correct[1], HELD_OUT[0].incorrect[0], "Neither here nor there."]
    found = judges.similarity(encoder, asked, given)

    def near(text, kind):
        a = encoder.features([text])[0]
        return max(float(a @ b / a.norm() / b.norm()) for b in encoder.features(kind))

    for question, text, value in zip(asked, given, found, strict=True):
        assert value == pytest.approx(near(text, question.correct) - near(text, question.incorrect), abs=1e-5)
    assert found[0] > 0 > found[1]


# Verdicts


def test_an_error_is_never_a_tie():
    said = ["first", "second", "tie", None]
    found = {(a, b): Judged(a, b).outcome for a in said for b in said}
    assert {pair for pair, outcome in found.items() if outcome == "tie"} == {("tie", "tie")}
    assert {pair for pair, outcome in found.items() if outcome == "error"} == {p for p in found if None in p}
    assert found["first", "second"] == "first" and found["second", "first"] == "second"
    assert found["first", "first"] == found["first", "tie"] == "split"
    row = verdicts.counts([Judged(a, b) for a, b in found])
    assert (row["wins"], row["losses"], row["ties"], row["errors"], row["splits"]) == (1, 1, 1, 7, 6)


def test_position_bias_counts_calls_that_name_a_winner():
    """The first shown wins where `forward` says first, and where `backward` does; errors and ties are no evidence."""
    said = [
        ("first", "second"),
        ("second", "first"),
        ("tie", "tie"),
        ("first", "first"),
        ("first", None),
        ("tie", "second"),
    ]
    bias = verdicts.position_bias([Judged(*each) for each in said])
    assert (bias["wins"], bias["losses"], bias["ties"]) == (5, 3, 3) and bias["share"] == 5 / 8


# Capability


def test_capability_without_the_harness_says_what_to_install(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ParameterError, match=r"pip install 'fpo\[capability\]'"):
        capability.capability(policy)


def test_capability_asks_the_harness_for_the_papers_setting(policy, monkeypatch):
    """A stand-in of the harness, which seeds everything as the real one does, and looks at the dropout."""
    asked = {}

    def evaluate(**given):
        asked.update(given, training=[layer.training for layer in policy.model.modules() if layer.training])
        torch.manual_seed(1234)
        return {
            "results": {"mmlu": {"alias": "mmlu", "acc,none": 0.48, "acc_stderr,none": 0.01, "sample_len": 2850}},
        }

    class Tasks:
        all_tasks = ("mmlu", "arc_challenge")

        def __init__(self, include_path, include_defaults):
            assert include_path is None and include_defaults

    modules = {
        "lm_eval": {"simple_evaluate": evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **given: given},
        "lm_eval.tasks": {"TaskManager": Tasks},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    layer = next(each for name, each in policy.model.named_modules() if name.endswith("lora_dropout.default"))
    layer.train()
    torch.manual_seed(5)
    found = capability.capability(policy)
    drawn = float(torch.rand(1))
    torch.manual_seed(5)
    assert drawn == float(torch.rand(1)) and layer.training
    layer.eval()
    assert found == {"mmlu": {"acc": 0.48, "acc_stderr": 0.01, "sample_len": 2850.0}}
    assert (asked["tasks"], asked["limit"], asked["num_fewshot"]) == (["mmlu", "arc_challenge"], 50, 0)
    assert asked["model"]["pretrained"] is policy.model and asked["model"]["batch_size"] == 4
    assert not asked["training"]
    with pytest.raises(ParameterError, match="knows no 'nothing'"):
        capability.capability(policy, ["nothing"])


def test_random_states_and_dropout_come_back_after_an_error():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1)).train()
    torch.manual_seed(3)
    with pytest.raises(ArithmeticError), capability.untouched(model):
        model.eval()
        torch.rand(7)
        raise ArithmeticError
    drawn = float(torch.rand(1))
    torch.manual_seed(3)
    assert drawn == float(torch.rand(1)) and all(layer.training for layer in model.modules())
