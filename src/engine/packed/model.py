"""A base model whose adapted layers carry K runs, and what can be asked of it: hidden states, losses, continuations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...config.schema import ALL_LINEAR, Config
from ...data.batches import IGNORE, Batch
from ...files.errors import ConfigError
from ...measure.scorer import ROWS_AT_ONCE
from ...model.device import Numerics
from ...model.models import FAMILIES
from ...variants.quantization import linear_layers
from . import head, terms
from .buffers import Blocks, Bucket, Kind, buckets_of
from .decode import SLOTS, GreedyDecoder, KeyValues
from .frozen import Frozen, Plain, frozen, join
from .layer import FrozenLinear, PackedBlock, PackedLinear, StepContext
from .members import Member, rank_multiple

QUANTISED_LAYERS = ("Linear4bit", "Linear8bitLt")
EVALUATION_SHARE = 0.4  # of the free memory


class PackedModel:
    """``network`` with its targeted linear layers replaced. All rows are run-major: K times n rows are K blocks of n.

    Raises:
        ConfigError: a model whose forward pass is not known to be that of ``FAMILIES``.
    """

    def __init__(self, network: Any, config: Config, members: Sequence[Member], numerics: Numerics, fused: bool) -> None:
        if network.config.model_type not in FAMILIES:
            raise ConfigError(
                f"engine=packed: knows the families {', '.join(FAMILIES)}, not {network.config.model_type}; use engine=peft"
            )
        self.network = network
        self.decoder = network.model
        self.numerics = numerics
        self.compiled = False
        self.greedy: GreedyDecoder | None = None
        self.runs = len(members)
        self.int8 = config.variant.base_precision == "int8"
        self.members = list(members)
        device = numerics.device
        self.dtype = numerics.compute or numerics.base
        blocks, adapted = adapted_modules(network, config)
        trained = torch.promote_types(numerics.base, torch.float32)
        self.buckets = buckets_of(members, blocks, rank_multiple(device.type == "cuda"), trained, device)
        keys = torch.zeros(self.runs, dtype=torch.int64, device=device)
        self.context = StepContext(self.runs, keys, rows=keys[:, None], positions=keys[:, None])
        products: dict[str, Frozen] = {
            name: frozen(layer, self.dtype, config.model.hold_dequantised, fused) for name, layer in adapted.items()
        }
        self.products = products
        self.terms = terms.build(self.buckets, blocks, self.dense)
        self.blocks = blocks
        placed = [PackedBlock(layer, self.buckets, at, self.dtype) for at, layer in enumerate(self.decoder.layers)]
        _join(blocks, placed, products, adapted)
        for name, at, kind in blocks.modules:
            packed = PackedLinear(
                adapted[name], products[name], placed[at], kind, name, at, self.terms, self.buckets, self.context
            )
            setattr(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], packed)
        for name, layer in linear_layers(network):
            parent, _, leaf = name.rpartition(".")
            if leaf != "base_layer" and type(layer).__name__ in QUANTISED_LAYERS:
                product = frozen(layer, self.dtype, config.model.hold_dequantised, fused)
                setattr(network.get_submodule(parent), leaf, FrozenLinear(layer, product, self.context))
        self.decoder.layers = torch.nn.ModuleList(placed)

    def dense(self, name: str) -> torch.Tensor:
        """The frozen weight [out, in] of an adapted layer, in the format of the products."""
        weight: torch.Tensor = self.products[name].dense()
        return weight

    def refresh(self) -> None:
        """Bring what depends on A and B to their current values. Call it after each change of them."""
        for term in self.terms.values():
            term.update()

    def compile(self) -> None:
        """Compile one decoder layer; the others, alike, use what was compiled."""
        self.compiled = True
        for layer in self.decoder.layers:
            layer.compile(dynamic=False)

    def record_decoding(self) -> None:
        """Generate by a CUDA graph of one token's step: eagerly, a token costs the launches of a whole forward pass."""
        self.greedy = GreedyDecoder(self, recorded=True)

    def hidden(
        self, ids: torch.Tensor, position_ids: torch.Tensor | None = None, mask: torch.Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Final hidden states [sequences, tokens, d]. Without a mask, padding is on the right, where no token looks.

        ``mask`` [sequences, 1, tokens, slots] is added to the attention's scores; without a ``cache`` the tokens are the slots.
        """
        if not self._in_window(ids.shape[1]):
            raise ConfigError(f"engine=packed: sequences of {ids.shape[1]} tokens exceed the sliding window; use engine=peft")
        x = self.decoder.embed_tokens(ids)
        if self.compiled and torch.is_grad_enabled():
            x.requires_grad_()  # or the first layer, whose input needs no gradient, would be compiled for itself
        if position_ids is None:
            position_ids = torch.arange(ids.shape[1], device=ids.device)[None]
        # Not the decoder's own forward: with no mask it looks whether rows hold several sequences, which waits for the
        # device, and inside a CUDA graph builds a mask that turns the fast attention off.
        rotary = self.decoder.rotary_emb(x, position_ids)
        for layer in self.decoder.layers:
            x = layer(x, attention_mask=mask, position_ids=position_ids, position_embeddings=rotary, past_key_values=cache)
        found: torch.Tensor = self.decoder.norm(x)
        return found

    def _in_window(self, tokens: int) -> bool:
        """Whether each of so many tokens sees all before it."""
        window = getattr(self.decoder.config, "sliding_window", None)
        return window is None or tokens <= window

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(decoder layers, heads of keys and values, numbers in each) of what attention keeps of a token."""
        config = self.network.config
        heads = config.num_key_value_heads or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.num_hidden_layers, heads, head_dim

    @property
    def head_weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.network.get_output_embeddings().weight
        return weight

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.network.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
                yield
        finally:
            self.network.train()
            if self.greedy is not None:
                self.greedy.release()

    def rows_at_once(self, tokens: int) -> int:
        """Where there is a GPU, as many rows as a share of its free memory holds; eager decoding is bound by launches.

        A row is taken to need its keys and values once, in all slots that decoding rounds up to; what one decoder layer
        makes of all its tokens; the mask; and, held by a recorded step all the while, one layer's keys and values repeated
        for each head of the queries, and the logits of one token. What the estimate forgets, the share leaves room for.
        LLM.int8() looks at all rows of a batch, so there their number must not depend on the memory or the company.
        """
        device = self.numerics.device
        if device.type != "cuda" or self.int8:
            return ROWS_AT_ONCE
        config = self.network.config
        cache = 2 * math.prod(self.cache_shape)
        passing = 6 * config.hidden_size + 3 * config.intermediate_size  # of one decoder layer at a time
        row = ((tokens + SLOTS) * cache + tokens * (passing + tokens)) * self.dtype.itemsize + 10 * config.vocab_size
        # What a CUDA graph keeps for itself counts as reserved and is of no use here.
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        return max(1, int(EVALUATION_SHARE * free / (row * self.runs)))

    def target_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-losses [K, target tokens] of the same rows under each run, and the row each belongs to."""
        hidden = self.hidden(batch.input_ids.repeat(self.runs, 1))[:, :-1]
        labels = batch.labels[:, 1:]
        carries = labels != IGNORE
        chosen = hidden[carries.repeat(self.runs, 1)]
        found = head.losses(chosen, self.head_weight, labels[carries].repeat(self.runs))
        return found.view(self.runs, -1), carries.nonzero()[:, 0]

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """Continuations of the same prompts by each run, [K, rows, new tokens]."""
        if self.greedy is not None and self._in_window(ids.shape[1] + options["max_new_tokens"]):
            return self.greedy.generate(ids, mask, **options)
        ids_Kn, mask_Kn = ids.repeat(self.runs, 1), mask.repeat(self.runs, 1)
        output = self.network.generate(input_ids=ids_Kn, attention_mask=mask_Kn, do_sample=False, use_cache=True, **options)
        found: torch.Tensor = output[:, ids.shape[1] :].view(self.runs, len(ids), -1)
        return found

    def bucket_of(self, run: int) -> tuple[Bucket, int]:
        """The bucket that holds a run, and the run's row in it."""
        bucket = next(b for b in self.buckets if b.first <= run < b.first + b.runs)
        return bucket, run - bucket.first


def _join(blocks: Blocks, placed: Sequence[PackedBlock], products: dict[str, Frozen], adapted: dict[str, Any]) -> None:
    """Let modules that read one input share a product, wherever their weights are not quantised."""
    for prefix, block in zip(blocks.prefixes, placed, strict=True):
        for group in blocks.groups:
            names = [f"{prefix}.{kind.name}" for kind in group]
            plain = [product for name in names if isinstance(product := products[name], Plain)]
            if len(plain) < len(names) or len(names) == 1:
                continue
            for name, part in zip(names, join(plain), strict=True):
                products[name] = part
                if isinstance(adapted[name], torch.nn.Linear) and not hasattr(adapted[name].weight, "quant_state"):
                    adapted[name].weight.data = part.dense()  # or the weights would lie in memory twice
            block.joints.append(part.joint)


def rows_apart(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask [sequences, 1, W, W] of ``rows`` [sequences, W]: a token sees what is before it in its own row, and itself."""
    width = rows.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=rows.device).tril()
    seen = (rows[:, None, :, None] == rows[:, None, None, :]) & earlier
    return torch.zeros(seen.shape, dtype=dtype, device=rows.device).masked_fill_(~seen, -torch.inf)


def adapted_modules(network: Any, config: Config) -> tuple[Blocks, dict[str, Any]]:
    """The modules that get an adapter: as blocks, and the layers by name."""
    wanted = config.lora.target_modules
    layers = {name: layer for name, layer in linear_layers(network) if wanted == ALL_LINEAR or name.rpartition(".")[2] in wanted}
    prefixes = tuple(f"model.layers.{at}" for at in range(len(network.model.layers)))
    kinds = tuple(
        Kind(name.removeprefix(f"{prefixes[0]}."), layer.in_features, layer.out_features)
        for name, layer in layers.items()
        if name.startswith(f"{prefixes[0]}.")
    )
    blocks = Blocks(prefixes, kinds)
    assert [name for name, _, _ in blocks.modules] == list(layers), "decoder layers that are not alike"
    return blocks, layers
