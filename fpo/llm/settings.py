"""Settings of a run: profiles chosen by name, every field open to be replaced."""

import re
from collections.abc import Collection, Hashable, Iterable
from typing import Any, Literal

import yaml
from pydantic import Field

from fpo.parameters import ParameterError, Parameters, allowed, brief, one_line, real, text, whole
from fpo.rules import RULES

PAIRWISE = "pairwise:"  # an oracle's name begins with it if it judges pairs
RuleName = Literal[*RULES]  # type: ignore[valid-type]  # a checker sees no names in it: they stand in the records alone


class Settings(Parameters):
    """One run of iterative RLHF. The defaults are those of the profile `smollm2-135m`."""

    profile: Literal["smollm2-135m", "llama-3.2-1b"] = Field("smollm2-135m", description="where the defaults come from")
    policy: str = text("packaged", "the policy's base", "packaged, a folder, or a model id of the hub")
    policy_revision: str = text("main", "revision on the hub", "a branch, tag or commit")
    reward_model: str = text("packaged", "the RM: an encoder or classifier", "packaged, a folder, or a hub id")
    reward_revision: str = text("main", "revision on the hub", "a branch, tag or commit")
    weights: Literal["pretrained", "random"] = Field("pretrained", description="random: the exact architecture only")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the policy's base")
    reward_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the RM's encoder")
    quantization: Literal["none", "4bit", "8bit"] = Field("none", description="of the policy's base (CUDA only)")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = whole(0, 0, 1024, "CPU threads; 0 leaves PyTorch's choice")

    lora_rank: int = whole(16, 1, 1024, "rank of the adapter")
    lora_alpha: int = whole(32, 1, 4096, "scale of the adapter")
    lora_dropout: float = real(0.0, 0.0, 0.9, "dropout in the adapter while it learns")
    lora_targets: str = text("q_proj k_proj v_proj o_proj", "modules with an adapter", "names separated by blanks")
    gradient_checkpointing: bool = Field(False, description="less memory for more time in the policy's update")

    prompts: str = text("packaged", "source of the prompts", "packaged, FILE.jsonl, or owner/name:split of the hub")
    prompt_count: int = whole(500, 1, 1_000_000, "take so many from the source, or all there are")
    system: str = Field(
        "Answer in one short sentence.",
        max_length=10_000,
        description="system message; empty: none",
        json_schema_extra={"allowed": "a text of at most 10,000 characters"},
    )
    max_prompt_tokens: int = whole(128, 8, 100_000, "with the chat template")
    long_prompts: Literal["refuse", "truncate"] = Field("refuse", description="prompts over max_prompt_tokens")

    steps: int = whole(32, 1, 10_000_000, "prompts in all; one step each")
    window: int = whole(4, 1, 4096, "steps between updates")
    candidates: int = whole(8, 1, 1024, "responses of the policy to a prompt")
    max_new_tokens: int = whole(32, 1, 4096, "of a response")
    min_new_tokens: int = whole(5, 0, 4096, "of a response, its end not counted")
    temperature: float = real(0.8, 0.01, 100.0, "of sampling")
    top_p: float = real(0.9, 0.01, 1.0, "nucleus of sampling")

    rule: RuleName = Field("standard", description="how the winner is chosen")
    gamma: float | None = real(None, 0, 1e6, "weight of the penalty; None: the rule's own")
    oracle: str = text(
        "likelihood",
        "true utility U: of your own, (prompts, responses) -> numbers, or with `pairwise:` (prompts, responses, "
        "references) -> probabilities that the response is better",
        f"likelihood, answer, MODULE:FUNCTION, or {PAIRWISE}MODULE:FUNCTION",
    )
    scale: float = real(1.0, 1e-6, 1e6, "of utilities in what the RM learns: p* = sigmoid(scale (U_z - U_ref))")
    labels: str = Field(
        "",
        description="a file that keeps an oracle's labels by prompt and text, so that none is asked for twice",
        json_schema_extra={"allowed": "empty, or the path of an SQLite file"},
    )
    label_timeout: float = real(
        60.0, 0.0, 1e6, "with labels: seconds that one call of the oracle may take; 0: no limit"
    )
    label_tries: int = whole(3, 1, 1000, "with labels: calls of the oracle until a label is given up")
    measure: Literal["candidates", "winner"] = Field(
        "candidates", description="whose U the trace reports; the winner's alone saves labels and time"
    )
    measure_kl: bool = Field(True, description="the trace's log-ratio to the base, for a pass of the base a window")
    reference_labels: Literal["at once", "as they come"] = Field(
        "at once", description="when references are made and labeled: all first, or each with its window"
    )
    reward_reads: Literal["response", "prompt and response"] = Field("response", description="what the RM sees")
    reward_tokens: int = whole(128, 4, 100_000, "longest text that the RM reads; the rest is cut off")
    reward_dropout: Literal["off", "update", "update and standard scores"] = Field(
        "off", description="where the RM's encoder has its dropout on (the last is the release's)"
    )
    head_start: Literal["own", "answers", "blind spot", "zero"] = Field(
        "answers", description="the head before the first step: the classifier's own, fitted to pairs, or zero"
    )
    head_prompts: int = whole(0, 0, 1_000_000, "whose pairs the first fit takes, drawn by the seed; 0: all")
    head_ridge: float = real(1e-2, 1e-8, 1e3, "ridge of the head's loss in its fit and in H")
    buffer_size: int = whole(512, 0, 1_000_000, "comparisons that H is taken over")
    head_update: Literal["step", "refit"] = Field(
        "step", description="after a window: one AdamW step, or the minimum of its loss over the buffer"
    )
    head_learns: Literal["winner", "candidates"] = Field(
        "winner", description="which comparisons with the reference the RM is trained on"
    )
    policy_lr: float = real(2e-5, 0.0, 1.0, "AdamW, adapter")
    head_lr: float = real(5e-5, 0.0, 1.0, "AdamW, RM head")
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field("adamw", description="the latter by bitsandbytes, CUDA")
    learn_from: Literal["sequence", "response"] = Field("sequence", description="tokens in the policy's loss")

    seed: int = whole(42, 0, 2**32 - 1, "of the order of prompts, every sample, the adapter's and any random weights")
    save_every: int = whole(1, 1, 1_000_000, "windows between checkpoints")
    chunk: int = whole(128, 1, 1_000_000, "tokens whose logits are held at once")
    batch: int = whole(32, 1, 100_000, "texts or prompts in a batch where the window does not set it")

    def weight(self) -> float:
        """gamma, or the rule's own."""
        return RULES[self.rule].gamma if self.gamma is None else self.gamma


PROFILES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {},
    # Gauthier et al. 2026, language-model experiment; bf16 in place of 4-bit and 8-bit, which arguments restore.
    "llama-3.2-1b": {
        "policy": "meta-llama/Llama-3.2-1B-Instruct",
        "reward_model": "OpenAssistant/reward-model-deberta-v3-base",
        "dtype": "bfloat16",
        "reward_dtype": "float32",
        "lora_dropout": 0.05,
        "gradient_checkpointing": True,
        "prompts": "HuggingFaceH4/ultrafeedback_binarized:train_prefs",
        "system": "",
        "long_prompts": "truncate",
        "steps": 500,
        "reward_dropout": "update",
        "head_start": "own",
    },
}


def settings(profile: str = "smollm2-135m", **changes: Any) -> Settings:
    """A profile with some fields replaced.

    Raises
    ------
    ParameterError
        For an unknown profile or field, or a value that is not allowed.

    Examples
    --------
    >>> settings("llama-3.2-1b", quantization="4bit").lora_dropout
    0.05
    """
    known = PROFILES.get(profile, {}) if isinstance(profile, str) else {}
    return Settings(**{**known, "profile": profile, **changes})


def listed() -> str:
    """Every setting with its default, meaning and range, a line each."""
    fields = Settings.model_fields.items()
    return "\n".join(f"{k} = {field.default!r}: {field.description} ({allowed(Settings, k)})" for k, field in fields)


class _Strict(yaml.SafeLoader):
    """YAML in which a name given twice is an error, where the first would be lost without a word, and 1e-3 a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for twice in (key for number, key in enumerate(keys) if key in keys[:number]):
            raise yaml.constructor.ConstructorError(None, None, f"{brief(twice)} is given twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 asks for a point and a sign, 1.0e-3, and takes what most people write for a text.
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """A value written in YAML.

    Raises
    ------
    ParameterError
        If it is not YAML, or gives a name twice; the message begins with `source`.
    """
    try:
        return yaml.load(text, Loader=_Strict)
    except Exception as error:  # beside YAMLError, the constructors raise a different type for each kind of damage
        raise ParameterError(f"{source}: not YAML ({type(error).__name__}: {one_line(error)})") from None


def overridden(texts: Iterable[str], own: Collection[str]) -> dict[str, Any]:
    """The settings that a notebook's list `overrides` gives; `own` are the names that the notebook sets itself.

    Raises
    ------
    ParameterError
        For a text that is not `name: value`, a name of `own`, or one that is given twice.

    Examples
    --------
    >>> overridden(["oracle: answer", "lora_rank: 4"], own=["steps"])
    {'oracle': 'answer', 'lora_rank': 4}
    """
    found: dict[str, Any] = {}
    for each in texts:
        entry = f"overrides: {brief(each)}"
        given = read_yaml(each, entry)
        if not isinstance(given, dict) or [type(name) for name in given] != [str]:
            raise ParameterError(f'{entry}: must be "name: value"')
        (name,) = given
        if name in own:
            raise ParameterError(f"{entry}: the notebook sets {name} itself")
        if name in found:
            raise ParameterError(f"{entry}: {brief(name)} is given twice")
        found |= given
    return found
