"""Image embeddings as a column of a table, for finding images that look alike to a model."""

from typing import TYPE_CHECKING

import numpy as np

from openblip.batches.loader import iterate_images
from openblip.checkpoints.reading import model_fingerprint
from openblip.curation.marks import EMBEDDING_KEY
from openblip.inference import Blip, load
from openblip.table.columns import compute_columns
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa


def embed_table(
    table: PairTable,
    model: str,
    *,
    device: str | None = None,
    batch_size: int = 32,
    show_progress: bool = True,
) -> int:
    """Number of images that were embedded; the column `image_embedding` covers every row then.

    Float16 of unit length; zeros for an image that cannot be read. Resumes, and extends as the
    table grows.

    Args:
        table: gets the column.
        model: folder of a model with an itc head.
        device: by default the GPU where there is one.
        batch_size: images at a time.
        show_progress: on stderr.

    Raises:
        CheckpointError, MissingHead: the model cannot be read, or cannot embed.
    """
    settings = {"model": model_fingerprint(model)}
    loaded = load(model, device=device)
    loaded.require("itc")
    return compute_columns(
        table,
        EMBEDDING_KEY,
        settings,
        lambda rows: _embed(loaded, table, rows, batch_size),
        show_progress=show_progress,
    )


def _embed(model: Blip, table: PairTable, rows: range, batch_size: int) -> "pa.Table":
    import pyarrow as pa

    width = model.med.config.embed_dim
    values = np.zeros((len(rows), width), dtype=np.float16)
    for batch in iterate_images(table, rows, batch_size, model.image_size):
        if batch.rows.size:
            embed = model.encode(batch.images).embed
            assert embed is not None, "the head is there"
            values[batch.rows - rows.start] = embed.cpu().numpy()
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
    return pa.table({EMBEDDING_KEY: column})
