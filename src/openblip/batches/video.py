"""Clips with captions or questions, and frames of them; the only file that imports PyAV."""

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openblip.batches.questions import Question, read_question
from openblip.batches.transforms import eval_transform
from openblip.runtime.documents import read_text
from openblip.runtime.errors import DataError, RecipeError, install_extra
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.source import inside, texts_of
from openblip.sources.text_files import lines_of

# The empty one first: a name that says its ending means no other file.
_SUFFIXES = ("", ".mp4", ".avi", ".webm", ".mkv", ".mov")
_NAME_FIELDS = ("clip_name", "video", "video_id")
_CAPTION_FIELDS = ("caption", "captions", "sentence")


@dataclass(frozen=True)
class Clip:
    """A video with what is said about it."""

    name: str
    path: Path
    captions: list[str] = field(default_factory=list)
    """Texts that describe it."""
    questions: list[Question] = field(default_factory=list)
    """With their answers, where these are known."""


def read_clips(annotations: Path, videos: Path) -> list[Clip]:
    """The clips of an annotation file, in the order in which they first occur.

    The file has an object in each line (as the test file of MSR-VTT that BLIP's authors
    distribute), or a list of objects: `clip_name` (or `video`, `video_id`), with or without the
    ending of the file, and `caption`, a text or several. Records of one clip become one.

    Args:
        annotations: `.jsonl` or `.json`.
        videos: the folder of the clips.

    Raises:
        DataError: a record is malformed, a clip is not in the folder, or there is none.
    """

    def add_captions(clip: Clip, record: dict[str, Any]) -> None:
        captions = texts_of(next((record[key] for key in _CAPTION_FIELDS if key in record), None))
        if not captions:
            raise ValueError(f"needs a caption: {' or '.join(_CAPTION_FIELDS)}")
        clip.captions.extend(captions)

    return _read(annotations, videos, add_captions)


def read_clip_questions(annotations: Path, videos: Path) -> list[Clip]:
    """The clips of a file of questions, in the order in which they first occur.

    Records are as for `read_clips`, with `question`, and `answer` or `answers` where these are
    known, instead of the caption. A `video_id` that is a number N, as in the files of MSRVTT-QA and
    MSVD-QA, means `videoN` or `vidN`.

    Args:
        annotations: `.jsonl` or `.json`.
        videos: the folder of the clips.

    Raises:
        DataError: a record is malformed, a clip is not in the folder, or there is none.
    """

    def add_question(clip: Clip, record: dict[str, Any]) -> None:
        key = str(record.get("id", f"{clip.name}/{len(clip.questions)}"))
        clip.questions.append(read_question(key, record))

    return _read(annotations, videos, add_question)


def _read(
    annotations: Path, videos: Path, add: Callable[[Clip, dict[str, Any]], None]
) -> list[Clip]:
    """The clips of an annotation file; `add` gives a clip what a record says about it."""
    clips: dict[str, Clip] = {}
    missing: list[str] = []
    for where, record in _records(annotations):
        names = _names(record)
        if not names:
            raise DataError(f"{where}: needs the name of a clip: {' or '.join(_NAME_FIELDS)}")
        name = names[0]
        if name not in clips:
            path = _existing(videos, names)
            missing += [name] if path is None else []
            clips[name] = Clip(name, path or videos / name)
        try:
            add(clips[name], record)
        except (ValueError, DataError) as error:
            raise DataError(f"{where}: {error}") from error
    if missing:
        raise DataError(
            f"{len(missing)} of {len(clips)} clips of {annotations} are not in {videos}, such as "
            f"{missing[0]}: fetch them, or name their folder"
        )
    if not clips:
        raise DataError(f"{annotations} has no clips")
    return list(clips.values())


def sample_frames(path: Path, num_frames: int) -> list[Image.Image]:
    """RGB frames of a clip at even distances, from the first one on (see `frame_numbers`).

    Args:
        path: any format that FFmpeg decodes.
        num_frames: how many; a shorter clip repeats its last frame.

    Raises:
        DataError: it is no video, or damaged before the first frame.
        RecipeError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise RecipeError(f"reading videos needs PyAV: {install_extra('video')}") from error
    try:
        with av.open(str(path)) as container:
            # The header's number of frames may be missing or wrong; packets are counted unread.
            packets = container.demux(video=0) if container.streams.video else ()
            # An empty packet ends the stream: it flushes the decoder, and holds no frame.
            count = sum(packet.size > 0 for packet in packets)
        if not count:
            raise DataError(f"{path}: holds no video; give a clip that FFmpeg can decode")
        wanted = frame_numbers(count, num_frames).tolist()
        with av.open(str(path)) as container:
            # Opened again: the packets are used up, and to seek back is inexact in many formats.
            frames = _decoded(container.decode(video=0), wanted)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); fetch the video again") from error
    if not frames:
        raise DataError(f"{path}: has no frame that can be decoded; fetch the video again")
    return frames + frames[-1:] * (num_frames - len(frames))


def frame_numbers(count: int, num_frames: int) -> NDArray[np.int64]:
    """Which of `count` frames are taken: the first one and then every (count // num_frames)-th.

    The original's "uniform" sampling, whose step is a whole number.
    """
    step = max(count // num_frames, 1)
    return np.minimum(np.arange(num_frames, dtype=np.int64) * step, count - 1)


def iterate_clips(
    clips: Sequence[Clip],
    num_frames: int,
    batch_size: int,
    image_size: int,
    num_threads: int | None = None,
) -> Generator[Tensor, None, None]:
    """Frames of the clips in order, at the transform of evaluation, decoded ahead by threads.

    Args:
        clips: any number.
        num_frames: of each clip.
        batch_size: clips in a batch.
        image_size: pixels of a side.
        num_threads: None for one for each core, 2 to 16.

    Yields:
        float32 (clips, num_frames, 3, image_size, image_size), normalised.

    Raises:
        DataError: a clip cannot be decoded; names its file.
    """

    def load(batch: Sequence[Clip]) -> Tensor:
        frames = [sample_frames(clip.path, num_frames) for clip in batch]
        return torch.stack(
            [torch.stack([eval_transform(f, image_size) for f in own]) for own in frames]
        )

    parts = (clips[at : at + batch_size] for at in range(0, len(clips), batch_size))
    threads = num_threads or default_threads()
    return ordered_map(load, parts, threads, threads + 2)


def _decoded(frames: Iterable[Any], wanted: list[int]) -> list[Image.Image]:
    """Images of the frames of these numbers, which ascend and may repeat, as far as they come."""
    found: list[Image.Image] = []
    for number, frame in enumerate(frames):
        if number == wanted[len(found)]:
            image = frame.to_image()
            found += [image] * wanted.count(number)
        if len(found) == len(wanted):
            break
    return found


def _records(file: Path) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """The objects of a JSON list, or of the lines of a file, and what errors call them."""
    text = read_text(file)
    try:
        is_list = text.lstrip().startswith("[")
        values = json.loads(text) if is_list else lines_of(text)
        for number, value in enumerate(values, 1):
            where = f"{file} {'record' if is_list else 'line'} {number}"
            record = value if is_list else json.loads(value) if value.strip() else None
            if record is None:
                continue
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected an object that names a clip")
            yield where, record
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON lines or a JSON list: {error}") from error


def _names(record: dict[str, Any]) -> list[str]:
    """What a record's clip may be called; nothing where it has no name."""
    name = next((record[key] for key in _NAME_FIELDS if key in record), None)
    if isinstance(name, int) and not isinstance(name, bool):
        return [f"video{name}", f"vid{name}"]
    return [name] if isinstance(name, str) else []


def _existing(videos: Path, names: Iterable[str]) -> Path | None:
    paths = (inside(videos, name + suffix) for name in names for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
