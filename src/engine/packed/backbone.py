"""Run a frozen decoder: hidden states and logits. No other file of the engine knows how a model is built.

Both come from transformers' own code: its decoder's forward pass, and what its model does to the head's products. So
embedding multipliers, soft caps, scales and layers of several kinds are the family's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ...files.errors import ConfigError
from ...model.models import FAMILIES
from . import masks

# A name under which transformers finds its "sdpa" attention, but no function that makes masks: it then hands the mask that
# it is given to the layers. Under its own name, a decoder without a mask looks whether rows hold several sequences, which
# waits for the device, and inside a CUDA graph makes a mask, which turns the fast attention off.
READY_MASKS = "sdpa_with_ready_masks"

Transform = Callable[[torch.Tensor], torch.Tensor]


class Cache(Protocol):
    """The keys and values that a decoder's attention keeps."""

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]: ...


class Backbone:
    """A causal language model of transformers, of which the layers' linear modules may have been replaced.

    ``transform`` turns the head's products [rows, vocabulary] into logits, row by row; None where they are the logits.

    Raises:
        ConfigError: a model of which it is not known that it can be run in these two parts.
    """

    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        self.network = network
        self.dtype = dtype
        self.config = network.config
        if self.config.model_type not in FAMILIES:
            raise ConfigError(
                f"engine=packed: knows the families {', '.join(FAMILIES)}, not {self.config.model_type}; use engine=peft"
            )
        self.decoder = network.base_model
        self.compiled = False
        self.attention = self.config._attn_implementation
        if self.attention not in ("sdpa", "eager"):
            raise self._refusal(f"its attention, {self.attention}, takes no ready masks")
        if not getattr(self.config, "is_causal", True) or getattr(self.config, "use_bidirectional_attention", False):
            raise self._refusal("its tokens see later ones")
        if not hasattr(self.decoder, "layers"):
            raise self._refusal("it has no list of decoder layers")
        _register_attention()
        self.transform = self._head_transform()

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(f"engine=packed: cannot run a {self.config.model_type} model: {reason}; use engine=peft")

    @property
    def device(self) -> torch.device:
        device: torch.device = self.head_weight.device
        return device

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The names of the decoder layers, such as ``model.layers.0``."""
        return tuple(f"{self.network.base_model_prefix}.layers.{layer}" for layer in range(len(self.decoder.layers)))

    @property
    def head_weight(self) -> torch.Tensor:
        """The head's weight [vocabulary, d]."""
        weight: torch.Tensor = self.network.get_output_embeddings().weight
        return weight

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(decoder layers, heads of keys and values, numbers in each) of what attention keeps of a token."""
        heads = getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads
        head_dim = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        return self.config.num_hidden_layers, heads, head_dim

    def in_window(self, tokens: int) -> bool:
        """Check that each of so many tokens sees all before it, in every layer."""
        window = getattr(self.config, "sliding_window", None)
        return window is None or tokens <= window

    def compile(self) -> None:
        """Compile one decoder layer; the others, alike, use what was compiled."""
        self.compiled = True
        for layer in self.decoder.layers:
            layer.compile(dynamic=False)

    def hidden(
        self, ids: torch.Tensor, positions: torch.Tensor | None = None, mask: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Run the decoder: final hidden states [sequences, tokens, d]. It waits for no number: a CUDA graph can record it.

        Without a mask, padding is on the right, where no token looks. ``mask`` [sequences, 1, tokens, slots] is added to
        the attention's scores, in every layer; without a ``cache`` the tokens are the slots. Who gives a mask sees to it that
        no row in it is longer than the sliding window.

        Raises:
            ConfigError: without a mask, more tokens than the sliding window holds.
        """
        if mask is None and not self.in_window(ids.shape[1]):
            raise ConfigError(
                f"engine=packed: a row has {ids.shape[1]} tokens, more than the sliding window of {self.config.sliding_window};"
                " use engine=peft or a lower dataset.max_length"
            )
        x = self.network.get_input_embeddings()(ids)
        if self.compiled and torch.is_grad_enabled():
            x.requires_grad_()  # or the first layer, whose input needs no gradient, would be compiled for itself
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        if mask is None and self.attention == "eager":
            mask = masks.causal(ids.shape[1], x.dtype, x.device)
        with self._ready_masks():
            output = self.decoder(
                inputs_embeds=x, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=False,
                output_hidden_states=False, output_attentions=False, return_dict=True,
            )  # fmt: skip
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the model's own head to ``hidden`` [rows, d]: logits [rows, vocabulary]."""
        products = F.linear(hidden, self.head_weight)
        return products if self.transform is None else self.transform(products)

    @contextmanager
    def _ready_masks(self) -> Iterator[None]:
        """Let the decoder take masks as they are. Only here: transformers' ``generate`` needs the masks that it makes."""
        self.config._attn_implementation = READY_MASKS if self.attention == "sdpa" else self.attention
        try:
            yield
        finally:
            self.config._attn_implementation = self.attention

    def _head_transform(self) -> Transform | None:
        """Find what the model does to the head's products: run its own forward pass without its decoder and its head.

        ``rest`` shares all else with the model. That it hands on what it is given, in place and to the bit, is what makes
        a head bare.
        """
        head = self.network.get_output_embeddings()
        names = [name for name, module in self.network.named_children() if module is head]
        if type(head) is not nn.Linear or head.bias is not None or not names:
            raise self._refusal("its output head is more than a product with a weight")
        rest = copy.copy(self.network)
        rest.__dict__["_modules"] = {
            **self.network._modules, self.network.base_model_prefix: _Passed(), names[0]: nn.Identity()
        }  # fmt: skip

        def transform(products: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = rest(inputs_embeds=products[None], use_cache=False, return_dict=True).logits
            return logits[0]

        products = torch.linspace(-40, 40, 2 * len(head.weight), dtype=self.dtype, device=head.weight.device).view(2, -1)
        before = products.clone()
        try:
            with torch.no_grad():
                logits = transform(products)
        except Exception as error:  # whatever a forward pass does that expects more of its decoder
            raise self._refusal(f"its output head does not run by itself ({type(error).__name__})") from error
        if logits.shape != before.shape:
            raise self._refusal("its output head does not give a row of logits for each hidden state")
        bare = logits.data_ptr() == products.data_ptr() and logits.dtype == self.dtype and torch.equal(logits, before)
        return None if bare else transform


class _Passed(nn.Module):
    """Takes a decoder's place: its result is its input."""

    def forward(self, inputs_embeds: torch.Tensor, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]


def _register_attention() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(READY_MASKS, sdpa_attention_forward)
