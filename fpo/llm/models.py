"""The two models of a run: a policy whose base is itself without its adapter, and a reward model with a linear head."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from fpo.llm.reading import Reader
from fpo.llm.settings import Settings
from fpo.llm.weights import (
    ModelError,
    adapted,
    build,
    configuration,
    is_adapter,
    merge,
    packaged_encoder,
    packaged_policy,
    tokenizer,
)

CLASSIFIERS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
# What an adapter's first tensors depend on, beside the base.
ADAPTER = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "gradient_checkpointing", "seed")


def pick_device(name: str) -> torch.device:
    """The device a run computes on.

    Raises
    ------
    ModelError
        If CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError('device = "cuda": PyTorch sees no CUDA device here')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _quantization(settings: Settings, device: torch.device) -> dict[str, Any]:
    if settings.quantization == "none":
        return {}
    if device.type != "cuda" or find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization = {settings.quantization!r} needs CUDA and the package bitsandbytes")
    from transformers import BitsAndBytesConfig

    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    chosen = four if settings.quantization == "4bit" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**chosen), "device_map": {"": device}}


def _random_seed(settings: Settings) -> int | None:
    return settings.seed if settings.weights == "random" else None


class Policy:
    """A causal language model with a LoRA adapter. Inside `base()` the adapter is off, and it is the base model.

    Where the settings name a PEFT folder, as `save_pretrained` writes them, the base is the model that it was trained
    on with that adapter merged into it.

    Attributes
    ----------
    model : transformers model
        With the adapter's layers in it.
    adapter : dict of tensors
        What is trained, by name.
    untrained : bool
        Whether the adapter is as `initialize` made it; who changes it says so.
    tokenizer
    ends : list of int
        The ids that end a response.

    Raises
    ------
    ModelError
        If the model cannot be had or is no causal language model.
    """

    def __init__(self, settings: Settings) -> None:
        self.device = pick_device(settings.device)
        name, random = settings.policy, settings.weights == "random"
        merged = Path(name).expanduser() if is_adapter(name) and not random else None
        if merged:
            name = adapted(merged)
        config, folder = configuration(name, settings.policy_revision, packaged_policy, random)
        kinds = config.architectures or []
        if kinds and not any(kind.endswith("ForCausalLM") for kind in kinds):
            raise ModelError(f"policy = {name!r} is a {kinds[0]}: a causal language model is needed")
        self._quantization = {} if random else _quantization(settings, self.device)
        self.model = build(
            AutoModelForCausalLM, config, folder, name, getattr(torch, settings.dtype), _random_seed(settings),
            **self._quantization,
        )  # fmt: skip
        if merged:
            self.model = merge(self.model, merged)
        self.tokenizer = tokenizer(name, folder or packaged_policy())
        ends = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ends = self.tokenizer.eos_token_id if ends is None or random else ends
        self.ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        if self.tokenizer.chat_template is None:
            warnings.warn(
                f"policy = {name!r} has no chat template: prompts are the system message, the text and a new line",
                stacklevel=2,
            )
        self._check_head(self.model)
        self._check_targets(self.model, name, settings.lora_targets.split())
        self._peft: Any = None
        self._beside = False  # whether several adapters are on, side by side
        self._initial: tuple[Mapping[str, Any], list[torch.Tensor]] | None = None
        self.initialize(settings)

    def initialize(self, settings: Settings) -> None:
        """Give the policy the adapter that one newly loaded with these settings has, to the last bit.

        Raises
        ------
        ModelError
            If no adapter fits on `lora_targets`.
        """
        wanted = {name: getattr(settings, name) for name in ADAPTER}
        if self._initial is None or self._initial[0] != wanted:
            if self._initial is not None:
                self._remove(self._initial[0]["gradient_checkpointing"])
            self._insert(settings)
            self._initial = wanted, [value.detach().clone() for value in self.adapter.values()]
        with torch.no_grad():
            for value, initial in zip(self.adapter.values(), self._initial[1], strict=True):
                value.copy_(initial)
        self.untrained = True

    def _insert(self, settings: Settings) -> None:
        lora = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=settings.lora_targets.split(),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
            torch.manual_seed(settings.seed)
            try:
                self._peft = get_peft_model(self.model, lora)
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise ModelError(
                    f"lora_targets = {settings.lora_targets!r}: no adapter fits there ({reason})"
                ) from None
        if not self._quantization:
            self._peft.to(self.device)
        if settings.gradient_checkpointing:
            self._peft.enable_input_require_grads()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in later versions
                self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._peft.eval()
        self.model = self._peft.get_base_model()
        self.adapter = {key: value for key, value in self._peft.named_parameters() if value.requires_grad}

    def _remove(self, checkpointing: bool) -> None:
        self.model = self._peft.unload()
        if checkpointing:  # or peft would see it on, and hook the inputs once more
            self.model.disable_input_require_grads()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in later versions
                self.model.gradient_checkpointing_disable()

    @staticmethod
    def _check_targets(model: PreTrainedModel, name: str, targets: Sequence[str]) -> None:
        # peft passes over a name that it does not find beside one that it finds.
        ends = [f".{path}" for path, _ in model.named_modules()]
        unknown = [target for target in targets if not any(end.endswith(f".{target}") for end in ends)]
        if unknown or not targets:
            named = " or ".join(unknown) or "so"
            raise ModelError(f"policy = {name!r} has no modules named {named}: set lora_targets")

    @staticmethod
    @torch.inference_mode()
    def _check_head(model: PreTrainedModel) -> None:
        # Chunked cross-entropy applies the output layer itself; a model that scales or caps its logits needs more.
        ids = torch.tensor([[1, 2, 3]], device=model.device)
        states = model.base_model(input_ids=ids).last_hidden_state
        if not torch.allclose(model(input_ids=ids).logits, model.get_output_embeddings()(states), atol=1e-2, rtol=1e-2):
            raise ModelError(f"{type(model).__name__} changes its logits after the output layer: not supported")

    @contextmanager
    def base(self) -> Iterator[None]:
        """The base model: the adapter switched off, or all of them."""
        if self._beside:
            self._beside = False
            try:
                yield
            finally:
                self._beside = True
        else:
            with self._peft.disable_adapter():
                yield

    @contextmanager
    def side_by_side(self, adapters: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """R adapters in place of the one: every batch holds the rows of one run after another, as many of each.

        Run i's rows get y = W x + s B_i A_i x, the base's weights are read once for all of them (LoRA, Hu et al.
        2021; s = lora_alpha / lora_rank). The adapter's dropout is off.

        Parameters
        ----------
        adapters : mapping of tensors (R, ...)
            By the names of `adapter`.
        """
        hooks = []
        for path, layer in self._peft.named_modules():
            if isinstance(layer, torch.nn.Module) and isinstance(layer, LoraLayer):
                down, up = (adapters[f"{path}.lora_{part}.default.weight"] for part in "AB")
                hooks.append(layer.register_forward_hook(self._adding(down, up, layer.scaling["default"])))
        self._beside = True
        try:
            with self._peft.disable_adapter():
                yield
        finally:
            self._beside = False
            for hook in hooks:
                hook.remove()

    def _adding(self, down: torch.Tensor, up: torch.Tensor, scale: float) -> Any:
        def add(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            if not self._beside:
                return None
            rows = inputs[0].reshape(len(down), -1, down.shape[-1]).to(down.dtype)  # (R, rows x tokens, in)
            added = torch.bmm(torch.bmm(rows, down.mT), up.mT)
            return out + (scale * added).view_as(out).to(out.dtype)

        return add

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Dropout on, for an update."""
        self._peft.train()
        try:
            yield
        finally:
            self._peft.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's own format, to be loaded by `PeftModel.from_pretrained(base, folder)`."""
        # Left to itself peft asks the hub for the base, to see whether the vocabulary has grown; it has not.
        self._peft.save_pretrained(str(folder), save_embedding_layers=False)

    def encode(self, text: str, system: str, turns: Sequence[tuple[str, str]] = ()) -> list[int]:
        """A prompt's ids under the chat template, ready to be answered.

        Where the tokenizer has no template: the system message, the text, and a new line. A chat's earlier `turns`,
        (role, content) each, stand before the text; a system message among them takes the place of `system`.
        """
        if system and not any(role == "system" for role, _ in turns):
            turns = [("system", system), *turns]
        if self.tokenizer.chat_template is None:
            return self.tokenizer("\n".join([*(content for _, content in turns), text, ""])).input_ids
        messages = [{"role": role, "content": content} for role, content in (*turns, ("user", text))]
        shown = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(shown, add_special_tokens=False).input_ids

    def text(self, tokens: Sequence[int]) -> str:
        """A response's text, without its end; half a character, which no other tokenizer reads, as a question mark."""
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        return text.encode(errors="replace").decode()


class RewardModel(Reader):
    """The `Reader` of a run's settings: an encoder, or a classifier of texts or of tokens with one output.

    Raises
    ------
    ModelError
        If the model cannot be had, or has not exactly one output.
    """

    def __init__(self, settings: Settings) -> None:
        device = pick_device(settings.device)
        name, random = settings.reward_model, settings.weights == "random"
        config, folder = configuration(name, settings.reward_revision, packaged_encoder, random)
        kind = (config.architectures or [""])[0]
        loader: Any = AutoModel
        for end, classifier in CLASSIFIERS.items():
            if kind.endswith(end):
                loader = classifier
        if kind.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")):
            raise ModelError(f"reward_model = {name!r} is a {kind}: an encoder or a sequence classifier is needed")
        if loader is not AutoModel and config.num_labels != 1:
            raise ModelError(f"reward_model = {name!r} has {config.num_labels} outputs: a reward model has one")
        self._name = name
        if settings.head_start == "own" and loader is AutoModel:
            raise self._headless()
        model = build(loader, config, folder, name, getattr(torch, settings.reward_dtype), _random_seed(settings))
        words = tokenizer(name, folder or packaged_encoder())
        try:
            super().__init__(model.to(device), words, settings.reward_tokens, settings.batch)
        except ValueError as error:
            raise ModelError(f"reward_model = {name!r}: {error}") from None
        self.reset_head(own=settings.head_start == "own")

    def _headless(self) -> ModelError:
        return ModelError(f'head_start = "own": reward_model = {self._name!r} is an encoder without a head of its own')

    def reset_head(self, own: bool) -> None:
        """Set the head to zero, or to the classifier's own.

        Raises
        ------
        ModelError
            If an encoder is asked for its own.
        """
        if own and self.own is None:
            raise self._headless()
        self.set_head(own)
