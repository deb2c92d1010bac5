"""A model that is read is the model that was written, in every layout, or it is not written."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor, nn

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.original import to_original, write_original
from openblip.inference.blip import Blip
from openblip.inference.captions import Caption
from openblip.inference.loading import load
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.model.dual import DualConfig, DualEncoder
from openblip.model.lowrank import adapt, low_rank_layers
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa, VqaConfig
from openblip.runtime.errors import CheckpointError, MissingHead, OpenBlipWarning, RecipeError

from .conftest import draw_weights

# The second text is longer than these models read, so that where it is cut counts.
pytestmark = pytest.mark.filterwarnings("ignore::openblip.runtime.errors.TextTruncated")

TEXTS = ["a red square", "two green triangles on a large white table under a tree"]

# Image width and heads, text width and heads, and what else a size may be.
SIZES = {
    "like the preset tiny": (128, 4, 128, 4, {}, {}),
    "like the demo": (96, 3, 96, 3, {"drop_path": 0.1}, {"dropout": 0.0, "max_positions": 24}),
    "odd": (48, 2, 40, 4, {"mlp_ratio": 2.7, "norm_eps": 1e-3}, {"ffn_width": 37}),
}
MAKERS: dict[str, Callable[[VisionConfig, TextConfig], nn.Module]] = {
    "pretrain": lambda v, t: Med(MedConfig(vision=v, text=t, embed_dim=10)),
    "captioner": lambda v, t: Med(MedConfig(vision=v, text=t, embed_dim=10, heads=("lm",))),
    "filter": lambda v, t: Med(MedConfig(vision=v, text=t, embed_dim=10, heads=("itc", "itm"))),
    "vqa": lambda v, t: Vqa(VqaConfig(vision=v, text=t)),
    "nlvr": lambda v, t: Nlvr(NlvrConfig(vision=v, text=t, merge_from_layer=1)),
    "albef": lambda v, t: Albef(AlbefConfig(vision=v, text=t, embed_dim=10, fusion_layer=1)),
    "dual_encoder": lambda v, t: DualEncoder(DualConfig(vision=v, text=t, embed_dim=10)),
}
WRITERS: dict[str, Callable[[Blip, Path], None]] = {
    "ours": lambda blip, path: blip.save(path / "model"),
    "a .pth": lambda blip, path: blip.save_original(path / "model.pth"),
    "a .safetensors": lambda blip, path: blip.save_original(path / "weights.safetensors"),
    "a .pth for matching": lambda blip, path: blip.save_original(path / "model.pth", "itm"),
    "transformers'": lambda blip, path: blip.save_huggingface(path / "theirs"),
    "transformers' captioner": lambda blip, path: blip.save_huggingface(path / "theirs", "caption"),
}


def make(kind: str, size: str, tokenizer: TextTokenizer) -> Blip:
    width, heads, text_width, text_heads, vision, text = SIZES[size]
    model = MAKERS[kind](
        VisionConfig(
            **{"image_size": 32, "patch_size": 16, "width": width, "depth": 2, "heads": heads}
            | vision
        ),
        TextConfig(
            **{
                "vocab_size": tokenizer.vocab_size,
                "width": text_width,
                "depth": 2,
                "heads": text_heads,
                "ffn_width": 40,
                "max_positions": 32,
            }
            | text
        ),
    )
    draw_weights(model, seed=5)
    return Blip(model, tokenizer, kind, image_size=32, max_tokens=22)


def outputs(blip: Blip, pictures: list[Image]) -> dict[str, Any]:
    """Everything that a model can say of two pictures and two texts."""

    def tokens(caption: Caption) -> tuple[tuple[int, ...], Any]:
        return tuple(caption.token_ids), pytest.approx(caption.logprob, rel=1e-4)

    uses: dict[str, Callable[[], Any]] = {
        "embeddings": lambda: [blip.embed_images(pictures), blip.embed_texts(TEXTS)],
        "matches": lambda: [blip.match_all(pictures, TEXTS)],
        "captions": lambda: [tokens(c) for (c,) in blip.caption(pictures, "greedy", max_length=8)],
        "answers": lambda: [a.logprob for a in blip.ask(pictures, TEXTS, candidates=TEXTS)],
        "comparisons": lambda: [blip.compare(pictures[:1], pictures[1:], TEXTS[1:])],
    }
    given = {}
    for name, use in uses.items():
        with suppress(MissingHead):
            given[name] = use()
    return given


def assert_same(
    read: Blip, blip: Blip, pictures: list[Image], theirs: dict[str, Any] | None = None
) -> None:
    """Equal weights to the last bit, and equal outputs of all that both can do."""
    state, expected = read.model.state_dict(), blip.model.state_dict()
    for name in set(state) & set(expected):
        # `transformers` stores the logarithm of a temperature.
        tolerance = 1e-6 if name == "temperature" else 0.0
        torch.testing.assert_close(state[name], expected[name], rtol=tolerance, atol=0.0)
    assert (read.image_size, read.max_tokens) == (blip.image_size, blip.max_tokens)
    assert torch.equal(*(one.tokenizer.encode(TEXTS, 40).ids for one in (read, blip)))
    ours = outputs(read, pictures)
    theirs = outputs(blip, pictures) if theirs is None else theirs
    assert ours, "it can do something"
    for use, given in ours.items():
        # Mapped weights are aligned differently, which can change a product's last bit.
        for one, other in zip(given, theirs[use], strict=True):
            if isinstance(one, Tensor | float):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            else:
                assert one == other, use


def written_and_read(blip: Blip, layout: str, folder: Path) -> Blip | None:
    """What is read of a model that was written; None where it was refused at writing."""
    try:
        WRITERS[layout](blip, folder)
    except (CheckpointError, MissingHead, RecipeError):
        assert not list(folder.iterdir()), "a refused model leaves nothing behind"
        return None
    return load(next(folder.iterdir()), device="cpu")


@pytest.mark.parametrize(
    "size",
    [pytest.param("like the preset tiny", marks=pytest.mark.slow), "like the demo", "odd"],
)
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_read_is_what_was_written(
    tokenizer: TextTokenizer, pictures: list[Image], tmp_path: Path, kind: str, size: str
) -> None:
    blip = make(kind, size, tokenizer)
    expected, refused = outputs(blip, pictures[:2]), set()
    for number, layout in enumerate(WRITERS):
        (tmp_path / str(number)).mkdir()
        read = written_and_read(blip, layout, tmp_path / str(number))
        if read is None:
            refused.add(layout)
        else:
            assert_same(read, blip, pictures[:2], expected)
    assert "ours" not in refused
    assert ("a .pth" in refused) == (kind == "dual_encoder"), refused


class TestWhatWasChangedInMemory:
    """Saved as it is in every layout that reads it back, or refused; nothing is left behind."""

    LAYOUTS = ("ours", "a .pth", "transformers'")

    def saved(self, blip: Blip, tmp_path: Path, layout: str) -> Blip:
        (tmp_path / "new").mkdir()
        WRITERS[layout](blip, tmp_path / "new")
        return load(next((tmp_path / "new").iterdir()), device="cpu")

    def assert_refused(self, blip: Blip, tmp_path: Path, layout: str, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            WRITERS[layout](blip, tmp_path)
        assert not list(tmp_path.iterdir())

    @pytest.fixture
    def small(self, tokenizer: TextTokenizer) -> Blip:
        return make("filter", "odd", tokenizer)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_low_rank_changes_are_added_to_the_weights(
        self, small: Blip, pictures: list[Image], tmp_path: Path, layout: str
    ) -> None:
        adapt(small.model, 2, 4.0, ["qkv", "cross_attention"])
        with torch.no_grad():
            for _, layer in low_rank_layers(small.model):
                layer.up.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        before = {name: tensor.clone() for name, tensor in small.model.state_dict().items()}
        read = self.saved(small, tmp_path, layout)
        assert not list(low_rank_layers(read.model))
        expected = small.match_all(pictures[:2], TEXTS)
        torch.testing.assert_close(read.match_all(pictures[:2], TEXTS), expected)
        for name, tensor in small.model.state_dict().items():
            assert torch.equal(tensor, before[name]), "the model in memory stays as it is"

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_another_image_size(
        self, small: Blip, pictures: list[Image], tmp_path: Path, layout: str
    ) -> None:
        small.image_size = 64
        self.assert_refused(small, tmp_path, layout, "resized to 64 px, .* belong to 32 px")
        small.model.resize_images(64)
        assert_same(self.saved(small, tmp_path, layout), small, pictures[:2])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_positions_that_the_configuration_does_not_know(
        self, small: Blip, tmp_path: Path, layout: str
    ) -> None:
        encoder = small.model.image_encoder
        encoder.positions = nn.Parameter(torch.zeros(1, 17, 48))
        self.assert_refused(small, tmp_path, layout, "image_encoder.positions has shape")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_more_words_than_the_tokenizer_has(
        self, small: Blip, tmp_path: Path, layout: str
    ) -> None:
        word = small.med.text.embeddings.word
        word.weight = nn.Parameter(torch.cat([word.weight, torch.zeros(6, 40)]))
        self.assert_refused(small, tmp_path, layout, "embeddings.word.weight has shape")
        text = replace(small.med.config.text, vocab_size=len(word.weight))
        small.med.config = replace(small.med.config, text=text)
        self.assert_refused(small, tmp_path, layout, r"the tokenizer has \d+ tokens, but")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_another_tokenizer_of_the_same_size(
        self, small: Blip, pictures: list[Image], tmp_path: Path, layout: str
    ) -> None:
        other = TextTokenizer.train(["zebras quiz jovial foxes " * 3, *TEXTS], 500)
        size = other.vocab_size
        text = replace(small.med.config.text, vocab_size=size)
        changed = Blip(Med(replace(small.med.config, text=text)), other, "filter", 32, 22)
        assert_same(self.saved(changed, tmp_path, layout), changed, pictures[:2])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_integers(self, small: Blip, tmp_path: Path, layout: str) -> None:
        norm = small.model.image_encoder.norm
        norm.weight = nn.Parameter(torch.ones(48, dtype=torch.int64), requires_grad=False)
        self.assert_refused(small, tmp_path, layout, r"norm.weight holds torch\.int64")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_eight_bits(self, small: Blip, tmp_path: Path, layout: str) -> None:
        library = pytest.importorskip("torchao.quantization")
        library.quantize_(small.model, library.Int8DynamicActivationInt8WeightConfig())
        self.assert_refused(small, tmp_path, layout, "is quantised, which cannot be saved")

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(
        self, small: Blip, tmp_path: Path, layout: str, dtype: torch.dtype
    ) -> None:
        small.model.to(dtype)
        read = self.saved(small, tmp_path, layout)
        for name, tensor in small.model.state_dict().items():
            if name != "temperature":
                assert torch.equal(read.model.state_dict()[name], tensor.float()), name

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_room_for_a_text(self, small: Blip, tmp_path: Path, layout: str) -> None:
        small.max_tokens = 1
        self.assert_refused(small, tmp_path, layout, "max_tokens is 1; a text takes 2 or more")


def test_a_file_without_a_note_says_that_its_heads_are_guessed(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    blip = make("captioner", "like the preset tiny", tokenizer)
    write_original(tmp_path / "model.pth", to_original(blip.model))
    tokenizer.save(tmp_path)
    with pytest.warns(OpenBlipWarning, match="taken as 2 for images and 2 for texts"):
        load(tmp_path / "model.pth", device="cpu")


def test_the_original_code_does_not_see_the_note(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    blip = make("captioner", "like the demo", tokenizer)
    blip.save_original(tmp_path / "model.pth")
    read = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(read["model"]) == set(to_original(blip.model, "caption"))
