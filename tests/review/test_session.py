"""A review by several people: what is shown, recorded, taken back, and concluded."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.review.sampling import ReviewSettings
from openblip.review.session import ReviewItem, ReviewSession
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.reviews import ReviewLog
from openblip.table.table import PairRow, PairTable

from ..s3_server import S3Proxy
from .conftest import fragment

SETTINGS = ReviewSettings(sources=("web",), size=60)


def opened(table: PairTable) -> ReviewSession:
    return ReviewSession.open(PairTable.open(table.uri), SETTINGS)


def judge(session: ReviewSession, reviewer: str, count: int) -> list[str]:
    """What a perfect reviewer does."""
    keys = []
    for _ in range(count):
        (item,) = session.upcoming(reviewer, 1)
        session.record(reviewer, item.key, "right" if item.text.startswith("right") else "wrong")
        keys.append(item.key)
    return keys


def test_texts_come_in_the_order_in_which_they_were_drawn(scored: PairTable) -> None:
    session = opened(scored)
    items = session.upcoming("ann", 5)
    assert items == session.items[:5]
    first = items[0]
    assert first.key == f"{first.row}/web/0"
    assert first.row == f"r{first.row_number}"
    assert first.text.split()[1] == str(first.row_number)
    assert [(source, text) for source, text, _ in first.others] == [("synthetic", "made 0 of 1")]
    assert 0 < first.probability <= 1
    assert session.upcoming("ann", 5, skip=[first.key])[0] == items[1]


def test_a_verdict_is_on_the_disk_with_all_that_is_known(scored: PairTable) -> None:
    session = opened(scored)
    item = session.upcoming("ann", 1)[0]
    key = session.record("ann", item.key, "partly", edited=" better ")
    (record,) = ReviewLog.of(scored.uri).standing()
    assert (record.key, record.verdict, record.edited) == (key, "partly", "better")
    assert (record.row, record.text, record.reviewer) == (item.row, item.text, "ann")
    assert (record.itm, record.sample) == (item.itm, session.sample.name)
    assert (record.stratum, record.probability) == (item.stratum, item.probability)
    assert session.upcoming("ann", 1)[0] == session.items[1]


def test_undo_goes_back_to_the_beginning(scored: PairTable) -> None:
    session = opened(scored)
    keys = judge(session, "ann", 6)
    session.record("ann", keys[2], "unsure")
    undone = [session.undo("ann") for _ in range(8)]
    # The changed verdict first, and what it had replaced in its own turn.
    assert [item and item.key for item in undone] == [
        *(keys[2], *reversed(keys)),
        None,
    ]
    assert session.progress("ann").judged == 0
    assert session.upcoming("ann", 1)[0].key == keys[0]
    assert ReviewLog.of(scored.uri).standing() == []


def test_undo_is_each_reviewers_own(scored: PairTable) -> None:
    session = opened(scored)
    (mine,) = judge(session, "ann", 1)
    judge(session, "ben", 2)
    undone = session.undo("ann")
    assert isinstance(undone, ReviewItem)
    assert undone.key == mine
    assert session.progress("ben").judged_by_me == 2


def test_reviewers_share_the_work_and_every_fifth_text(scored: PairTable) -> None:
    session = opened(scored)
    ann, ben = session.upcoming("ann", 10), session.upcoming("ben", 10)
    both = {item.key for item in ann} & {item.key for item in ben}
    # Whatever is handed out to nobody else comes first.
    assert both == {session.items[0].key, session.items[5].key}
    for item in ann:
        session.record("ann", item.key, "right")
    for item in ben:
        session.record("ben", item.key, "right" if item.key not in both else "wrong")
    found = session.estimates()
    assert (found.labels, found.unsure, found.agreement.texts) == (18, 2, 2)
    assert found.agreement.pairs[0].texts == 2
    # When nothing else is left, each gets what the other has judged.
    while items := session.upcoming("ann", 10):
        for item in items:
            session.record("ann", item.key, "right")
    assert session.progress("ann").judged_by_me == 60


def test_most_reviewers_decide_and_unsure_is_no_vote(scored: PairTable) -> None:
    session = opened(scored)
    votes = {
        0: ("right", "right", "wrong"),
        1: ("right", "wrong", "unsure"),
        2: ("unsure", "unsure", "unsure"),
        3: ("partly", "unsure", "unsure"),
    }
    for place, verdicts in votes.items():
        for reviewer, verdict in zip("abc", verdicts, strict=True):
            session.record(reviewer, session.items[place].key, verdict)  # type: ignore[arg-type]
    assert str(session.labels().right.tolist()) == "[1.0, nan, nan, 0.0]"
    lenient = ReviewSession.open(scored, SETTINGS, partly_is_right=True)
    assert str(lenient.labels().right.tolist()) == "[1.0, nan, nan, 1.0]"


def test_another_session_sees_the_verdicts_at_once(scored: PairTable) -> None:
    first, second = opened(scored), opened(scored)
    keys = judge(first, "ann", 3)
    assert list(second.standing("ann")) == keys
    second.undo("ann")
    assert list(first.standing("ann")) == keys[:2]
    assert first.progress("ann").verdicts.keys() <= {"right", "wrong"}


def test_a_verdict_on_words_that_are_there_no_more_does_not_count(scored: PairTable) -> None:
    session = opened(scored)
    item = session.items[0]
    session.record("ann", item.key, "right")
    from dataclasses import replace

    (record,) = ReviewLog.of(scored.uri).records()
    ReviewLog.of(scored.uri).append(
        [
            replace(record, key="1", text="other words", reviewer="ben"),
            replace(record, key="2", sample="threshold-000000000000", reviewer="ben"),
            replace(record, key="3", sample=None, stratum=None, probability=None, reviewer="cem"),
        ]
    )
    progress = session.progress("ben")
    assert (progress.judged, progress.stale, progress.elsewhere) == (1, 1, 2)


def test_estimates_and_certificate_are_those_of_the_truth(scored: PairTable) -> None:
    session = opened(scored)
    empty = session.estimates()
    assert (empty.labels, empty.calibration, empty.isotonic) == (0, None, ())
    judge(session, "ann", 60)
    found = session.estimates()
    texts = [
        (row["captions_itm"][0], row["captions"][0].startswith("right"))
        for row in scored.take(range(120), ["captions", "captions_itm"]).to_pylist()
        if row["captions_itm"]
    ]
    kept = [right for itm, right in texts if itm > 0.5]
    assert found.current.kept == len(kept)
    assert found.current.precision.low <= sum(kept) / len(kept) <= found.current.precision.high
    assert found.current.recall is not None
    assert found.calibration is not None
    shares = [share for _, share in found.isotonic]
    assert shares == sorted(shares)
    assert found.as_plain()["calibration"].keys() == {"temperature", "ece_before", "ece_after"}
    certificate = session.certify(0.7)
    assert certificate.threshold is not None
    above = [right for itm, right in texts if itm > certificate.threshold]
    assert sum(above) / len(above) >= 0.7
    assert str(certificate).endswith("(of 119 web texts)")
    assert ReviewSession.most_reviewed(scored).certify(0.7) == certificate


def test_rejected_texts_alone_give_no_certificate(scored: PairTable) -> None:
    session = ReviewSession.open(scored, ReviewSettings(by="rejected"))
    judge(session, "ann", 3)
    with pytest.raises(RecipeError, match="says nothing of those that are kept"):
        session.certify(0.9)
    with pytest.raises(DataError, match="has no verdict on its texts as they are scored now"):
        ReviewSession.most_reviewed(scored)


def test_accepted_texts_certify_thresholds_from_the_current_one_on(scored: PairTable) -> None:
    session = ReviewSession.open(scored, ReviewSettings(by="accepted", sources=("web",)))
    judge(session, "ann", len(session.items))
    found = session.certify(0.5)
    assert found.threshold is not None
    assert found.threshold >= 0.5
    assert all(point.recall is None for point in session.estimates().points)


def with_contrast(scored: PairTable) -> PairTable:
    """Scores of given texts from -0.6 to 0.6: the same order as that of the match probability."""
    kind = pa.list_(pa.float32())
    own = [
        [1.2 * s - 0.6 for s in row] for row in scored.take(range(120))["captions_itm"].to_pylist()
    ]
    scored.add_columns(pa.table({"captions_score_contrast": pa.array(own, kind)}))
    return PairTable.open(scored.uri)


def test_a_score_below_0_is_reviewed_on_both_sides_of_its_threshold(scored: PairTable) -> None:
    table = with_contrast(scored)
    settings = ReviewSettings(sources=("web",), score="contrast", threshold=0.0, size=60)
    session = ReviewSession.open(table, settings)
    scores = np.array([item.itm for item in session.items])
    assert 0.6 < (scores > 0).mean() < 1
    judge(session, "ann", 60)
    found = session.estimates()
    assert found.current.recall is not None
    assert min(point.threshold for point in found.points) < -0.5
    assert max(point.recall.value for point in found.points if point.recall) == pytest.approx(1.0)


@pytest.mark.parametrize("by", ["accepted", "rejected"])
def test_texts_of_one_side_say_nothing_of_recall_whatever_the_threshold(
    scored: PairTable, by: str
) -> None:
    settings = ReviewSettings(sources=("web",), score="contrast", threshold=0.0, by=by)
    session = ReviewSession.open(with_contrast(scored), settings)
    judge(session, "ann", len(session.items))
    found = session.estimates()
    assert all(point.recall is None for point in found.points)
    if by == "accepted":
        assert min(point.threshold for point in found.points) == 0


def test_texts_that_were_passed_over_are_counted(scored: PairTable) -> None:
    session = opened(scored)
    assert session.progress("ann").passed_over == 0
    judge(session, "ann", 3)
    assert session.progress("ann").passed_over == 0
    session.record("ann", session.items[9].key, "right")
    assert session.progress("ann").passed_over == 6


def test_a_table_in_an_object_store_has_its_sample_and_verdicts_there(
    scored: PairTable, s3: S3Proxy
) -> None:
    uri = f"{s3.bucket}/pairs.lance"
    rows = [PairRow(id=f"r{n}", image_uri=f"s3://b/{n}", captions=["right"]) for n in range(20)]
    fragment(PairTable.create(uri, rows), [[n / 20] for n in range(20)], [[]] * 20)
    session = ReviewSession.open(PairTable.open(uri), ReviewSettings(size=5))
    keys = judge(session, "ann", 2)
    again = ReviewSession.open(PairTable.open(uri), ReviewSettings(size=8))
    assert [item.key for item in again.items[:5]] == [item.key for item in session.items]
    assert list(again.standing("ann")) == keys


def test_bad_verdicts_are_refused(scored: PairTable) -> None:
    session = opened(scored)
    key = session.items[0].key
    with pytest.raises(DataError, match="'r1/web/9' is no text of the review"):
        session.record("ann", "r1/web/9", "right")
    with pytest.raises(DataError, match="none of right, wrong, partly, unsure"):
        session.record("ann", key, "good")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="needs the name of its reviewer"):
        session.record(" ", key, "right")
    assert ReviewLog.of(scored.uri).records() == []


def test_many_threads_lose_nothing(scored: PairTable) -> None:
    session = opened(scored)

    def work(name: str) -> None:
        judge(session, name, 15)
        session.undo(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [session.progress(name).judged_by_me for name in "abcd"] == [14] * 4
    assert len(ReviewLog.of(scored.uri).standing()) == 56


def test_a_killed_process_has_lost_no_verdict_that_it_was_told_of(
    scored: PairTable, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from openblip.review.session import ReviewSession\n"
        "from openblip.review.sampling import ReviewSettings\n"
        "from openblip.table.table import PairTable\n"
        "s = ReviewSession.open(PairTable.open(sys.argv[1]),"
        " ReviewSettings(sources=('web',), size=60))\n"
        "for item in s.items:\n"
        "    s.record('ann', item.key, 'right')\n"
        "    print(item.key, flush=True)\n"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    with subprocess.Popen(
        [sys.executable, "-c", code, scored.uri],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(8)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split()
    session = opened(scored)
    assert list(session.standing("ann"))[: len(told)] == told
    assert session.upcoming("ann", 1)
