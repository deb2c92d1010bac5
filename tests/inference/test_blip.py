"""What users call: images of any kind in, captions, matches and embeddings out."""

import io
import itertools

import numpy as np
import pytest
import torch

from openblip.batches.transforms import eval_transform
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.inference.loading import load
from openblip.runtime.errors import DataError, MissingHead, RecipeError

from .conftest import TEXTS, make_med

# The small vocabulary makes many tokens of a word: longer texts are cut.
pytestmark = pytest.mark.filterwarnings("ignore::openblip.runtime.errors.TextTruncated")


@pytest.fixture
def sources(pictures, tmp_path):
    """The first four pictures as a path, text, bytes, an array and a Pillow image."""
    paths = []
    for number, picture in enumerate(pictures[:2]):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    encoded = io.BytesIO()
    pictures[2].save(encoded, "PNG")
    return [paths[0], str(paths[1]), encoded.getvalue(), np.asarray(pictures[3]), pictures[4]]


def test_every_kind_of_image_gives_the_same_caption(blip, pictures, sources):
    assert blip.caption(sources) == blip.caption(pictures[:5])


def test_a_single_image_is_a_list_of_one(blip, pictures, sources):
    for picture, source in zip(pictures, sources, strict=False):
        assert blip.caption(source) == blip.caption([picture])


def test_an_array_of_four_dimensions_is_several_images(blip, pictures):
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    assert blip.caption(stacked) == blip.caption(pictures)


def test_captions_equal_those_of_encoded_images(blip, pictures):
    images = torch.stack([eval_transform(picture, 32) for picture in pictures])
    expected = blip.generate(blip.encode(images), Decoding(num_beams=4), num_captions=2)
    assert [
        [caption.token_ids for caption in own]
        for own in blip.caption(pictures, num_beams=4, num_captions=2, batch_size=2)
    ] == [[caption.token_ids for caption in own] for own in expected]


@pytest.mark.parametrize("method", ["beam", "nucleus", "greedy"])
def test_the_batch_size_changes_nothing(blip, pictures, method):
    one, many = (blip.caption(pictures, method=method, seed=3, batch_size=size) for size in (1, 16))
    assert [own[0].token_ids for own in one] == [own[0].token_ids for own in many]


def test_the_seed_decides_what_is_drawn(blip, pictures):
    draw = {"method": "nucleus", "num_captions": 2}
    first = blip.caption(pictures, **draw, seed=1)
    assert blip.caption(pictures, **draw, seed=1) == first
    assert blip.caption(pictures, **draw, seed=2) != first
    assert blip.caption(pictures, **draw) != blip.caption(pictures, **draw)
    twice = blip.caption([pictures[0], pictures[0]], method="nucleus", max_length=30, seed=1)
    assert twice[0] != twice[1], "the place in the list counts"


def test_drawing_leaves_the_global_generators_alone(blip, pictures):
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    blip.caption(pictures, method="nucleus")
    assert (torch.rand(1), np.random.random()) == expected


@pytest.mark.parametrize("prompt", ["", "a picture of ", "two green  "])
def test_a_caption_continues_the_prompt(blip, pictures, prompt):
    (caption,) = blip.caption(pictures[0], prompt=prompt)[0]
    words = blip.tokenizer.encode([prompt], 20, first="dec")
    start = int(words.mask.sum()) - 1
    assert caption.token_ids[:start] == tuple(words.ids[0, :start].tolist())
    assert caption.text == blip.tokenizer.decode(caption.token_ids[start:])


def test_a_stream_reads_only_a_little_ahead(blip, pictures):
    taken = 0

    def endless():
        nonlocal taken
        for picture in itertools.cycle(pictures):
            taken += 1
            yield picture

    stream = blip.caption_stream(endless(), batch_size=4)
    captions = list(itertools.islice(stream, 20))
    assert taken <= 20 + 2 * 4
    stream.close()
    expected = blip.caption(pictures)
    assert [own[0].text for own in captions[:14]] == [own[0].text for own in expected * 2]


def test_no_images_give_empty_results(blip):
    assert blip.caption([]) == []
    assert blip.match([], []) == []
    assert blip.match_all([], TEXTS).shape == (0, len(TEXTS))
    assert blip.embed_images([]).shape == (0, 16)
    assert blip.embed_texts([]).shape == (0, 16)


def test_no_texts_give_no_columns(blip, pictures):
    assert blip.match_all(pictures, []).shape == (len(pictures), 0)


def test_embeddings_have_unit_length_and_keep_their_order(blip, pictures):
    images = blip.embed_images(pictures, batch_size=3)
    texts = blip.embed_texts([*TEXTS, "dog"], batch_size=2)
    for embed, number in ((images, len(pictures)), (texts, 5)):
        assert embed.shape == (number, 16)
        assert embed.dtype == torch.float32
        torch.testing.assert_close(embed.norm(dim=1), torch.ones(number))
    torch.testing.assert_close(blip.embed_images(pictures[5])[0], images[5])
    torch.testing.assert_close(blip.embed_texts("dog")[0], texts[4])


def test_results_can_be_trained_on(blip, pictures):
    probe = torch.nn.Linear(16, 2)
    probe(blip.embed_images(pictures)).sum().backward()
    assert probe.weight.grad is not None
    assert all(parameter.grad is None for parameter in blip.med.parameters())


def test_match_compares_pairs_and_match_all_everything(blip, pictures):
    texts = (TEXTS * 2)[: len(pictures)]
    table = blip.match_all(pictures, texts, batch_size=3)
    matches = blip.match(pictures, texts, batch_size=2)
    torch.testing.assert_close(torch.tensor([match.itm for match in matches]), table.diagonal())
    cosines = blip.embed_images(pictures) @ blip.embed_texts(texts).T
    torch.testing.assert_close(torch.tensor([match.itc for match in matches]), cosines.diagonal())


def test_the_first_token_is_a_choice(blip, pictures):
    enc = blip.match(pictures[0], TEXTS[0])
    cls = blip.match(pictures[0], TEXTS[0], first_token="[CLS]")
    assert enc[0].itm != cls[0].itm
    assert enc[0].itc == cls[0].itc
    table = blip.match_all(pictures[0], TEXTS[0], first_token="[CLS]")
    assert table.item() == pytest.approx(cls[0].itm, abs=1e-6)
    with pytest.raises(RecipeError, match="ENC"):
        blip.match(pictures[0], TEXTS[0], first_token="enc")


def test_pairs_need_as_many_texts_as_images(blip, pictures):
    with pytest.raises(DataError, match="match_all"):
        blip.match(pictures[:2], TEXTS[:1])


def test_an_unreadable_image_is_named(blip, pictures, tmp_path):
    with pytest.raises(DataError, match=r"missing\.jpg"):
        blip.caption([pictures[0], tmp_path / "missing.jpg"])


def test_a_batch_size_below_one_is_refused(blip, pictures):
    for call in (blip.caption, blip.embed_images):
        with pytest.raises(RecipeError, match="batch_size"):
            call(pictures, batch_size=0)
    with pytest.raises(RecipeError, match="batch_size"):
        blip.embed_texts(TEXTS, batch_size=-1)


def test_what_a_checkpoint_lacks_is_named_before_work_begins(tokenizer, pictures):
    captioner = Blip(make_med(tokenizer, heads=("lm",)), tokenizer, "captioner", 32, 30)
    for call in (
        lambda: captioner.match(pictures[0], "a dog"),
        lambda: captioner.match_all([], []),
        lambda: captioner.embed_images([]),
        lambda: captioner.embed_texts([]),
    ):
        with pytest.raises(MissingHead, match="filter checkpoint"):
            call()
    matcher = Blip(make_med(tokenizer, heads=("itc", "itm")), tokenizer, "filter", 32, 30)
    with pytest.raises(MissingHead, match="captioner checkpoint"):
        matcher.caption([])


@pytest.mark.parametrize("sharing", ["all", "all_but_cross_attention", "none"])
def test_a_captioner_of_any_sharing_writes(tokenizer, pictures, sharing):
    med = make_med(tokenizer, heads=("lm",), sharing=sharing)
    (caption,) = Blip(med, tokenizer, "captioner", 32, 30).caption(pictures[0])[0]
    assert caption.logprob < 0


def test_bfloat16_computes(tokenizer, pictures):
    blip = Blip(make_med(tokenizer).to(torch.bfloat16), tokenizer, "pretrain", 32, 30)
    for method in ("beam", "nucleus"):
        assert len(blip.caption(pictures, method=method)) == len(pictures)
    assert blip.embed_images(pictures).dtype == torch.float32
    assert blip.match_all(pictures, TEXTS).dtype == torch.float32


def test_a_saved_model_loads_as_it_was(blip, pictures, tmp_path):
    blip.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert (loaded.kind, loaded.image_size, loaded.max_tokens) == ("pretrain", 32, 30)
    assert loaded.caption(pictures) == blip.caption(pictures)
    assert torch.equal(loaded.match_all(pictures, TEXTS), blip.match_all(pictures, TEXTS))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_image_may_have_its_own_prompt(blip, pictures, batch_size):
    prompts = ["a picture of", "", "two", "a large dog"]
    options = {"max_length": 30, "batch_size": batch_size}
    found = blip.caption(pictures[:4], prompt=prompts, **options)
    for picture, prompt, own in zip(pictures, prompts, found, strict=False):
        alone = blip.caption(picture, prompt=prompt, max_length=30)
        assert own[0].token_ids == alone[0][0].token_ids
    with pytest.raises(RecipeError, match="prompts for"):
        blip.caption(pictures[:4], prompt=prompts[:3], batch_size=16)


def test_one_image_may_be_matched_with_many_texts(blip, pictures):
    together = blip.match(pictures[0], TEXTS)
    apart = blip.match([pictures[0]] * len(TEXTS), TEXTS)
    for one, other in zip(together, apart, strict=True):
        assert one.itm == pytest.approx(other.itm, abs=1e-5)
        assert one.itc == pytest.approx(other.itc, abs=1e-5)
    with pytest.raises(DataError, match="2 images and 4 texts"):
        blip.match(pictures[:2], TEXTS)


class TestAsk:
    @pytest.fixture
    def asked(self, vqa, tokenizer):
        return Blip(vqa, tokenizer, "vqa", image_size=32, max_tokens=35)

    QUESTIONS = ("what is it?", "how many dogs?", "is it night?")

    @pytest.mark.parametrize("candidates", [None, ["a dog", "two", "night", "red"]])
    def test_a_question_for_each_image_or_many_for_one(self, asked, pictures, candidates):
        pairs = asked.ask(pictures[:3], self.QUESTIONS, candidates, batch_size=2)
        for picture, question, answer in zip(pictures, self.QUESTIONS, pairs, strict=False):
            (alone,) = asked.ask(picture, question, candidates)
            assert alone.text == answer.text
            assert alone.logprob == pytest.approx(answer.logprob, abs=1e-4)
        many = asked.ask(pictures[0], self.QUESTIONS, candidates)
        assert many[0].text == pairs[0].text
        assert len(many) == 3

    def test_other_numbers_are_refused(self, asked, pictures):
        with pytest.raises(DataError, match="2 images and 3 questions"):
            asked.ask(pictures[:2], self.QUESTIONS)

    def test_an_answer_is_explained_word_by_word(self, asked, pictures):
        heatmap = asked.explain(pictures[0], question="how many dogs?")
        assert heatmap.maps.shape[1:] == (2, 2)
        given = asked.explain(pictures[0], question="how many dogs?", answer="two")
        assert given.score != heatmap.score


def test_explaining_a_text_is_for_its_match_where_the_model_can_match(blip, tokenizer, pictures):
    captioner = Blip(make_med(tokenizer, heads=("lm",)), tokenizer, "captioner", 32, 40)
    text = "a red square"
    logit = blip.explain(pictures[0], text).score
    ids = tokenizer.encode([text], 30, first="enc")
    with torch.no_grad():
        encoded = blip.encode(eval_transform(pictures[0], 32)[None])
        expected = blip.med.match(ids.ids, ids.mask, encoded.encoder_memory)[0, 1].item()
    assert logit == pytest.approx(expected, abs=1e-4)
    written = captioner.explain(pictures[0], text, prompt="a picture of")
    assert written.tokens == tuple(text.split())
    assert written.score < 0
    with pytest.raises(RecipeError, match="a text or a question"):
        blip.explain(pictures[0], text, question="why?")
