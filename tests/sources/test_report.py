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


def test_reports_of_parts_add_up_to_that_of_the_whole() -> None:
    whole = ImportReport("crawl", "pairs.lance", "jsonl")
    added = ImportReport("crawl", "pairs.lance", "jsonl")
    for part in range(3):
        own = ImportReport("", "", "")
        for report in (whole, own):
            report.count_row(("train", "val")[part % 2], 2, said_by=f"somebody {part}")
            for number in range(6):
                report.skip(Reason.BAD_RECORD, f"line {part}.{number}", "broken", num_records=2)
            report.note(Reason.NO_CAPTIONS, f"line {part}", "none")
        added.add(own)
    assert added == whole
    assert added.to_json() == whole.to_json()
    assert [example.where for example in added.examples["bad record"]][-1] == "line 1.3"


def test_a_thing_of_several_files_is_one_example_and_no_more() -> None:
    report = ImportReport("photos", "pairs.lance", "folder")
    report.skip(Reason.UNREADABLE_IMAGE, "broken.jpg", "no image", num_records=2)
    report.skip(Reason.UNREADABLE_IMAGE, "torn.jpg", "no image")
    lines = report.to_text().splitlines()
    assert lines[-3:] == [
        "  unreadable image: 3",
        "    broken.jpg (with 1 beside it): no image",
        "    torn.jpg: no image",
    ]
    for number in range(9):
        report.skip(Reason.UNREADABLE_IMAGE, f"{number}.jpg", "no image", num_records=2)
    assert "unreadable image: 21" in report.to_text()
    shown = sum(each.num_records for each in report.examples["unreadable image"])
    assert report.to_text().endswith(f"and {21 - shown} more")
