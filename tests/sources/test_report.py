"""The report of an import says once where something was wrong."""

from openblip.sources.report import ImportReport, Reason


def test_a_detail_that_begins_with_the_place_does_not_repeat_it() -> None:
    report = ImportReport("crawl", "pairs.lance", "jsonl")
    report.skip(Reason.UNREADABLE_IMAGE, "line 3, a.jpg", "line 3, a.jpg: its header is damaged")
    assert "line 3, a.jpg: its header is damaged" in report.to_text()
    assert report.to_text().count("a.jpg") == 1


def test_a_report_is_read_back_as_it_was_written() -> None:
    report = ImportReport("crawl", "pairs.lance", "jsonl")
    report.count_row("train", num_captions=0)
    report.skip(Reason.MISSING_IMAGE, "line 4", "no such file")
    assert ImportReport.from_json(report.to_json()) == report
