"""Which columns of a table mean what."""

import pyarrow as pa
import pytest

from openblip.sources.columns import NoColumn, arrow_kinds, find_columns
from openblip.sources.source import SourceOptions

_TEXTS = pa.list_(pa.string())


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (pa.string(), "text"),
        (pa.large_string(), "text"),
        (pa.string_view(), "text"),
        (pa.dictionary(pa.int32(), pa.string()), "text"),
        (pa.null(), "text"),
        (_TEXTS, "text"),
        (pa.large_list(pa.string()), "text"),
        (pa.list_(pa.string(), 5), "text"),
        (pa.list_view(pa.string()), "text"),
        (pa.list_(pa.dictionary(pa.int8(), pa.large_string())), "text"),
        (pa.struct([("raw", pa.string()), ("tokens", _TEXTS)]), "text"),
        (pa.list_(pa.struct([("raw", pa.string()), ("tokens", _TEXTS)])), "text"),
        (pa.binary(), "binary"),
        (pa.large_binary(), "binary"),
        (pa.binary_view(), "binary"),
        (pa.binary(7), "binary"),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "binary"),
        (pa.int64(), "int64"),
        (pa.struct([("raw", pa.int64())]), "struct<raw: int64>"),
        (pa.list_(pa.float32()), "list<element: float>"),
    ],
)
def test_types_of_arrow_that_hold_images_or_texts(kind: pa.DataType, known: str) -> None:
    (found,) = arrow_kinds(pa.schema([("column", kind)]))
    assert found.replace("item:", "element:") == known


def _columns(*names: str, **told: str) -> tuple[str, tuple[str, ...]]:
    kinds = {name: "binary" if name in ("jpg", "bytes") else "text" for name in names}
    columns = find_columns(kinds, SourceOptions(**told), "t.csv")
    return columns.image, columns.captions


def test_images_in_bytes_come_before_paths_and_captions_in_their_order() -> None:
    assert _columns("caption", "path", "jpg") == ("jpg", ("caption",))
    assert _columns("Title", "File_Name", "CAPTION") == ("File_Name", ("CAPTION", "Title"))
    assert _columns("image", "text", "captions") == ("image", ("captions", "text"))


def test_a_column_that_is_named_counts_alone() -> None:
    assert _columns("image", "caption", "x", image_column="x") == ("x", ("caption",))
    assert _columns("image", "caption", "x", caption_column="x") == ("image", ("x",))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "caption"), r"t.csv: no column of images among x, caption: name it"),
        (("image", "x"), r"no column of texts among image, x: name it \(--caption-column\)"),
        (("image_url", "caption"), "addresses of images, not images: download them first"),
        (("key", "status", "url"), "img2dataset's table .* import the folder that it lies in"),
    ],
)
def test_what_is_missing_is_said_with_the_remedy(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(NoColumn, match=message):
        _columns(*names)


def test_a_message_stays_short_however_many_columns_there_are() -> None:
    with pytest.raises(NoColumn) as error:
        _columns(*(f"{number}{'x' * 500}" for number in range(1000)))
    assert "and 988 more" in str(error.value)
    assert len(str(error.value)) < 800


def test_a_column_of_captions_of_another_type_is_named_with_it() -> None:
    kinds = {"image": "text", "caption": "int64"}
    with pytest.raises(NoColumn, match=r"\(caption is int64\)"):
        find_columns(kinds, SourceOptions(), "t.parquet")
