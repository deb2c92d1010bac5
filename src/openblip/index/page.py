"""A contact sheet of what a search has found."""

from pathlib import Path

from PIL import Image

from openblip.index.query import Query
from openblip.index.search import Found, Hit
from openblip.runtime.errors import DataError
from openblip.runtime.page import CardText, Page
from openblip.sources.row_images import row_image
from openblip.table.table import PairTable

_SIDE = 320
_GREY = (128, 128, 128)


def write_page(path: Path, table: PairTable, query: Query, found: Found) -> Path:
    """Write a page with the images of some hits, and return where it is.

    An image that cannot be read any more is a grey square, and its card says why.

    Args:
        path: of the page.
        table: in which was searched.
        query: what was looked for.
        found: what was found.

    Raises:
        UnwritableError: it cannot be written.
    """
    page = Page(_title(query), f"{len(found.hits)} images of {table.uri}; {found}.")
    page.facts(_facts(query))
    if found.nothing:
        page.section(f"Nothing found above {found.threshold:g}")
        page.note("The nearest:" if found.hits else "No row fulfils what was asked.")
    page.cards([_card(table, hit) for hit in found.hits])
    return page.save(path)


def _facts(query: Query) -> dict[str, object]:
    """All that was asked for, which the title names in short."""
    weights = [*query.weights, *[1.0] * (len(query.texts) - len(query.weights))]
    asked = {
        "shall fit": [
            text if weight == 1 else f"{text} (weight {weight:g})"
            for text, weight in zip(query.texts, weights, strict=True)
        ],
        "shall not fit": query.without,
        "alike": [*(str(name) for name in query.like), *map(str, query.images)],
    }
    return {name: ", ".join(parts) for name, parts in asked.items() if parts}


def _title(query: Query) -> str:
    parts = [*query.texts, *(f"like {name}" for name in query.like)]
    parts += ["like an image"] * len(query.images)
    told = " and ".join(parts)
    return told + "".join(f", not {text}" for text in query.without)


def _card(table: PairTable, hit: Hit) -> tuple[Image.Image, list[CardText]]:
    probability = "" if hit.itm is None else f"match probability (ITM) {hit.itm:.3f}, "
    texts = [CardText(hit.id, f"{probability}ITC cosine {hit.itc:.3f}, row {hit.row}")]
    texts += [CardText(caption, "given text") for caption in hit.captions[:1]]
    try:
        # One at a time: as many photographs at once may fill the memory.
        (row,) = table.take([hit.row], ["id", "image", "image_uri"]).to_pylist()
        image = row_image(row)
        # Small, as the page has its images within it.
        image.thumbnail((_SIDE, _SIDE))
    except (DataError, OSError) as error:
        image = Image.new("RGB", (_SIDE, _SIDE), _GREY)
        texts.append(CardText(str(error), "cannot be read"))
    return image, texts
