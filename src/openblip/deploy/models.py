"""Models that a runtime computes: they take and give what ours do, and hold no weights.

Generation, matching and ranking call a model's methods (`encode_images`, `match`, a text stack with
a cache). These have the same ones, each of which runs a graph of an exported folder.
"""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openblip.checkpoints.families import AnyModel
from openblip.checkpoints.folder import MANIFEST_FILE, read_config, read_json
from openblip.deploy.graphs import as_memory, flat_memory
from openblip.deploy.runtimes import Run, open_graph
from openblip.model import ImageMemory, KeyValueCache, Med, TextPass
from openblip.model.albef import Albef
from openblip.model.config import TextConfig
from openblip.model.dual import DualEncoder
from openblip.model.text import TextStack
from openblip.model.vision import PATCHES_AT_ONCE
from openblip.model.vqa import Vqa
from openblip.runtime.errors import CheckpointError, RecipeError

FORMAT, VERSION = "openblip-graphs", 1
"""What `openblip.json` says that it is; the version counts what readers must know."""


class Graphs:
    """The graphs of an exported folder; each is opened when it is first called."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Opens none yet.

        Args:
            folder: of `openblip.inference.export`.
            manifest: what its `openblip.json` says.
        """
        self.memory: dict[str, str] = manifest["memory"]
        self._folder, self._graphs = folder, manifest["graphs"]
        self._runs: dict[tuple[str, int], Run] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, *tensors: Tensor) -> list[Tensor]:
        """What a graph gives of tensors in the order of its inputs; nothing is copied on the way.

        Raises:
            CheckpointError: the model has no such graph, or the runtime cannot open it.
        """
        if name not in self._graphs:
            raise CheckpointError(
                f"{self._folder}: has no graph {name}; it was exported by an earlier version: "
                "export the model again"
            )
        # Arrays and tensors share their memory: on a processor nothing is copied in between.
        ports = self._graphs[name]["inputs"]
        arrays = {p["name"]: t.detach().numpy() for p, t in zip(ports, tensors, strict=True)}
        return [torch.from_numpy(array) for array in self._opened(name)(arrays)]

    def _opened(self, name: str) -> Run:
        # A runtime decides about threads when it opens a graph, PyTorch at each product: a graph
        # that is called with another number is opened again, as a worker's `one_thread` asks for.
        threads = torch.get_num_threads()
        # The lock is held while a graph is opened: two threads would hold its weights twice.
        with self._lock:
            if (name, threads) not in self._runs:
                file = self._folder / self._graphs[name]["file"]
                self._runs[name, threads] = open_graph(file, threads)
            return self._runs[name, threads]


class GraphCache(KeyValueCache):
    """Keys and values as a graph gives them: it takes those of earlier tokens, and gives all."""

    def __init__(self, past: Sequence[Float[Tensor, "rows heads tokens head_dim"]]) -> None:
        """Begins with what is there: of each layer keys, then values."""
        self.past = list(past)
        self.length = past[0].shape[2]

    @property
    def rows(self) -> int:
        """How many texts it is of."""
        return self.past[0].shape[0]

    def grown(self, present: Sequence[Tensor]) -> None:
        """Go on with what the graph gave."""
        self.past = list(present)
        self.length = present[0].shape[2]

    def select(self, index: Int[Tensor, " new_rows"]) -> "GraphCache":
        """The cache whose row i is this one's row `index[i]`."""
        return GraphCache([each.index_select(0, index) for each in self.past])


class GraphText(TextStack):
    """A text stack that decodes. Its states are logits already, so that `logits` changes nothing.

    The vocabulary is part of the graph: states before it would have to leave the runtime and come
    back in.
    """

    def __init__(self, config: TextConfig, num_patches: int, graphs: Graphs) -> None:
        nn.Module.__init__(self)
        self.config, self._graphs, self._num_patches = config, graphs, num_patches

    def forward(
        self, *passes: TextPass, cache: KeyValueCache | None = None
    ) -> tuple[Float[Tensor, "rows tokens vocab"], ...]:
        """Next-token logits behind every token of texts that are decoded.

        Padding comes last and needs no mask: no token attends to those behind it.
        """
        (texts,) = passes
        memory = texts.memory
        if memory is None or not texts.causal:
            raise RecipeError(
                "an exported model gives no hidden states of texts; load the model itself"
            )
        # A pass over whole texts, as of candidates, has no cache, and a graph always takes one.
        own = cache if isinstance(cache, GraphCache) else self.empty_cache(len(texts.ids))
        assert memory.rows is None, "a graph reads keys and values as they stand"
        ids = texts.ids.unflatten(0, (memory.images, -1))  # type: ignore[no-untyped-call]
        masks = [] if memory.mask is None else [memory.mask]
        past = [each.unflatten(0, ids.shape[:2]) for each in own.past]  # type: ignore[no-untyped-call]
        logits, *present = self._graphs("decoder", ids, *masks, *flat_memory(memory), *past)
        own.grown([each.flatten(0, 1) for each in present])
        return (logits.flatten(0, 1),)

    def empty_cache(self, rows: int, max_tokens: int = 0, like: Tensor | None = None) -> GraphCache:
        """A cache of texts without a token; it grows by itself."""
        config = self.config
        # No room for the longest text: a graph gives new keys and values at every step.
        shape = (rows, config.heads, 0, config.width // config.heads)
        return GraphCache([torch.zeros(shape)] * (2 * config.depth))

    def logits(
        self, hidden: Float[Tensor, "rows tokens vocab"]
    ) -> Float[Tensor, "rows tokens vocab"]:
        """The logits themselves."""
        return hidden

    def remember(
        self,
        image_hidden: Float[Tensor, "images patches memory_width"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "images patches"] | None = None,
        num_tokens: int | None = None,
    ) -> ImageMemory:
        """Keys and values of images, for whichever number of tokens.

        Raises:
            RecipeError: an image has another number of patches than the graph, as several frames
                of a video in one.
        """
        reader = "decoder" if causal else "matcher"
        return remembered(
            self._graphs, self._graphs.memory[reader], image_hidden, self._num_patches
        )


def remembered(graphs: Graphs, name: str, hidden: Tensor, num_patches: int) -> ImageMemory:
    """What a graph makes of images for texts to attend to.

    Raises:
        RecipeError: they have another number of patches than the graph takes.
    """
    if hidden.shape[1] != num_patches:
        raise RecipeError(
            f"an exported model reads {num_patches} patches of an image, not {hidden.shape[1]}, as "
            "several frames of a video have: load the model itself, without a backend"
        )
    return as_memory(graphs(name, hidden))


class _GraphEncoder(nn.Module):
    """An image encoder."""

    def __init__(self, config: Any, graphs: Graphs) -> None:
        super().__init__()
        self.config, self._graphs = config, graphs

    def forward(self, images: Tensor, num_given: int | None = None) -> Tensor:
        """States of the patches, or of the first so many."""
        # As with PyTorch, and measured in `benchmarks/results/anchors.md`: the states of many
        # images at once outgrow the caches, and eight together take longer than one by one.
        parts = torch.split(images, max(1, PATCHES_AT_ONCE // self.config.num_patches))
        # The embedding, which it gives as well, is made again by `image_embedding`: a few products.
        states = [self._graphs("image_encoder", part)[0][:, :num_given] for part in parts]
        return states[0] if len(states) == 1 else torch.cat(states)


class _OfGraphs(nn.Module):
    """What the models have in common: they are built from graphs, and embed by them."""

    config: Any
    stands_for: type[Any]
    """The class of the model that was exported, whose family this one is of."""

    def __init__(self, config: Any, graphs: Graphs, temperature: float) -> None:
        """Takes the graphs.

        Args:
            config: of the model that was exported.
            graphs: of it.
            temperature: that contrast divides by; of a model without it any.
        """
        # Not the model's own: it would make the weights, which nobody needs.
        nn.Module.__init__(self)
        self.config, self._graphs = config, graphs
        # The only weight that is left says where, and in which type, the model takes its images.
        self.divisor = nn.Parameter(torch.tensor(temperature), requires_grad=False)
        self.image_encoder = cast("Any", _GraphEncoder(config.vision, graphs))
        self.text = cast("Any", GraphText(config.text, config.vision.num_patches, graphs))

    @property
    def temperature(self) -> Tensor:
        """What contrast divides cosines by."""
        return self.divisor

    def embed_images(self, image_hidden: Tensor) -> Tensor:
        """Unit-length embeddings of encoded images."""
        # Of states, not of pixels: a search has them from its cache.
        return self._graphs("image_embedding", image_hidden)[0]

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit-length embeddings of texts."""
        return self._graphs("text_encoder", ids, mask)[0]

    def match(self, ids: Tensor, mask: Tensor, memory: ImageMemory) -> Tensor:
        """Logits of (no match, match) for texts against images, grouped by image."""
        by_image = partial(Tensor.unflatten, dim=0, sizes=(memory.images, -1))
        (logits,) = self._graphs("matcher", by_image(ids), by_image(mask), *flat_memory(memory))
        return logits.flatten(0, 1)


class GraphMed(_OfGraphs, Med):  # type: ignore[misc]
    """A `Med`; what it has no head for it refuses by itself."""


class GraphAlbef(_OfGraphs, Albef):  # type: ignore[misc]
    """An `Albef`."""


class GraphDualEncoder(_OfGraphs, DualEncoder):
    """A `DualEncoder`."""


class GraphVqa(_OfGraphs, Vqa):
    """A `Vqa`: its answers attend to what one graph makes of a question and its image."""

    def __init__(self, config: Any, graphs: Graphs, temperature: float) -> None:
        super().__init__(config, graphs, temperature)
        self.answer = self.text

    def image_memory(self, image_hidden: Tensor) -> ImageMemory:
        """What the questions about encoded images attend to."""
        # Of a question's encoder alone; what answers attend to is made of its states.
        name = self._graphs.memory["question_encoder"]
        return remembered(self._graphs, name, image_hidden, self.config.vision.num_patches)

    def remember_questions(self, ids: Tensor, mask: Tensor, memory: ImageMemory) -> ImageMemory:
        """What the answers to questions about images attend to."""
        by_image = partial(Tensor.unflatten, dim=0, sizes=(memory.images, -1))
        given = by_image(ids), by_image(mask), *flat_memory(memory)
        return as_memory(self._graphs("question_encoder", *given), mask)


_MODELS: Mapping[type[Any], type[_OfGraphs]] = {
    Med: GraphMed,
    Vqa: GraphVqa,
    Albef: GraphAlbef,
    DualEncoder: GraphDualEncoder,
}


def require_weights(model: nn.Module, what: str) -> None:
    """Check that a model has weights, and is not computed by a backend.

    Args:
        model: any.
        what: the weights are needed for.

    Raises:
        RecipeError: it has none.
    """
    if isinstance(model, _OfGraphs):
        raise RecipeError(
            f"a model that a backend computes has no weights to {what}; load the model itself, "
            "without a backend"
        )


def open_model(folder: Path) -> AnyModel:
    """The model of an exported folder.

    Raises:
        CheckpointError: the folder is damaged, or of a version or model that cannot be opened.
    """
    manifest, config = read_manifest(folder), read_config(folder)
    kinds = (own for base, own in _MODELS.items() if issubclass(config.family.model, base))
    kind = next(kinds, None)
    if kind is None:
        raise CheckpointError(f"{folder}: no runtime computes a {config.kind} model")
    temperature = manifest.get("temperature")
    made = kind(config.model, Graphs(folder, manifest), 1.0 if temperature is None else temperature)
    made.stands_for = config.family.model
    return cast("AnyModel", made)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an exported folder's `openblip.json` says.

    Raises:
        CheckpointError: it is missing, damaged or of another version.
    """
    file = folder / MANIFEST_FILE
    values = read_json(file)
    known = values.get("format"), values.get("format_version")
    if known != (FORMAT, VERSION):
        raise CheckpointError(
            f"{file}: is {known[0]!r:.40}, version {known[1]!r:.20}; this version of OpenBLIP "
            f"reads {FORMAT!r}, version {VERSION}: export the model again"
        )
    for name in ("runtime", "weights", "memory", "graphs"):
        if name not in values:
            raise CheckpointError(f"{file}: missing {name!r}; export the model again")
    return values
