"""Answering the questions of a split, and judging the answers."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from openblip import metrics
from openblip.batches.augmentation import Augmentation
from openblip.batches.questions import frequent_answers
from openblip.batches.tokenizer import TextTokenizer
from openblip.evaluation import vqa as vqa_protocol
from openblip.evaluation.vqa import answer_all, encode_for_questions, evaluate_vqa
from openblip.inference.answers import answer_each
from openblip.inference.blip import Blip
from openblip.inference.loading import load
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.recipes.finetune import vqa as vqa_recipe
from openblip.runtime.errors import DataError, MissingHead
from openblip.runtime.progress import Progress
from openblip.table.table import PairRow, PairTable
from openblip.training.run import train

from .answering import ASKED, CHOICES, COLOURS, answering_model


@pytest.fixture(scope="module")
def model() -> Blip:
    return answering_model()


def question(number: int, answers: Sequence[str], **more: object) -> dict[str, object]:
    return {"question_id": number, "question": ASKED[number % 3], "answers": list(answers), **more}


def make_table(folder: Path, world: PairTable, questions: Sequence[Sequence[object]]) -> PairTable:
    """A table whose n-th image has the n-th questions; between them stand images of no split."""
    images = world.take(range(len(questions)), ["image"])["image"].to_pylist()
    rows = []
    for number, (image, own) in enumerate(zip(images, questions, strict=True)):
        rows.append(PairRow(f"other-{number}", image, split="train"))
        rows.append(PairRow(f"row-{number}", image, split="test", meta={"questions": list(own)}))
    return PairTable.create(folder / "questions.lance", rows)


@pytest.fixture
def official(tmp_path: Path, world: PairTable) -> PairTable:
    """Three, one, none and two questions about four images, ten answers each."""
    kinds = [
        {"question_type": "what color", "answer_type": "other"},
        {"question_type": "is it", "answer_type": "yes/no"},
    ]
    several = [question(n, ["red"] * (n + 2) + ["no"] * (8 - n), **kinds[n % 2]) for n in range(6)]
    return make_table(tmp_path, world, [several[:3], several[3:4], [], several[4:]])


def test_progress_is_shown_from_the_first_questions_on(
    model: Blip, world: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    answer, update = vqa_protocol.answer_each, Progress.update

    def answered(*given: object) -> object:
        events.append("answered")
        return answer(*given)  # type: ignore[arg-type]

    def updated(self: Progress, num_done: int = 1, **more: object) -> None:
        events.append("told")
        update(self, num_done, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(vqa_protocol, "answer_each", answered)
    monkeypatch.setattr(Progress, "update", updated)
    # All images are read in one batch, and have more questions than are ranked together.
    asked = [[question(10 * image + n, ["red"]) for n in range(10)] for image in range(8)]
    table = make_table(tmp_path, world, asked)
    evaluate_vqa(model, table, candidates=frequent_answers(table, "test", 1))
    assert events[:2] == ["answered", "told"]
    assert events.count("answered") > 1
    assert events.count("told") == 8


def questions_of(table: PairTable) -> list[dict[str, object]]:
    metas = table.take(range(len(table)), ["meta"])["meta"].to_pylist()
    return [question for meta in metas for question in json.loads(meta).get("questions", [])]


@pytest.mark.parametrize(("candidates", "batch_size"), [(None, 8), (CHOICES, 1), (CHOICES, 8)])
def test_answers_are_those_to_the_questions_about_each_image(
    model: Blip, official: PairTable, candidates: list[str] | None, batch_size: int
) -> None:
    found = evaluate_vqa(model, official, candidates=candidates, k=3, batch_size=batch_size)

    rows = official.take(range(len(official))).to_pylist()
    expected = {}
    for row in rows:
        asked = json.loads(row["meta"]).get("questions", [])
        answers = model.ask(row["image"], [q["question"] for q in asked], candidates, k=3)
        for own, answer in zip(asked, answers, strict=True):
            expected[str(own["question_id"])] = answer.text
    assert found.answers == expected
    assert (found.num_images, found.num_questions) == (3, 6)


def test_an_image_is_encoded_once_for_all_its_questions(model: Blip, official: PairTable) -> None:
    images = 0

    def count(_module: object, inputs: tuple[torch.Tensor], _output: object) -> None:
        nonlocal images
        images += len(inputs[0])

    projection = model.vqa.question.layers[0].part("cross_attention", causal=False).key_value
    hook = projection.register_forward_hook(count)
    evaluate_vqa(model, official)
    hook.remove()
    assert images == 3


def test_ten_answers_give_the_official_accuracy(model: Blip, official: PairTable) -> None:
    found = evaluate_vqa(model, official, candidates=["red"])

    annotations = [
        {**asked, "answers": [{"answer": text} for text in asked["answers"]]}
        for asked in questions_of(official)
    ]
    answers = {int(key): text for key, text in found.answers.items()}
    assert set(answers.values()) == {"red"}
    assert found.metrics == pytest.approx(metrics.vqa(answers, annotations))
    assert set(found.metrics) == {"overall", "other", "yes/no", "what color", "is it"}
    # Images are the units: three, one and two questions.
    unit = found.units["overall"]
    assert unit.weights.tolist() == [3, 1, 2]
    assert unit.estimate == pytest.approx(found.metrics["overall"])


def test_other_numbers_of_answers_give_the_share_of_right_ones(
    model: Blip, tmp_path: Path, world: PairTable
) -> None:
    asked = [[question(0, ["Red"]), question(1, ["no", "red"])], [question(2, ["red, blue"])]]
    table = make_table(tmp_path, world, asked)
    assert evaluate_vqa(model, table, candidates=["red"]).metrics == pytest.approx(
        {"accuracy": 100 * 2 / 3}
    )
    both = evaluate_vqa(model, table, candidates=["blue, red"])
    assert both.metrics == pytest.approx({"accuracy": 100 / 3})
    assert both.units["accuracy"].scores.tolist() == [0, 100]


def test_wups_is_that_of_the_answers(model: Blip, tmp_path: Path, world: PairTable) -> None:
    asked = [[question(0, ["red"]), question(1, ["chair"])], [question(2, ["blue"])]]
    table = make_table(tmp_path, world, asked)
    try:
        found = evaluate_vqa(model, table, candidates=["red"], wups=True)
    except DataError as error:
        pytest.skip(str(error))
    references = {"0": "red", "1": "chair", "2": "blue"}
    expected = metrics.wups(found.answers, references)
    assert found.metrics == pytest.approx({"accuracy": 100 / 3} | expected)
    assert found.units["WUPS@0.0"].estimate == pytest.approx(expected["WUPS@0.0"])


def test_wordnet_is_missed_before_anything_is_answered(
    model: Blip, tmp_path: Path, world: PairTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "nowhere"))
    table = make_table(tmp_path, world, [[question(0, ["red"])]])
    hook = model.vqa.image_encoder.register_forward_hook(
        lambda *_: pytest.fail("an image was encoded")
    )
    with pytest.raises(DataError, match="no database of WordNet"):
        evaluate_vqa(model, table, wups=True)
    hook.remove()


def test_a_split_without_answers_is_answered_all_the_same(
    model: Blip, tmp_path: Path, world: PairTable
) -> None:
    hidden = {"question_id": 458752000, "question": ASKED[0]}
    table = make_table(tmp_path, world, [[hidden, {"question": ASKED[1]}]])
    found = evaluate_vqa(model, table, candidates=["red", "no"])
    assert (found.metrics, found.units) == ({}, {})
    found.save_results(tmp_path / "results.json")
    # As the server takes them: a list of numbers and texts.
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"question_id": 458752000, "answer": found.answers["458752000"]},
        {"question_id": "row-0/1", "answer": found.answers["row-0/1"]},
    ]
    with pytest.raises(DataError, match="question 458752000 of the split 'test' has 0"):
        evaluate_vqa(model, table, wups=True)


def test_what_cannot_be_evaluated_is_named(
    model: Blip, blip: Blip, official: PairTable, world: PairTable, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="'test' has a question"):
        evaluate_vqa(model, world)
    with pytest.raises(MissingHead, match="question-answering"):
        evaluate_vqa(blip, official)
    twice = make_table(tmp_path / "twice", world, [[question(1, ["a"])], [question(1, ["b"])]])
    with pytest.raises(DataError, match="question_id 1 occurs twice"):
        evaluate_vqa(model, twice)


def test_what_only_an_image_tells_is_learnt(tmp_path: Path) -> None:
    """From a table of plain images, by the recipe, to the accuracy on other images."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        colour = COLOURS[number % 4]
        pixels = np.array(ImageColor.getrgb(colour)) + rng.integers(-20, 20, (16, 16, 3))
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
        meta = {"questions": [question(0, [colour], question_id=number)]}
        split = "test" if number >= 40 else "train"
        rows.append(PairRow(f"r{number}", stream.getvalue(), split=split, meta=meta))
    table = PairTable.create(tmp_path / "colours.lance", rows)
    tokenizer = TextTokenizer.train([*ASKED, *COLOURS] * 2, 200)
    config = MedConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=32,
            depth=1,
            heads=2,
            ffn_width=64,
            max_positions=32,
            dropout=0.0,
        ),
        embed_dim=8,
    )
    torch.manual_seed(0)
    Blip(Med(config), tokenizer, "pretrain", 16, 30).save(tmp_path / "fresh")
    recipe = vqa_recipe(table.uri, str(tmp_path / "fresh"), 16)
    plain = Augmentation(min_scale=0.9, randaugment=False)
    recipe = replace(
        recipe,
        data=replace(recipe.data, image_size=16, max_tokens=16, augmentation=plain, num_threads=1),
        optimiser=replace(recipe.optimiser, lr=3e-3),
        train=replace(recipe.train, batch_size=16, epochs=None, steps=30, device="cpu"),
    )
    blip = load(train(recipe, tmp_path / "run", quiet=True).model_folder, device="cpu")
    for candidates in (frequent_answers(table), None):
        # By guessing 25.
        assert evaluate_vqa(blip, table, candidates=candidates).metrics["accuracy"] > 80.0


def test_candidates_are_read_once_and_the_first_answers_come_after_few_questions(
    model: Blip, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    encode = TextTokenizer.encode

    def counted(self: TextTokenizer, texts: Sequence[str], *rest: object, **more: object) -> object:
        if list(texts) == CHOICES:
            reads.append(len(texts))
        return encode(self, texts, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(TextTokenizer, "encode", counted)
    asked = [[ASKED[number % 3]] for number in range(80)]
    hidden = encode_for_questions(model, torch.zeros(80, 3, 32, 32))
    given = [len(own) for own in answer_all(model, [hidden], asked, CHOICES, 3)]
    assert given == [1] * 80
    assert len(reads) == 1
    begun: list[int] = []

    def portion(*args: object, **more: object) -> object:
        begun.append(1)
        return answer_each(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("openblip.evaluation.vqa.answer_each", portion)
    next(iter(answer_all(model, [hidden], asked, CHOICES, 3)))
    assert len(begun) == 1
    assert len(list(answer_all(model, [hidden], asked, CHOICES, 3))) == 80
    assert len(begun) == 4
