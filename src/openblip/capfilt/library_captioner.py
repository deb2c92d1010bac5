"""Captions of image-to-text and image-text-to-text models of `transformers` (extra `transformers`).

BLIP-2, GIT, Florence-2, SmolVLM, the Qwen-VL family and all others that its
`AutoModelForImageTextToText` reads, and encoder-decoders of a vision and a text model, each with
its own processor.
"""

import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openblip.capfilt.captioners import INSTRUCTION, Pending, Usage, WebRows, Written
from openblip.checkpoints.fingerprints import digest
from openblip.checkpoints.folder import CONFIG_FILE, read_json
from openblip.checkpoints.hub import fetch_repository, is_repo_id, split_revision
from openblip.inference.decoding import Decoding
from openblip.inference.generation import invert_cumulative, nucleus_probabilities, uniform_number
from openblip.inference.loading import default_device
from openblip.model.library_backbones import quietly
from openblip.runtime.errors import CheckpointError, install_extra

if TYPE_CHECKING:
    from PIL import Image

    from openblip.capfilt.job import CapFiltSettings

# Besides what a model of ours has: what tells of talks, of vocabularies and of how texts end.
_MORE_FILES = ("*.jinja", "*.json", "merges.txt", "*.model")
_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".safetensors", ".bin")
_ENCODER_DECODER = "vision-encoder-decoder"


def library_folder(name: str) -> Path:
    """The local folder of a model: a folder, or that of a hub repository, which is fetched.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            raise CheckpointError(f"hf:{name}: the folder has no {CONFIG_FILE} of transformers")
        return folder
    repo_id, revision = split_revision(name)
    if not is_repo_id(repo_id):
        raise CheckpointError(
            f"hf:{name}: no such folder; give a model folder of transformers, or "
            "organisation/name of the Hugging Face hub"
        )
    return fetch_repository(repo_id, revision, _MORE_FILES)


def library_fingerprint(name: str) -> str:
    """16 hexadecimal digits of a model's configuration, weights, processor and tokenizer.

    Raises:
        CheckpointError: there is none.
    """
    files = sorted(file for file in library_folder(name).iterdir() if file.suffix in _SUFFIXES)
    return digest("hf", files)


class LibraryCaptioner:
    """An image-to-text model of `transformers`."""

    columns: tuple[str, ...] = ()

    def __init__(
        self,
        source: str,
        name: str,
        settings: "CapFiltSettings",
        device: str | None,
        instruction: str | None = None,
    ) -> None:
        """Loads it.

        Raises:
            CheckpointError: transformers is not installed, or cannot read it.
        """
        self.name, self._source, self._settings = name, source, settings
        self._device = torch.device(device) if device is not None else default_device()
        self._model, self._processor = _loaded(library_folder(source), source, self._device)
        self._prompt = self._prompt_of(instruction)
        # The tokenizer keeps how it pads in itself: one reading thread at a time.
        self._preparing = threading.Lock()

    def begin(self, rows: WebRows) -> Pending:
        """See `Captioner.begin`: the model's own processor makes its inputs."""
        inputs = self._inputs([row.image for row in rows.rows])
        seeds = [row.seed for row in rows.rows]
        return Pending(lambda: self._write(inputs, seeds))

    def close(self) -> None:
        """See `Captioner.close`."""

    def _prompt_of(self, instruction: str | None) -> str | None:
        """The text beside an image; None where the model takes an image alone."""
        has_template = any(
            getattr(part, "chat_template", None)
            for part in (self._processor, getattr(self._processor, "tokenizer", None))
        )
        self._is_talk = has_template
        if not has_template:
            return instruction
        content = [{"type": "image"}, {"type": "text", "text": instruction or INSTRUCTION}]
        try:
            text: str = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        # A template is a program: it raises what it likes.
        except Exception as error:
            raise CheckpointError(
                f"hf:{self._source}: its chat template takes no image and instruction "
                f"({_reason(error)})"
            ) from error
        return text

    def _inputs(self, images: "list[Image.Image]") -> Any:
        text = {} if self._prompt is None else {"text": [self._prompt] * len(images)}
        # In a talk each image is one text's, which processors of talks want to be told.
        nested: Any = [[image] for image in images] if self._is_talk else images
        try:
            with self._preparing:
                return self._processor(images=nested, **text, padding=True, return_tensors="pt")
        # Processors of others raise what their parts raise.
        except Exception as error:
            raise CheckpointError(
                f"hf:{self._source}: its processor does not take an image with the text "
                f"{self._prompt!r} ({_reason(error)}): --instruction gives another"
            ) from error

    @torch.inference_mode()
    def _write(self, inputs: Any, seeds: list[int]) -> list[Written]:
        settings, decoding = self._settings, self._settings.decoding
        inputs = inputs.to(self._device, self._model.dtype)
        beams = decoding.num_beams if decoding.method == "beam" else 1
        options: dict[str, Any] = {
            "do_sample": False,
            "num_beams": beams,
            "max_new_tokens": settings.max_new_tokens,
            "repetition_penalty": decoding.repetition_penalty,
            "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
            # What a checkpoint says of sampling is not what the job says.
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        if decoding.method == "beam":
            several = {"num_return_sequences": settings.num_captions}
            options |= {"length_penalty": decoding.length_penalty, **several}
            texts = self._texts(inputs, self._model.generate(**inputs, **options))
            count = settings.num_captions
            return [_joined(texts[n : n + count]) for n in range(0, len(texts), count)]
        rounds = settings.num_captions if decoding.method == "nucleus" else 1
        drawn = []
        for number in range(rounds):
            if decoding.method == "nucleus":
                options["logits_processor"] = [_RowDraws(decoding, seeds, number)]
            drawn.append(self._texts(inputs, self._model.generate(**inputs, **options)))
        return [_joined(own) for own in zip(*drawn, strict=True)]

    def _texts(self, inputs: Any, sequences: Tensor) -> list[tuple[str, bool]]:
        """Each text, and whether it ended at its longest length."""
        given = inputs.get("input_ids")
        # Decoders repeat what they were given, encoder-decoders do not; some say neither.
        if given is not None and sequences.shape[1] >= given.shape[1]:
            repeats = len(sequences) // len(given)
            start = given.repeat_interleave(repeats, dim=0)
            if torch.equal(sequences[:, : given.shape[1]], start):
                sequences = sequences[:, given.shape[1] :]
        texts = self._processor.batch_decode(sequences, skip_special_tokens=True)
        is_full = sequences.shape[1] >= self._settings.max_new_tokens
        ends = self._ends(sequences)
        return [
            (" ".join(text.split()), is_full and bool(text) and not end)
            for text, end in zip(texts, ends, strict=True)
        ]

    def _ends(self, sequences: Tensor) -> list[bool]:
        """Whether each text has an end before the longest length."""
        config = self._model.generation_config
        told = config.eos_token_id
        ends = told if isinstance(told, list) else [told]
        marks = torch.tensor([end for end in ends if end is not None], device=sequences.device)
        return [bool(end) for end in torch.isin(sequences[:, 1:], marks).any(dim=1).tolist()]


def _joined(texts: Sequence[tuple[str, bool]]) -> Written:
    """What was written about an image; a text without a word is none."""
    words = [text for text, _ in texts if text]
    usage = Usage(cut=sum(cut for _, cut in texts))
    return Written(words, reason=None if words else "its text is empty", usage=usage)


class _RowDraws:
    """Draws each row's next token by the row's own seed; `generate` then takes the only one left.

    So what is drawn does not depend on a generator that all rows of a batch share.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int], number: int) -> None:
        self._decoding, self._seeds, self._number = decoding, seeds, number
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        decoding = self._decoding
        probabilities = nucleus_probabilities(
            scores.float(), top_p=decoding.top_p, top_k=decoding.top_k
        )
        uniform = [uniform_number(seed, self._number, self._step) for seed in self._seeds]
        self._step += 1
        tokens = invert_cumulative(probabilities, uniform).to(scores.device)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter(1, tokens[:, None], 0.0)


def _loaded(folder: Path, source: str, device: torch.device) -> tuple[Any, Any]:
    """A model in eval mode, and its processor."""
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"hf:{source} needs transformers: {install_extra('transformers')}"
        ) from error
    library: Any = transformers
    is_pair = read_json(folder / CONFIG_FILE).get("model_type") == _ENCODER_DECODER
    kind = library.VisionEncoderDecoderModel if is_pair else library.AutoModelForImageTextToText
    # On a GPU the weights' own type: what fits there as it is published may not in float32.
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    try:
        with quietly():
            model = kind.from_pretrained(
                # Never code of the checkpoint's own, even where its configuration names some.
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=dtype,
            )
            processor = _processor(library, folder)
    # It raises what its parts raise: no common class.
    except Exception as error:
        lacks = "" if find_spec("torchvision") else "; processors that take videos need torchvision"
        raise CheckpointError(
            f"hf:{source}: transformers cannot read it ({_reason(error)}){lacks}"
        ) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        # A decoder goes on behind the last token, where padding must not stand.
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model.eval().to(device), processor


def _processor(library: Any, folder: Path) -> Any:
    """The processor of a model; of one that has none, its image processor and tokenizer."""
    processor = library.AutoProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if hasattr(processor, "image_processor"):
        return processor
    # By its file: up to 5.17 at least, the package hides it where torchvision is absent.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    images: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
        folder, local_files_only=True, backend="pil"
    )
    tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return _Pair(images, tokenizer)


class _Pair:
    """An image processor and a tokenizer, as one processor that takes images alone."""

    def __init__(self, image_processor: Callable[..., Any], tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.batch_decode = tokenizer.batch_decode

    def __call__(self, images: Any, return_tensors: str, **_: Any) -> Any:
        return self.image_processor(images, return_tensors=return_tensors)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
