"""What a reward model (RM) reads of a text: its features, and the linear head on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether a model's kind writes texts from left to right, so that the state at the last token has read all."""
    kind = type(model.config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def pad_by(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let both pad with the same token, the one that ends texts if the tokenizer has none to pad with."""
    if tokenizer.pad_token is None:  # decoders often have none, and a batch needs one
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


class Reader:
    """A frozen encoder and a linear head: r = w . features + b, so that grad_phi r is the features (and 1 for b).

    A classifier of texts or of tokens with one output keeps its own head, and the features are what that layer reads:
    of a decoder, at the text's last token. Any other encoder gives its mean state over the text's tokens, normalized,
    a decoder without a head its state at the last token, and either a new head without bias.

    Parameters
    ----------
    model : transformers model
    tokenizer
        With a token to pad with, or one that ends texts, which then pads.
    longest : int
        Tokens that are read; what is longer is cut off where the tokenizer cuts.
    batch : int
        Texts in a batch.

    Attributes
    ----------
    head : Linear (p, 1)
        In float32; zero when made.
    own : Linear or None
        The model's own head.

    Raises
    ------
    ValueError
        If the model has a head that is no linear layer with one output.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int, batch: int) -> None:
        self.device, self.tokenizer = model.device, tokenizer
        self._longest, self._batch = longest, batch
        self._asked: tuple | None = None  # what was read last, and what it gave
        self._features = torch.empty(0)
        self._read = torch.empty(0)  # what the model's own head read last
        self._encoder = model.eval().requires_grad_(False)
        pad_by(model, tokenizer)
        self.decoder = is_decoder(model)
        self.own: torch.nn.Linear | None = None
        if type(model).__name__.endswith(("ForSequenceClassification", "ForTokenClassification")):
            layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
            heads = [layer for layer in layers if layer.out_features == 1]
            if not heads:
                raise ValueError("its head is no linear layer with one output")
            self.own = heads[-1]
            self.own.register_forward_pre_hook(lambda _, inputs: setattr(self, "_read", inputs[0]))
        width = self.own.in_features if self.own else model.config.hidden_size
        # The head is float32 whatever the encoder: a step of 5e-5 is lost in half precision.
        bias = self.own is not None and self.own.bias is not None
        self.head = torch.nn.Linear(width, 1, bias=bias, device=self.device)
        self.set_head(own=False)

    def set_head(self, own: bool) -> None:
        """Set the head to zero, or to the model's own.

        Raises
        ------
        ValueError
            If it has none.
        """
        for value in self.head.parameters():
            torch.nn.init.zeros_(value)
        if own:
            if self.own is None:
                raise ValueError("the model has no head of its own")
            self.head.load_state_dict({key: value.float() for key, value in self.own.state_dict().items()})

    def features(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None, dropout: bool = False, **how: Any
    ) -> torch.Tensor:
        """What the head reads of each text, (n, p) float32: without `prompts` the RM sees the texts alone.

        `how` goes to the tokenizer.
        """
        asked = (list(texts), None if prompts is None else list(prompts), how)
        if not dropout and asked == self._asked:  # the oracle `answer` asks for what the RM has just read
            return self._features.clone()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]) + (len(prompts[i]) if prompts else 0))
        found = torch.empty(len(texts), self.head.in_features, device=self.device)
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            pairs = [[texts[i] for i in rows]]
            if prompts:
                pairs.insert(0, [prompts[i] for i in rows])
            read = self.tokenizer(
                *pairs, padding=True, truncation=True, max_length=self._longest, return_tensors="pt", **how
            ).to(self.device)
            found[rows] = self._forward(read, dropout)
        if not dropout:
            self._asked, self._features = asked, found.clone()
        return found

    @torch.no_grad()
    def _forward(self, read: Mapping[str, torch.Tensor], dropout: bool) -> torch.Tensor:
        self._encoder.train(dropout)
        # A causal model's base gives its states; a classifier is asked as a whole, so that its head is.
        out = (self._encoder if self.own is not None else self._encoder.base_model)(**read)
        self._encoder.eval()
        states = out.last_hidden_state if self.own is None else self._read
        if states.dim() == 2:
            return states.float()
        mask = read["attention_mask"]
        if self.own is not None or self.decoder:
            # A decoder's head is applied to every token, and its answer for the last one counts. A classifier of texts
            # knows padding by its id, and takes an end of text that is padded with for padding too.
            if states is self._read and type(self._encoder).__name__.endswith("ForSequenceClassification"):
                mask = (read["input_ids"] != self._encoder.config.pad_token_id).long()
            places = torch.arange(mask.shape[1], device=mask.device)
            return states[torch.arange(len(mask)), (mask * places).argmax(1)].float()
        return F.normalize((states.float() * mask[..., None]).sum(1) / mask[..., None].sum(1), dim=-1)

    @torch.no_grad()
    def rewards(self, features: torch.Tensor) -> torch.Tensor:
        """r, (...,), of features (..., p)."""
        return self.head(features)[..., 0]
