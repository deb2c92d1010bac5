"""Messages of anybody as one short line."""

from openblip.runtime.errors import install_extra, one_line


def test_lines_colours_and_places_in_rust_are_no_part_of_a_message() -> None:
    told = (
        "\x1b[31mLance error:\x1b[0m no file\n  here, /root/.cargo/registry/lance-1/src/io.rs:12:3"
    )
    assert one_line(told) == "Lance error: no file here"


def test_a_long_message_keeps_its_begin_and_its_end() -> None:
    line = one_line(f"wrong: {'x' * 5000}; mend the file")
    assert len(line) <= 450
    assert line.startswith("wrong: xxx")
    assert line.endswith("x; mend the file")


def test_what_no_terminal_should_get_becomes_a_question_mark() -> None:
    assert one_line("a\0b\u202ec") == "a?b?c"


def test_an_extra_is_installed_by_its_name() -> None:
    assert install_extra("cloud") == "pip install 'openblip[cloud]'"
