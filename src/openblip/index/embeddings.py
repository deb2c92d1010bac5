"""Image embeddings of a table's rows: a column, for searching and for finding what looks alike."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openblip.curation.marks import EMBEDDING_KEY
from openblip.index.processes import EmbeddingProcesses, devices_of
from openblip.inference import Embedder
from openblip.inference.embedder import embedder_fingerprint, load_embedder
from openblip.runtime.errors import DataError, one_line
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import open_image
from openblip.sources.row_images import encoded_image
from openblip.table.columns import compute_columns
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_TOGETHER = 32


def embed_table(
    table: PairTable,
    model: str,
    *,
    device: str | None = None,
    batch_size: int = 32,
    show_progress: bool = True,
    loaded: Embedder | None = None,
    processes: int = 1,
    on_unreadable: Callable[[str], None] = lambda told: None,
) -> int:
    """Number of images that were embedded; the column `image_embedding` covers every row then.

    Float16 of unit length; zeros for an image that cannot be read. Resumes, and extends as the
    table grows.

    Args:
        table: gets the column.
        model: a model with an itc head, or a published CLIP; whatever `load_embedder` takes.
        device: by default the GPU where there is one.
        batch_size: images at a time.
        show_progress: on stderr.
        loaded: the model itself, where the caller has it already.
        processes: of this machine, each with the model; 1 is this process.
        on_unreadable: is told of each image that cannot be read, with its id and the reason.

    Raises:
        CheckpointError, MissingHead: the model cannot be read, or cannot embed.
        OpenBlipError: one of several processes died; what is finished is kept.
    """
    settings = {"model": embedder_fingerprint(model)}
    compute = partial(compute_columns, table, EMBEDDING_KEY, settings, show_progress=show_progress)
    if processes > 1:
        devices = devices_of(processes, device)
        job = table.uri, model, settings["model"], devices, batch_size
        with EmbeddingProcesses(*job, on_unreadable) as pool:
            return compute(pool.embed, num_threads=processes)
    embedder = loaded or load_embedder(model, device)
    width = embedding_width(embedder)
    return compute(lambda rows: embed_rows(embedder, table, rows, batch_size, width, on_unreadable))


def embedding_width(model: Embedder) -> int:
    """Numbers of an embedding.

    Raises:
        MissingHead: the model cannot embed.
    """
    return model.embed_images(Image.new("RGB", (8, 8))).shape[1]


def embed_rows(
    model: Embedder,
    table: PairTable,
    rows: range,
    batch_size: int,
    width: int,
    on_unreadable: Callable[[str], None] = lambda told: None,
) -> "pa.Table":
    """The column `image_embedding` of some rows, zeros where an image cannot be read.

    A function of the rows alone, which any process may call that has the model and the table.
    """
    import pyarrow as pa

    # Half the bytes; `embeddings_of` makes the length 1 again, which rounding moves a little.
    values = np.zeros((len(rows), width), np.float16)
    good: list[int] = []

    def images() -> Iterator[Image.Image]:
        # The batch that the model has, and the next one.
        opened = ordered_map(_try_open, _encoded(table, rows), default_threads(), 2 * batch_size)
        for place, image in enumerate(opened):
            if isinstance(image, str):
                on_unreadable(image)
            else:
                good.append(place)
                yield image

    # One call: images are opened while the model works on those before them.
    embeds = embed_all(model, images(), batch_size)
    values[good] = embeds
    return pa.table({EMBEDDING_KEY: embedding_array(values)})


def embed_all(
    model: Embedder, images: Iterable[Image.Image], batch_size: int
) -> NDArray[np.float16]:
    """Embeddings (images, width) of images that can be read, as they are stored."""
    stored: NDArray[np.float16] = model.embed_images(images, batch_size).numpy().astype(np.float16)
    return stored


def embedding_array(values: NDArray[np.float16]) -> Any:
    """Embeddings (rows, width) as an Arrow array of lists."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _encoded(table: PairTable, rows: range) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Reads what the table holds of some rows, a few at a time: photographs are large."""
    for start in range(rows.start, rows.stop, _ROWS_TOGETHER):
        some = range(start, min(start + _ROWS_TOGETHER, rows.stop))
        for row in table.take(list(some), ["id", "image", "image_uri"]).to_pylist():
            yield row["id"], partial(encoded_image, row["image"], row["image_uri"])


def _try_open(row: tuple[str, Callable[[], bytes]]) -> Image.Image | str:
    """The image of a row, or its id and why it cannot be read."""
    row_id, encoded = row
    try:
        return open_image(encoded())
    except (DataError, OSError, ValueError) as error:
        return f"{row_id}: {one_line(error)}"
