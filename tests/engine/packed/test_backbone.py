"""Compare the backbone with transformers' own forward pass, for families that the list of known ones leaves out too."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.config.schema import Config
from src.data.batches import IGNORE, Batch, collate, rows_at
from src.engine.packed import backbone, masks
from src.engine.packed.backbone import READY_MASKS, Backbone
from src.engine.packed.decode import GreedyDecoder
from src.engine.packed.engine import PackedEngine
from src.engine.packed.exchange import named
from src.files.errors import ConfigError
from src.measure.scorer import Scorer, Solo
from src.variants import adapters
from tests.engine.packed.conftest import CPU, EOS, FP32, FP64, ITEMS, LOGITS, PAD, Tensors, base_of, config_of, moved, rows

SHAPE: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2,
}  # fmt: skip
MULTIPLIERS: dict[str, Any] = {
    "logits_scaling": 4.0,
    "residual_multiplier": 0.5,
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.3,
}
LAYER_TYPES: dict[str, Any] = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "granite": MULTIPLIERS,
    "gemma2": {"sliding_window": 64, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25},
    "qwen3": {},
    "olmo2": {},
    "gemma3_text": LAYER_TYPES,
    "olmo3": LAYER_TYPES,
}
NO_TRANSFORM: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 1.0},
    "gemma2": {"final_logit_softcapping": None},
    "cohere": {"logit_scale": 1.0},
}
NO_TOKEN = 1000  # beyond the vocabulary: nothing ends
ROUNDING = 1e-12  # fp64's epsilon is 2e-16; a loss is the end of a few thousand additions and products


@pytest.fixture(autouse=True)
def _families_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "FAMILIES", ("llama", "qwen2", "mistral", *FAMILIES))


def network_of(family: str, dtype: torch.dtype, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES.get(family, {}), **more})
    network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    network.requires_grad_(False)
    network.config.use_cache = False
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(4)  # as initialized, attention is uniform and the layers add next to nothing
    return network


class Wide:
    """Stands for ``torch`` in a modeling file, but computes norms and softmax in fp64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compute norms and softmax in fp64: transformers' own are in fp32, which hides what fp64 would show."""

    def patch(network: Any) -> Any:
        monkeypatch.setattr(sys.modules[type(network).__module__], "torch", Wide())
        for norm in {type(module) for module in network.modules() if type(module).__name__.startswith("Gemma")}:
            if norm.__name__.endswith("Norm"):
                monkeypatch.setattr(norm, "forward", lambda self, x: self._norm(x) * (1 + self.weight))
        return network

    return patch


def first_batch(config: Config) -> Batch:
    return collate([ITEMS[row] for row in rows_at(0, 3, len(ITEMS), config.data_seed)], PAD, CPU)


def own_loss(network: Any, batch: Batch) -> torch.Tensor:
    """Compute the mean log-loss over labeled tokens from the logits of the model's own forward pass."""
    logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)


def pack_over(network: Any, configs: list[Config], numerics: Any) -> PackedEngine:
    return PackedEngine(network, configs, ITEMS, PAD, 4, numerics)


def configs_of() -> list[Config]:
    return [config_of("lora", "lora.r=3"), config_of("dora", "lora.r=5", "seed=1")]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_familys_own_forward_pass(family: str, exact: Any) -> None:
    configs = configs_of()
    network = exact(network_of(family, torch.float64))
    with torch.no_grad():
        wanted = [float(own_loss(network, first_batch(config))) for config in configs]
    pack = pack_over(network, configs, FP64)
    state = [pack.state(run) for run in range(2)]
    assert pack.advance(0, 1)[0].loss == pytest.approx(wanted, rel=ROUNDING)
    for run in range(2):
        pack.load_state(run, moved(state[run], seed=run))
    start = [{name: tensor.clone() for name, tensor in pack.trained(run).items()} for run in range(2)]
    (step,) = pack.advance(0, 1)
    for run, config in enumerate(configs):
        loss, gradients = of_peft(network_of(family, torch.float64), config, start[run])
        assert step.loss[run] == pytest.approx(loss, rel=ROUNDING)
        assert abs(loss - wanted[run]) > 1e-4
        bucket, row = pack.model.bucket_of(run)
        packed = named(pack.model, run, bucket.grads[:, row])
        assert packed.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert gradient.any()
            assert (packed[name] - gradient).norm() <= ROUNDING * 10 * gradient.norm(), name


def of_peft(network: Any, config: Config, values: Tensors) -> tuple[float, Tensors]:
    """Compute stock PEFT's loss and gradients at ``values``, for the run's first batch."""
    peft = adapters.attach(network, config.variant, config.lora, config.seed).double()  # its adapters are in fp32
    parameters = {name: parameter for name, parameter in peft.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
    loss = own_loss(peft, first_batch(config))
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["llama", *FAMILIES])
def test_evaluation_and_decoding_are_those_of_transformers(family: str) -> None:
    items = rows(7, (1, 14), (1, 6), seed=5)
    pack = pack_over(network_of(family, torch.float32), configs_of(), FP32)
    losses, wanted = (
        torch.tensor([loss.nats for loss in Scorer(scored, 4, PAD).losses(items)[0]])
        for scored in (pack.scored, Solo(network_of(family, torch.float32), FP32))
    )
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    for run in range(2):
        pack.load_state(run, moved(pack.state(run), seed=run))
    answers = Scorer(pack.scored, 4, PAD).generate(items, NO_TOKEN, 10)
    pack.model.greedy = GreedyDecoder(pack.model.backbone, 2, recorded=False)
    assert Scorer(pack.scored, 4, PAD).generate(items, NO_TOKEN, 10) == answers
    assert answers[0] != answers[1] and len({token for answer in answers[0] for token in answer}) > 10


def test_the_head_is_the_models_own() -> None:
    """The formulas are those of the papers: Granite 3.0, Gemma 2 (arXiv 2408.00118, section 2), Command R."""
    hidden = torch.randn(5, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(0))
    formulas: dict[str, Any] = {
        "granite": lambda z: z / 4.0, "gemma2": lambda z: 3.0 * torch.tanh(z / 3.0), "cohere": lambda z: 0.25 * z
    }  # fmt: skip
    for family in ("llama", *FAMILIES):
        network = network_of(family, torch.float32)
        model = Backbone(network, torch.float32)
        products = hidden @ network.lm_head.weight.t()
        assert (model.transform is None) == (family not in formulas)
        torch.testing.assert_close(model.logits(hidden), formulas.get(family, lambda z: z)(products), rtol=1e-6, atol=1e-6)
        bare = Backbone(network_of(family, torch.float32, **NO_TRANSFORM.get(family, {})), torch.float32)
        torch.testing.assert_close(bare.logits(hidden), products, rtol=0, atol=0)


class Watched(TorchDispatchMode):
    """Refuses operators that hand a number to the processor, as they wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        assert self.names[-1] not in self.WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma3_text"])
def test_no_mask_is_made_and_no_number_is_looked_at(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions start anew, for which transformers would make a mask of its own; a ready mask arrives as it is."""
    network = network_of(family, torch.float32, sliding_window=64)
    model = Backbone(network, torch.float32)
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    positions = torch.tensor([[*range(5), *range(7)], [*range(12)]])
    seen: list[tuple[Any, bool]] = []

    def attention(*args: Any, attn_mask: Any = None, is_causal: bool = False, **options: Any) -> torch.Tensor:
        seen.append((attn_mask, is_causal))
        return product(*args, attn_mask=attn_mask, is_causal=is_causal, **options)

    product = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    mask = masks.rows_apart(starts, torch.float32)
    with Watched(), torch.no_grad():
        model.hidden(ids, positions)
        assert seen == [(None, True)] * SHAPE["num_hidden_layers"]
        seen.clear()
        apart = model.hidden(ids, positions, mask)
    assert all(given is mask and not causal for given, causal in seen) and len(seen) == SHAPE["num_hidden_layers"]
    with torch.no_grad():
        torch.testing.assert_close(apart[:1, 5:], model.hidden(ids[:1, 5:]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(apart[:1, 5:], model.hidden(ids, positions)[:1, 5:], rtol=1e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_are_the_decoders_to_the_bit(attention: str) -> None:
    network = network_of("llama", torch.float32, attn_implementation=attention)
    model = Backbone(network, torch.float32)
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.hidden(ids), network.model(ids).last_hidden_state)
    assert network.config._attn_implementation == attention


def test_a_pass_that_fails_leaves_transformers_its_own_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("llama", torch.float32)
    model = Backbone(network, torch.float32)

    def fails(*args: Any, **options: Any) -> None:
        assert network.config._attn_implementation == READY_MASKS
        raise MemoryError

    monkeypatch.setattr(network.model.norm, "forward", fails)
    with pytest.raises(MemoryError):
        model.hidden(torch.zeros(1, 3, dtype=torch.int64))
    assert network.config._attn_implementation == "sdpa"


def with_bias(network: Any) -> None:
    network.lm_head.bias = torch.nn.Parameter(torch.ones(SHAPE["vocab_size"]))


def with_two_layers(network: Any) -> None:
    network.lm_head = torch.nn.Sequential(network.lm_head)


def with_a_decoder_that_is_asked_for_more(network: Any) -> None:
    class Asking(type(network)):  # type: ignore[misc]
        def forward(self, **options: Any) -> Any:
            return self.model(**options).router_logits

    network.__class__ = Asking


def with_other_attention(network: Any) -> None:
    network.config._attn_implementation = "flex_attention"


def with_no_layers(network: Any) -> None:
    del network.model.layers


def with_attention_both_ways(network: Any) -> None:
    network.config.is_causal = False


def of_another_family(network: Any) -> None:
    network.config.model_type = "phi"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_bias, "its output head is more than a product with a weight"),
        (with_two_layers, "its output head is more than a product with a weight"),
        (with_a_decoder_that_is_asked_for_more, "its output head does not run by itself (AttributeError)"),
        (with_other_attention, "its attention, flex_attention, takes no ready masks"),
        (with_no_layers, "it has no list of decoder layers"),
        (with_attention_both_ways, "its tokens see later ones"),
        (of_another_family, "knows the families"),
    ],
)
def test_what_is_not_known_is_refused(change: Any, reason: str) -> None:
    network = network_of("llama", torch.float32)
    change(network)
    with pytest.raises(ConfigError) as error:
        Backbone(network, torch.float32)
    (line,) = str(error.value).splitlines()
    assert reason in line and line.startswith("engine=packed: ") and line.endswith("use engine=peft")


def test_more_tokens_than_the_sliding_window_holds_are_refused() -> None:
    model = Backbone(network_of("gemma2", torch.float32, sliding_window=8), torch.float32)
    assert model.hidden(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, SHAPE["hidden_size"])
    with pytest.raises(ConfigError, match="a row has 9 tokens, more than the sliding window of 8; use engine=peft"):
        model.hidden(torch.zeros(1, 9, dtype=torch.int64))


def test_rows_in_one_sequence_may_exceed_the_sliding_window_together() -> None:
    """Each sees itself alone, so its own length counts: losses are those of transformers' forward, a row at a time."""
    config = config_of("lora", "train.batch_size=8")
    window = max(len(item) for item in ITEMS)
    network = network_of("mistral", torch.float32, sliding_window=window)
    batch = [ITEMS[row] for row in rows_at(0, 8, len(ITEMS), config.data_seed)]
    with torch.no_grad():
        sums = [float(own_loss(network, collate([item], PAD, CPU))) * len(item.target) for item in batch]
    pack = pack_over(network, [config], FP32)
    assert pack.feed.shared and pack.feed.width > window
    (step,) = pack.advance(0, 1)
    assert step.loss[0] == pytest.approx(sum(sums) / sum(len(item.target) for item in batch), rel=LOGITS)


def test_a_row_longer_than_the_sliding_window_is_refused_before_training() -> None:
    network = network_of("mistral", torch.float32, sliding_window=10)
    longest = max(len(item) for item in ITEMS)
    with pytest.raises(ConfigError, match=f"a training row has {longest} tokens, more than the sliding window of 10"):
        pack_over(network, [config_of("lora")], FP32)


def test_what_a_cache_keeps() -> None:
    """Against the keys that transformers' own cache holds after three tokens; heads need not share the width out evenly."""
    for family in ("llama", *FAMILIES):
        network = network_of(family, torch.float32, **({"head_dim": 8} if family in ("llama", "qwen3") else {}))
        model = Backbone(network, torch.float32)
        cache = network(input_ids=torch.zeros(1, 3, dtype=torch.int64), use_cache=True).past_key_values
        layers, heads, head_dim = model.cache_shape
        assert [tuple(layer.keys.shape) for layer in cache.layers] == [(1, heads, 3, head_dim)] * layers
        assert model.prefixes == ("model.layers.0", "model.layers.1")


def test_the_base_of_the_tiny_model_has_a_bare_head() -> None:
    """The fast way through the head is the one that the known families take."""
    for family in ("llama", "qwen2", "mistral"):
        network = base_of(config_of("lora", f"model.shape.model_type={family}"), FP32)
        assert Backbone(network, torch.float32).transform is None
