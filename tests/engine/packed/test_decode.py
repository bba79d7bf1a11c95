"""Compare decoding in place with transformers' ``generate``, also when only the operators of a CUDA graph are repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from src.data.batches import Item
from src.engine.packed.decode import LOOK, SLOTS, GreedyDecoder
from src.engine.packed.engine import PackedEngine
from src.engine.packed.masks import prompts
from src.measure.scorer import Scorer
from tests.engine.packed.conftest import EOS, PAD, config_of, moved, pack_of, rows

ITEMS: list[Item] = rows(11, (1, 14), (1, 6), seed=5)
MIXED = ["lora", "rslora", "dora"]
QWEN, MISTRAL = "model.shape.model_type=qwen2", "model.shape.model_type=mistral"
NO_TOKEN = 1000  # beyond the tiny model's vocabulary: nothing ends


def trained_pack(variants: Sequence[str], *overrides: str) -> PackedEngine:
    configs = [config_of(name, f"seed={index}", f"lora.r={3 + 2 * index}", *overrides) for index, name in enumerate(variants)]
    pack = pack_of(configs)
    for run in range(len(configs)):
        pack.load_state(run, moved(pack.state(run), seed=run))
    return pack


def left_padded(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def answers(
    pack: PackedEngine, size: int, new: int, eos: int | Sequence[int] = EOS, items: Sequence[Item] = ITEMS
) -> list[list[list[int]]]:
    return Scorer(pack.scored, size, PAD).generate(items, eos, new)


def in_place(pack: PackedEngine) -> GreedyDecoder:
    """Let the pack decode by its own code, eagerly."""
    pack.model.greedy = GreedyDecoder(pack.model.backbone, pack.model.runs, recorded=False)
    return pack.model.greedy


def token_within(results: list[list[list[int]]]) -> int:
    """Choose a token that ends many of these answers in their middle, but not all."""
    within = Counter(token for one_run in results for answer in one_run for token in set(answer[1:-1]))
    total = sum(map(len, results))
    return next(token for token, count in within.most_common() if count < total)


@pytest.mark.parametrize(
    ("variants", "overrides"),
    [
        (MIXED, ()),
        (["qlora", "qdora"], ()),
        (["lora"], ()),
        (["lora", "dora"], (QWEN, "model.shape.tie_word_embeddings=false", "model.shape.head_dim=8")),
        (["lora", "dora"], (MISTRAL, "model.shape.num_key_value_heads=4")),
    ],
    ids=["mixed", "nf4", "alone", "qwen2", "mistral"],
)
@pytest.mark.parametrize("size", [1, 4, len(ITEMS)])
def test_tokens_are_those_of_transformers(variants: list[str], overrides: tuple[str, ...], size: int) -> None:
    """Prompts of 1 to 14 tokens, in batches of one and of several sizes; answers that end and answers that are cut short."""
    pack = trained_pack(variants, *overrides)
    wanted = answers(pack, size, 12, NO_TOKEN)
    eos = token_within(wanted)
    ending = answers(pack, size, 12, eos)
    lengths = {len(answer) for one_run in ending for answer in one_run}
    assert 12 in lengths and lengths & set(range(1, 11))
    in_place(pack)
    assert answers(pack, size, 12, NO_TOKEN) == wanted
    assert answers(pack, size, 12, eos) == ending
    assert answers(pack, size, 1, eos) == [[answer[:1] for answer in one_run] for one_run in ending]


def test_answers_end_at_the_first_of_several_tokens() -> None:
    """By transformers and in place: where free answers would be cut. Later batches may have more ends than the first."""
    pack = trained_pack(MIXED)
    free = answers(pack, 4, 12, NO_TOKEN)
    first = token_within(free)
    second = token_within([[answer for answer in one_run if first not in answer] for one_run in free])
    in_place(pack)
    for stop in ([first], [first, second], [NO_TOKEN, second, first, NO_TOKEN + 1]):
        wanted = [[answer[: min(map(answer.index, {*stop} & {*answer}), default=12)] for answer in one_run] for one_run in free]
        assert answers(pack, 4, 12, stop) == wanted != free
        decoder, pack.model.greedy = pack.model.greedy, None
        assert answers(pack, 4, 12, stop) == wanted
        pack.model.greedy = decoder


def test_a_row_that_ended_holds_padding() -> None:
    """The same tensors, but for the columns until the next look: there all have ended."""
    pack = trained_pack(MIXED)
    ids, mask = left_padded([item.prompt for item in ITEMS[:2]])
    with pack.model.evaluating():
        free = pack.model.generate(ids, mask, max_new_tokens=40, pad_token_id=PAD, eos_token_id=NO_TOKEN)
        for eos in free[0, 0, 1:20:6].tolist():
            pack.model.greedy = None
            wanted = pack.model.generate(ids, mask, max_new_tokens=40, pad_token_id=PAD, eos_token_id=eos)
            in_place(pack)
            tokens = pack.model.generate(ids, mask, max_new_tokens=40, pad_token_id=PAD, eos_token_id=eos)
            made = wanted.shape[2]
            assert tokens.shape == (3, 2, min(40, -(-made // LOOK) * LOOK))
            assert torch.equal(tokens[..., :made], wanted)
            assert bool((tokens[..., made:] == PAD).all())


def test_decoding_stops_once_all_rows_have_ended() -> None:
    pack = trained_pack(["lora"])
    ids, mask = left_padded([ITEMS[0].prompt])
    in_place(pack)
    with pack.model.evaluating():
        free = pack.model.generate(ids, mask, max_new_tokens=30, pad_token_id=PAD, eos_token_id=NO_TOKEN)
        first = int(free[0, 0, 0])
        tokens = pack.model.generate(ids, mask, max_new_tokens=30, pad_token_id=PAD, eos_token_id=[NO_TOKEN, first])
    assert free.shape == (1, 1, 30)
    assert tokens.tolist() == [[[first] + [PAD] * (LOOK - 1)]]


def test_an_evaluation_that_fails_gives_back_what_it_held() -> None:
    pack = trained_pack(["lora"])
    greedy = in_place(pack)
    ids, mask = left_padded([ITEMS[0].prompt])
    with pytest.raises(MemoryError), pack.model.evaluating():
        greedy.generate(ids, mask, 2, PAD, EOS)
        raise MemoryError
    assert greedy.held is None and pack.model.network.training


class Replayed(TorchDispatchMode):
    """Keeps the operators of the first step and from then on repeats just these, as a CUDA graph does.

    No Python of the step runs again, and what the operators read must lie where it lay.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "lift_fresh")

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function
        self.shapes: list[tuple[int, ...]] = []
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.WAITING), func
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def run(self, shape: tuple[int, ...], inputs: tuple[torch.Tensor, ...]) -> None:
        if not self.calls:
            self.shapes.append(shape)
            with self:
                self.function()
            return
        assert shape == self.shapes[-1]
        self.replays += 1
        now: dict[int, torch.Tensor] = {}
        for func, args, kwargs, result in self.calls:
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: now.get(id(tensor), tensor), (args, kwargs))
            again = func(*args, **kwargs)
            now.update({id(old): new for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True)})

    def release(self) -> None:
        self.calls.clear()


@pytest.mark.parametrize("variants", [MIXED, ["qlora", "qdora"]], ids="-".join)
def test_a_recorded_step_serves_all_tokens_of_all_batches_that_fit(variants: list[str]) -> None:
    """Rows of rising length; the last batch is smaller; two of the batches need more slots than the ones before."""
    pack = trained_pack(variants)
    items = [*ITEMS, *rows(7, (20, 40), seed=6)]
    wanted = answers(pack, 5, 12, NO_TOKEN, items)
    eos = token_within(wanted)
    ending = answers(pack, 5, 12, [eos, EOS], items)
    greedy = in_place(pack)
    recording = Replayed(greedy._step)
    greedy.graphs = recording  # type: ignore[assignment]
    assert answers(pack, 5, 12, [eos, EOS], items) == ending
    assert recording.shapes == [(5, SLOTS), (5, 2 * SLOTS)]
    assert recording.replays > 20
    assert greedy.held is None and not recording.calls  # given back
    assert answers(pack, 5, 12, NO_TOKEN, items) == wanted


def test_what_is_held_never_shrinks() -> None:
    """A batch with more rows but fewer tokens than the one before would otherwise be followed by one that does not fit."""
    pack = trained_pack(["lora"])
    greedy = in_place(pack)
    shapes = []
    with pack.model.evaluating():
        for count, length, new in ((2, 40, 4), (3, 5, 4), (1, 60, 4), (1, 61, 4), (3, 70, 4)):
            ids, mask = left_padded([[7] * length] * count)
            assert greedy.generate(ids, mask, new, PAD, EOS).shape == (1, count, new)
            assert greedy.held is not None
            shapes.append((greedy.held.rows, greedy.held.width))
    assert shapes == [(2, 64), (3, 64), (3, 64), (3, 96), (3, 96)]


def test_numbers_that_are_not_finite_do_not_outlive_their_batch() -> None:
    pack = trained_pack(["lora", "dora"])
    greedy = in_place(pack)
    ids, mask = left_padded([item.prompt for item in ITEMS[:4]])
    with pack.model.evaluating():
        wanted = greedy.generate(ids, mask, 6, PAD, EOS)
        assert greedy.held is not None
        greedy.held.cache.keys.fill_(torch.nan)
        greedy.held.cache.values.fill_(torch.inf)
        assert torch.equal(greedy.generate(ids, mask, 6, PAD, EOS), wanted)


def test_what_exceeds_the_sliding_window_is_left_to_transformers() -> None:
    """Transformers lets the first tokens of such a sequence go, and the buffers here would not."""
    pack = trained_pack(["lora"], MISTRAL)
    pack.model.backbone.config.sliding_window = 16
    greedy = in_place(pack)
    with pack.model.evaluating():
        for length, own in ((4, True), (5, False)):
            ids, mask = left_padded([list(range(50, 50 + length))])
            tokens = pack.model.generate(ids, mask, max_new_tokens=12, pad_token_id=PAD, eos_token_id=NO_TOKEN)
            assert tokens.shape == (1, 1, 12)
            assert (greedy.held is not None) == own
            greedy.release()


def test_the_mask_of_two_prompts() -> None:
    real = torch.tensor([[True, True, True], [False, False, True]])
    seen = [
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],  # padding sees itself alone, and nobody sees it
    ]
    mask = prompts(real, torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask[:, 0] == 0, torch.tensor(seen).bool())
    assert bool((mask[:, 0][~torch.tensor(seen).bool()] == -torch.inf).all())
