import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.metrics import vqa, vqa_scores
from openblip.metrics.vqa import CONTRACTIONS, normal_answer
from openblip.runtime.errors import DataError


def annotation(question_id, human, answer_type="other", question_type="what is"):
    """One entry of the official file, whose first human answer is repeated up to ten."""
    human = [human] if isinstance(human, str) else list(human)
    human = [human[0]] * (10 - len(human)) + human
    return {
        "question_id": question_id,
        "image_id": 1,
        "question_type": question_type,
        "answer_type": answer_type,
        "multiple_choice_answer": human[0],
        "answers": [
            {"answer": text, "answer_confidence": "yes", "answer_id": number}
            for number, text in enumerate(human, 1)
        ],
    }


def accuracy(answer, human):
    return vqa({1: answer}, [annotation(1, human)])["overall"]


@pytest.mark.parametrize(
    ("same", "per_cent"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (9, 100), (10, 100)]
)
def test_accuracy_by_the_number_of_people_who_gave_the_answer(same, per_cent):
    human = ["dog"] * same + ["cat"] * (10 - same)
    assert accuracy("dog", human) == pytest.approx(per_cent)


def test_other_answers_need_not_agree():
    assert accuracy("dog", ["dog", "dog", *"bcdefghi"]) == pytest.approx(60)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        # The rules and examples of visualqa.org/evaluation.html.
        ("Red And WHITE", "red and white"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("U.S.A.", "usa"),
        ("two dogs", "2 dogs"),
        ("a dog on the mat of an inn", "dog on mat of inn"),
        ("dont", "don't"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        # A mark leaves a space,
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("a;b[c]d", "b c d"),
        # unless it stands beside a space, which closes its other places too,
        ("yes, sir", "yes sir"),
        ("t-shirt - blue", "tshirt blue"),
        ("t-shirt, blue", "t shirt blue"),
        # or a number with a comma is in the text.
        ("1,000-2,000", "10002000"),
        # White space of any kind and length is one space.
        ("  red \r  blue ", "red blue"),
        # Signs that are not in the list stay.
        ("50%", "50%"),
        ("$5 & #1", "$5 & #1"),
        # A full stop goes even after a digit, and stays before one.
        ("5.", "5"),
        (".5", ".5"),
        ("." * 33, "."),
        # Number words are whole words, up to ten.
        ("none", "0"),
        ("eleven", "eleven"),
        ("someone", "someone"),
        ("forty-two", "forty 2"),
        # Contractions are looked up after all else.
        ("Its OCLOCK!", "its o'clock"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normal_form(text, normal):
    assert normal_answer(text) == normal


def test_number_words():
    words = "none zero one two three four five six seven eight nine ten"
    assert normal_answer(words) == "0 0 1 2 3 4 5 6 7 8 9 10"


@pytest.mark.parametrize("mark", ';/[]"{}()=+\\_-><@`,?!')
def test_marks(mark):
    assert normal_answer(f"x{mark}y") == "x y"
    assert normal_answer(f"x{mark}y{mark} z") == "xy z"
    assert normal_answer(f"{mark}x{mark}") == "x"


def test_a_contraction_differs_from_its_word_by_apostrophes():
    assert len(CONTRACTIONS) == 114
    for word, contraction in CONTRACTIONS.items():
        assert word != contraction
        assert word.replace("'", "") == contraction.replace("'", "")
        assert normal_answer(word) == contraction


def test_human_answers_are_brought_to_normal_form_too():
    human = ["The dog", "a dog.", "DOG", "dog!", *"bcdefg"]
    assert accuracy("An dog", human) == pytest.approx(100)


def test_where_all_people_wrote_the_same_the_answer_must_equal_it_as_it_stands():
    assert accuracy("no. 5", "no. 5") == 100
    assert accuracy("no 5", "no. 5") == 0
    assert accuracy("Yes", "yes") == 0
    assert accuracy("yes.", "yes") == 0
    assert accuracy("Yes.", ["yes"] * 9 + ["no"]) == 100


def test_line_ends_tabs_and_outer_spaces_never_count():
    assert accuracy(" a\nb\tc ", "a b c") == 100
    assert accuracy("a b c", "\ta\tb\nc\n") == 100
    # Such people wrote the same: nothing else is changed.
    assert accuracy("Dog", ["dog"] * 5 + ["dog\n"] * 5) == 0


def test_an_article_alone_is_the_empty_answer():
    assert accuracy("the", ["a", "b"]) == 100
    assert accuracy("", ["a", "b"]) == 100


ANNOTATIONS = [
    annotation(7, ["yes"] * 7 + ["no"] * 3, "yes/no", "is the"),
    annotation(8, "no", "yes/no", "is this"),
    annotation(9, ["2"] * 9 + ["3"], "number", "how many"),
    annotation(10, "red", "other", "is the"),
]
ANSWERS = {9: "three", 7: "no", 10: "red", 8: "yes"}


def test_averages_by_type():
    # 90, 0, 30 and 100 per cent.
    found = vqa(ANSWERS, ANNOTATIONS)
    names = ["overall", "number", "other", "yes/no", "how many", "is the", "is this"]
    assert list(found) == names
    assert [found[name] for name in names] == pytest.approx([55, 30, 100, 45, 30, 95, 0])


def test_scores_per_question_come_in_the_order_of_the_annotations():
    found = vqa_scores(ANSWERS, ANNOTATIONS)
    assert found.accuracy.tolist() == pytest.approx([0.9, 0, 0.3, 1])
    assert found.answer_types == ("yes/no", "yes/no", "number", "other")
    assert found.question_types == ("is the", "is this", "how many", "is the")


def test_the_official_file_is_taken_whole_and_left_as_it_is():
    content = {"info": {"version": "2.0"}, "data_subtype": "val2014", "annotations": ANNOTATIONS}
    file = json.loads(json.dumps(content))
    before = copy.deepcopy(file)
    assert vqa(ANSWERS, file) == vqa(ANSWERS, ANNOTATIONS)
    assert file == before


TEXTS = st.text(st.sampled_from("aAx1,.-' \n"), max_size=5)


@given(TEXTS, st.lists(TEXTS, min_size=10, max_size=10), st.randoms(use_true_random=False))
def test_the_order_of_the_people_does_not_matter(answer, human, rng):
    found = accuracy(answer, human)
    assert 0 <= found <= 100
    shuffled = human.copy()
    rng.shuffle(shuffled)
    assert accuracy(answer, shuffled) == found


@given(st.lists(TEXTS, min_size=10, max_size=10))
def test_a_human_answer_is_at_least_thirty_per_cent_right(human):
    assert accuracy(human[0], human) >= 30 - 1e-9


def without(field):
    entry = annotation(1, "x")
    del entry[field]
    return [entry]


@pytest.mark.parametrize(
    ("answers", "annotations", "reason"),
    [
        ({}, ANNOTATIONS, "no answers to evaluate"),
        ({1: "x"}, [], "hold no question"),
        ({1: "x"}, {"annotations": []}, "hold no question"),
        ({1: "x"}, {"questions": []}, 'a list "annotations"'),
        ({1: "x"}, "val.json", 'a list "annotations"'),
        ({1: "x"}, [3], r'annotation 0 \(from 0\) has no "question_id"'),
        ({1: "x"}, without("question_id"), 'annotation 0 .* has no "question_id"'),
        ({1: "x"}, without("question_type"), 'question 1 has no text "question_type"'),
        ({1: "x"}, without("answer_type"), 'question 1 has no text "answer_type"'),
        ({1: "x"}, without("answers"), "question 1 must have a list of 10"),
        ({1: "x"}, [{**annotation(1, "x"), "answers": [{"answer": "x"}] * 9}], "a list of 10"),
        ({1: "x"}, [{**annotation(1, "x"), "answers": ["x"] * 10}], '1: each .* a text "answer"'),
        ({1: "x"}, [annotation(1, "x"), annotation(1, "y")], "question 1 is annotated twice"),
        ({1: None}, [annotation(1, "x")], "answer to question 1 is None; it must be a text"),
        ({7: "yes"}, ANNOTATIONS, "3 questions have no answer: 8, 9, 10; .* an empty text"),
        (
            {str(key): text for key, text in ANSWERS.items()},
            ANNOTATIONS,
            r"4 questions have no answer: 7, 8, 9, \.\.\.; turn the question ids .* into numbers",
        ),
        (
            ANSWERS | {11: "x", 12: "y"},
            ANNOTATIONS,
            "2 answers belong to no annotated question: 11, 12; leave them out",
        ),
        ({1: "x"}, [annotation(1, "x", "other", "other")], "question type 'other' has the name"),
        ({1: "x"}, [annotation(1, "x", "overall")], "answer type 'overall' has the name"),
    ],
)
def test_what_does_not_fit_is_named(answers, annotations, reason):
    with pytest.raises(DataError, match=reason):
        vqa(answers, annotations)


def test_unknown_types_get_no_value():
    entries = [annotation(1, "dog", "", ""), annotation(2, "dog", "other", "")]
    found = vqa({1: "dog", 2: "cat"}, entries)
    assert found == pytest.approx({"overall": 50.0, "other": 0.0})
