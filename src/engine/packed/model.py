"""Adapt a base model by K runs at once, and evaluate it: losses of rows, continuations of prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...config.schema import ALL_LINEAR, Config
from ...data.batches import IGNORE, Batch
from ...measure.scorer import ROWS_AT_ONCE
from ...model.device import Numerics
from ...variants.quantization import linear_layers
from . import head, masks, terms
from .backbone import Backbone
from .buffers import Blocks, Bucket, Kind, buckets_of
from .decode import SLOTS, GreedyDecoder
from .frozen import Frozen, Plain, frozen, join
from .layer import FrozenLinear, PackedBlock, PackedLinear, StepContext
from .members import Member, rank_multiple

QUANTIZED_LAYERS = ("Linear4bit", "Linear8bitLt")
EVALUATION_SHARE = 0.4  # of the free memory


class PackedModel:
    """``network`` with its targeted linear layers replaced. All rows are run-major: K times n rows are K blocks of n.

    ``greedy`` continues prompts in place of transformers' ``generate``, where there is one.

    Raises:
        ConfigError: a model that ``Backbone`` cannot run.
    """

    def __init__(self, network: Any, config: Config, members: Sequence[Member], numerics: Numerics, fused: bool) -> None:
        self.dtype = numerics.compute or numerics.base
        self.backbone = Backbone(network, self.dtype)
        self.network = network
        self.numerics = numerics
        self.greedy: GreedyDecoder | None = None
        self.runs = len(members)
        self.int8 = config.variant.base_precision == "int8"
        self.members = list(members)
        device = numerics.device
        blocks, adapted = adapted_modules(network, self.backbone.prefixes, config)
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
        placed = [PackedBlock(layer, self.buckets, index, self.dtype) for index, layer in enumerate(self.backbone.decoder.layers)]
        _join(blocks, placed, products, adapted)
        for name, index, kind in blocks.modules:
            packed = PackedLinear(
                adapted[name], products[name], placed[index], kind, name, index, self.terms, self.buckets, self.context
            )
            setattr(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], packed)
        for name, layer in linear_layers(network):
            parent, _, leaf = name.rpartition(".")
            if leaf != "base_layer" and type(layer).__name__ in QUANTIZED_LAYERS:
                product = frozen(layer, self.dtype, config.model.hold_dequantised, fused)
                setattr(network.get_submodule(parent), leaf, FrozenLinear(layer, product, self.context))
        self.backbone.decoder.layers = torch.nn.ModuleList(placed)

    def dense(self, name: str) -> torch.Tensor:
        """Return the frozen weight [out, in] of an adapted layer, in the format of the products."""
        weight: torch.Tensor = self.products[name].dense()
        return weight

    def refresh(self) -> None:
        """Bring what depends on A and B to their current values. Call it after each change of them."""
        for term in self.terms.values():
            term.update()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.network.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager") if self.backbone.compiled else nullcontext():
                yield
        finally:
            self.network.train()
            if self.greedy is not None:
                self.greedy.release()

    def rows_at_once(self, tokens: int) -> int:
        """Choose how many rows to evaluate at once: on a GPU as many as a share of its free memory holds.

        Eager decoding is bound by launches. A row is taken to need its keys and values once, in all slots that decoding
        rounds up to; what one decoder layer makes of all its tokens; the mask; and, held by a recorded step all the while,
        one layer's keys and values repeated for each head of the queries, and the logits of one token. What the estimate
        forgets, the share leaves room for.
        LLM.int8() looks at all rows of a batch, so there their number must not depend on the memory or the company.
        """
        device = self.numerics.device
        if device.type != "cuda" or self.int8:
            return ROWS_AT_ONCE
        config = self.backbone.config
        cache = 2 * math.prod(self.backbone.cache_shape)
        passing = 6 * config.hidden_size + 3 * config.intermediate_size  # of one decoder layer at a time
        row = ((tokens + SLOTS) * cache + tokens * (passing + tokens)) * self.dtype.itemsize + 10 * config.vocab_size
        # What a CUDA graph keeps for itself counts as reserved and is of no use here.
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        return max(1, int(EVALUATION_SHARE * free / (row * self.runs)))

    def training_losses(
        self, ids: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, labeled: torch.Tensor, targets: torch.Tensor,
        weights: torch.Tensor, shared: bool, softmax: head.Softmax = head.softmax_losses,
    ) -> torch.Tensor:  # fmt: skip
        """Compute ``weights`` times the log-loss of each labeled token, [K, L], of one micro-batch.

        Shapes as in ``feed.Inputs``, without its first dimension. ``shared``: several rows may be in one sequence.
        """
        self.context.rows, self.context.positions = rows.view(self.runs, -1), positions.view(self.runs, -1)
        hidden = self.backbone.hidden(ids, positions, masks.rows_apart(rows, self.backbone.dtype) if shared else None)
        hidden_KTd = hidden.view(self.runs, -1, hidden.shape[-1])
        chosen = hidden_KTd.gather(1, labeled[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1)
        losses = head.weighted_losses(
            chosen, self.backbone.head_weight, targets.flatten(), weights.flatten(), softmax, self.backbone.transform
        )
        return losses.view(self.runs, -1)

    def target_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-losses [K, target tokens] of the same rows under each run, and the row each belongs to."""
        hidden = self.backbone.hidden(batch.input_ids.repeat(self.runs, 1))[:, :-1]
        labels = batch.labels[:, 1:]
        carries = labels != IGNORE
        chosen = hidden[carries.repeat(self.runs, 1)]
        losses = head.losses(chosen, self.backbone.logits, labels[carries].repeat(self.runs))
        return losses.view(self.runs, -1), carries.nonzero()[:, 0]

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """Continue the same prompts by each run, [K, rows, new tokens]."""
        if self.greedy is not None and self.backbone.in_window(ids.shape[1] + options["max_new_tokens"]):
            return self.greedy.generate(ids, mask, **options)
        ids_Kn, mask_Kn = ids.repeat(self.runs, 1), mask.repeat(self.runs, 1)
        output = self.network.generate(input_ids=ids_Kn, attention_mask=mask_Kn, do_sample=False, use_cache=True, **options)
        continuations: torch.Tensor = output[:, ids.shape[1] :].view(self.runs, len(ids), -1)
        return continuations

    def bucket_of(self, run: int) -> tuple[Bucket, int]:
        """Find the bucket that holds a run, and the run's row in it."""
        bucket = next(b for b in self.buckets if b.first <= run < b.first + b.runs)
        return bucket, run - bucket.first


def _join(blocks: Blocks, placed: Sequence[PackedBlock], products: dict[str, Frozen], adapted: dict[str, Any]) -> None:
    """Let modules that read one input share a product, wherever their weights are not quantized."""
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


def adapted_modules(network: Any, prefixes: tuple[str, ...], config: Config) -> tuple[Blocks, dict[str, Any]]:
    """List the modules that get an adapter, as blocks and by name; ``prefixes`` are the names of the decoder layers."""
    wanted = config.lora.target_modules
    layers = {name: layer for name, layer in linear_layers(network) if wanted == ALL_LINEAR or name.rpartition(".")[2] in wanted}
    kinds = tuple(
        Kind(name.removeprefix(f"{prefixes[0]}."), layer.in_features, layer.out_features)
        for name, layer in layers.items()
        if name.startswith(f"{prefixes[0]}.")
    )
    blocks = Blocks(prefixes, kinds)
    assert [name for name, _, _ in blocks.modules] == list(layers), "decoder layers that are not alike"
    return blocks, layers
