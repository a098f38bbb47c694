"""A reward model (RM) with a linear head, read as trainers hand over prompts and completions."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fpo.llm.reading import Reader
from fpo.parameters import ParameterError

Said = str | Sequence[dict[str, Any]]  # a text, or the messages of a chat


def plain(said: Said) -> str:
    """A text, or what the messages say, a line each.

    Examples
    --------
    >>> plain([{"role": "user", "content": "Why?"}])
    'Why?'
    """
    return said if isinstance(said, str) else "\n".join(str(message["content"]) for message in said)


class Texts:
    """How an RM reads rows of prompt and completion.

    Parameters
    ----------
    tokenizer
    decoder : bool
        Whether prompt and completion are one text, the end of which counts; an encoder reads them as a pair.
    chat_template : bool
        Whether chats are shown under the tokenizer's template, if it has one.
    reads : str
        What the RM sees.

    Raises
    ------
    ParameterError
        For an unknown `reads`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decoder: bool, chat_template: bool, reads: str) -> None:
        if reads not in ("prompt and response", "response"):
            raise ParameterError(f"reads = {reads!r}: must be 'prompt and response' or 'response'")
        self._tokenizer, self._decoder, self._alone = tokenizer, decoder, reads == "response"
        self._template = chat_template and tokenizer.chat_template is not None

    def __call__(
        self, prompts: Sequence[Said], completions: Sequence[Said]
    ) -> tuple[list[str], list[str] | None, dict[str, Any]]:
        """Texts, the prompts beside them (None: they stand in the texts or nowhere), and how they are tokenized."""
        if self._alone:
            return [plain(completion) for completion in completions], None, {}
        if self._template and not isinstance(prompts[0], str):
            chats = [
                [*prompt, *([{"role": "assistant", "content": said}] if isinstance(said, str) else said)]
                for prompt, said in zip(prompts, completions, strict=True)
            ]
            shown = self._tokenizer.apply_chat_template(chats, tokenize=False)
            return list(shown), None, {"add_special_tokens": False}
        asked, told = [plain(prompt) for prompt in prompts], [plain(completion) for completion in completions]
        if self._decoder:  # as TRL joins them for a reward model of its own
            return [a + b for a, b in zip(asked, told, strict=True)], None, {"add_special_tokens": False}
        return told, asked, {}


def check_sizes(**sizes: int) -> None:
    """Refuse numbers below 1.

    Raises
    ------
    ParameterError
        That names the first.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ParameterError(f"{name} = {value!r}: must be a whole number, 1 or more")


class HeadReward(Reader):
    """An RM whose encoder is frozen and whose linear head is retrained: grad_phi r is what the head reads.

    Parameters
    ----------
    model : transformers model
        A sequence or token classifier with one output, an encoder, or a decoder; of a decoder the feature is the state
        at the last real token. A classifier's r is its own logit.
    tokenizer
    head : tensor (p,), optional
        Weights to begin with; None: the classifier's own, or zero.
    chat_template : bool
        Whether chats are read under the tokenizer's template.
    reads : {"prompt and response", "response"}
    max_length : int
        Tokens; a decoder loses what is longer at the beginning, an encoder at the end.
    batch : int
        Texts read at once.

    Raises
    ------
    ParameterError
        If the head does not fit, the model has no linear head with one output, or a number is out of its range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        head: torch.Tensor | None = None,
        chat_template: bool = True,
        reads: Literal["prompt and response", "response"] = "prompt and response",
        max_length: int = 1024,
        batch: int = 32,
    ) -> None:
        check_sizes(max_length=max_length, batch=batch)
        try:
            super().__init__(model, tokenizer, max_length, batch)
        except ValueError as error:
            raise ParameterError(f"model = {type(model).__name__}: {error}") from None
        if self.decoder:  # the end is what is read
            tokenizer.truncation_side = "left"
        self._texts = Texts(tokenizer, self.decoder, chat_template, reads)
        if head is None:
            self.set_head(own=self.own is not None)
        else:
            width = self.head.in_features
            if head.shape != (width,):
                raise ParameterError(f"head of shape {tuple(head.shape)}: must be ({width},), a weight for a feature")
            with torch.no_grad():
                self.head.weight.copy_(head[None])

    def read(self, prompts: Sequence[Said], completions: Sequence[Said]) -> torch.Tensor:
        """grad_phi r of each completion, (n, p)."""
        texts, beside, how = self._texts(prompts, completions)
        return self.features(texts, beside, padding_side="right", **how)
