"""Oracles: named, failing, and what the built-in ones measure."""

import pytest
import torch

from fpo.llm import RewardModel, TrainingError, Workbench, Writer, load_prompts, settings, train
from fpo.llm.oracles import Agreement, distinct_2, named_oracle, repetition
from fpo.parameters import ParameterError


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise BaseException('two\\nlines')", "BaseException: two lines"),
        ("import not_installed_anywhere", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("", "AttributeError: module 'odd_{}' has no attribute 'f'"),
        ("def __getattr__(name): raise OSError(name)", "OSError: f"),
        ("f = 3", None),
    ],
    ids=["zero", "syntax", "exit", "base", "missing", "empty", "lazy", "number"],
)
def test_an_oracle_that_cannot_be_imported(tmp_path, monkeypatch, request, content, reason):
    (tmp_path / f"odd_{request.node.callspec.id}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"odd_{request.node.callspec.id}:f"
    with pytest.raises(ParameterError) as caught:
        named_oracle(name)
    told = reason and (
        "must be likelihood, answer, or MODULE:FUNCTION, as it is or after pairwise: "
        f"({reason.format(request.node.callspec.id)}"
    )
    assert str(caught.value).startswith(f"oracle = '{name}': {told or 'not a function'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ":", ":f", "..x:f", "os.path", "a\0b:c", "\ud800:f", "x" * 5000 + ":f"])
def test_an_oracle_that_has_no_such_name(name):
    with pytest.raises(ParameterError, match="must be likelihood, answer, or MODULE:FUNCTION") as caught:
        named_oracle(name)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_agreement_ranks_answers():
    """A correct answer above a wrong one, and above itself repeated: on nearly all packaged prompts."""
    judge = Agreement(RewardModel(settings()))
    prompts = load_prompts("packaged", 500)
    right = judge(prompts, [prompt.correct[1] for prompt in prompts])
    wrong = judge(prompts, [prompt.incorrect[0] for prompt in prompts])
    twice = judge(prompts, [f"{prompt.correct[1]} {prompt.correct[1]}" for prompt in prompts])
    nothing = judge(prompts, ["" for _ in prompts])
    assert sum(a > b for a, b in zip(right, wrong, strict=True)) >= 0.97 * len(prompts)
    assert all(a > b for a, b in zip(right, twice, strict=True))
    assert all(-4 <= value < min(a, 8) for value, a in zip(nothing, right, strict=True))


def test_text_measures():
    assert repetition("") == 0 and repetition("one two three") == 0
    assert distinct_2(["one"]) == 0 and distinct_2(["a b a b"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("values", [[float("nan")] * 3, [1.0]])
def test_an_oracle_that_fails(tiny, values):
    with pytest.raises(TrainingError, match="the oracle gave"):
        train(settings(**tiny, steps=2), oracle=lambda prompts, texts: values)


def test_a_likelihood_that_is_not_finite(tiny):
    made = Workbench(settings(**tiny, steps=2))
    writer = Writer(made, made.settings)
    with pytest.raises(TrainingError, match="likelihood is not a finite number"):
        writer._utilities([0], [[[5]]], [["a"]], [1.0], torch.tensor([[torch.nan]]))
