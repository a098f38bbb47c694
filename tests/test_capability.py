"""Capability through lm-evaluation-harness itself, on tasks of this file: `make capability`. Nothing is fetched."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the harness is not installed: pip install -e '.[capability]'")

import torch
from lm_eval.tasks import TaskManager

from fpo.evaluation.capability import PAPER, capability
from fpo.llm import Policy, settings
from fpo.parameters import ParameterError

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GROUP = """
group: both
task: [two_words, few_words]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
WORDS = ["red", "blue", "green", "long", "cold"]


@pytest.fixture(scope="module")
def policy(tiny):
    made = Policy(settings(**tiny))
    with torch.no_grad():
        for value in made.adapter.values():
            value.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with two tasks and a group of both, and each task's questions."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    (tmp_path / "tasks").mkdir()
    rows = {}
    for name, count in (("two_words", 12), ("few_words", 7)):
        rows[name] = []
        for _ in range(count):
            question, choices = f"{' '.join(rng.choice(WORDS, 3))} is", [*rng.choice(WORDS, 2, False)]
            rows[name].append({"question": question, "choices": choices, "label": int(rng.integers(2))})
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows[name])))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, file=file))
    (tmp_path / "tasks" / "both.yaml").write_text(GROUP)
    return tmp_path / "tasks", rows


def likelihood(policy, row, choice):
    ids = policy.tokenizer(row["question"] + " " + choice).input_ids
    start = len(policy.tokenizer(row["question"]).input_ids)
    with torch.no_grad():
        logs = policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_accuracy_is_that_of_the_likelier_choice_and_nothing_else_has_changed(policy, tasks):
    """Of the first ten questions, and of all seven; the adapter is on."""
    folder, rows = tasks
    layer = next(each for name, each in policy.model.named_modules() if name.endswith("lora_dropout.default"))
    layer.train()
    torch.manual_seed(5), np.random.seed(5)
    found = capability(policy, ["both"], limit=10, own_tasks=folder)
    drawn = float(torch.rand(1)), float(np.random.rand())
    torch.manual_seed(5), np.random.seed(5)
    assert drawn == (float(torch.rand(1)), float(np.random.rand())) and layer.training
    layer.eval()
    right = {
        name: [np.argmax([likelihood(policy, row, c) for c in row["choices"]]) == row["label"] for row in own[:10]]
        for name, own in rows.items()
    }
    for name, own in (*right.items(), ("both", [*right["two_words"], *right["few_words"]])):
        assert found[name]["acc"] == pytest.approx(np.mean(own)) and found[name]["sample_len"] == len(own), name
        assert found[name]["acc_stderr"] > 0


def test_a_task_that_is_not_there(policy, tasks):
    with pytest.raises(ParameterError, match="knows no 'three_words'"):
        capability(policy, ["three_words"], own_tasks=tasks[0])


def test_the_harness_knows_the_papers_tasks():
    assert set(PAPER["tasks"]) <= set(TaskManager().all_tasks)
