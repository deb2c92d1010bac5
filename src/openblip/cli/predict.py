"""`openblip caption` and `openblip match`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openblip.cli.output import print_json, print_table
from openblip.errors import DataError

DtypeName = Literal["float32", "bfloat16", "float16", "int8"]

if TYPE_CHECKING:
    from openblip.inference.caption_job import CaptionSettings, CaptionTarget


def caption(
    paths: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    model: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    format: Literal["jsonl", "csv", "coco", "txt"] | None = None,
    sidecar: bool = False,
    overwrite: bool = False,
    split: str | None = None,
    method: Literal["beam", "nucleus", "greedy"] = "beam",
    num_beams: int = 3,
    top_p: float = 0.9,
    max_length: int = 20,
    min_length: int = 5,
    prompt: str = "a picture of ",
    num_captions: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    dtype: DtypeName = "float32",
    device: str | None = None,
) -> int:
    """Caption any number of images; one line of JSON an image on standard output, or in a file.

    With -o or --sidecar the same command goes on after it was stopped. A broken image is reported
    on standard error, the others are captioned, and the exit code is 1; the next run tries it
    again. Example: openblip caption photos/ --model demo/captioner -o captions.jsonl

    Args:
        paths: image files, folders (with the folders in them), quoted patterns such as
            'photos/*.jpg', tar archives, pair tables (a folder, or s3://...).
        model: a checkpoint that can caption: folder, run directory, file, https address or hub
            repository; by default the published base model.
        output: a file for all captions: .jsonl, .csv, .txt, or .json for COCO results. What is
            in it is not done again, if the settings are those of FILE.settings.json beside it.
        format: of the file or of standard output, where the suffix does not say it. COCO's
            image_id is the number at the end of a name, or else the name.
        sidecar: write a .txt beside each image; images that have one are left out.
        overwrite: begin again, and replace the file (or the .txt files) that is there.
        split: of pair tables only this one.
        method: how to decode.
        num_beams: beam: width.
        top_p: nucleus: smallest set of words with this probability.
        max_length: tokens, prompt included.
        min_length: tokens, prompt included.
        prompt: what the model continues.
        num_captions: captions an image.
        seed: nucleus: same seed and name of an image within its folder, same captions.
        batch_size: images at once.
        dtype: of the weights; int8 on the CPU alone.
        device: cpu, cuda, mps; by default the best that there is.
    """
    from openblip.inference import Decoding
    from openblip.inference.caption_job import CaptionSettings, CaptionTarget
    from openblip.inference.published import PUBLISHED

    settings = CaptionSettings(
        model=model or PUBLISHED["caption"],
        decoding=Decoding(
            method=method,
            num_beams=num_beams,
            top_p=top_p,
            max_length=max_length,
            min_length=min_length,
        ),
        prompt=prompt,
        num_captions=num_captions,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    target = CaptionTarget(file=output, form=format, sidecar=sidecar, overwrite=overwrite)
    return _caption(paths, split, settings, target, batch_size)


def _caption(
    paths: tuple[str, ...],
    split: str | None,
    settings: "CaptionSettings",
    target: "CaptionTarget",
    batch_size: int,
) -> int:
    from openblip.inference.caption_job import caption_images
    from openblip.inference.image_sources import ImageSources, left_out_text

    sources = ImageSources(paths, split)
    try:
        result = caption_images(
            sources,
            settings,
            target,
            batch_size=batch_size,
            report=lambda failure: print(f"openblip caption: {failure}", file=sys.stderr),
            # Below the buffer, which on a full disk or a closed pipe would complain again at the
            # end; and below `sys.stdout`, which a progress bar redirects to its terminal.
            stdout=getattr(sys.stdout.buffer, "raw", sys.stdout.buffer),
        )
    except BrokenPipeError:
        return 1  # whoever reads, such as `head`, has read enough
    print(
        f"{result.captioned:,} captioned, {result.failed:,} failed, {result.skipped:,} skipped, "
        f"{result.rate:,.1f} images/s",
        file=sys.stderr,
    )
    if sources.left_out:
        print(f"left out: {left_out_text(sources.left_out)}", file=sys.stderr)
    if result.interrupted:
        print(f"interrupted; {_what_next(target)}", file=sys.stderr)
        return 130
    return 1 if result.failed else 0


def _what_next(target: "CaptionTarget") -> str:
    if target.overwrite and target.sidecar:
        return "the same command begins again"
    if target.file is None and not target.sidecar:
        return "with -o FILE or --sidecar the same command would go on"
    return f"the same command{' without --overwrite' if target.overwrite else ''} goes on"


def match(
    image: tyro.conf.Positional[Path],
    texts: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    model: str | None = None,
    first_token: Literal["[ENC]", "[CLS]"] = "[ENC]",
    dtype: DtypeName = "float32",
    device: str | None = None,
    json: bool = False,
) -> int:
    """How well texts match an image: ITM probability and ITC cosine.

    Example: openblip match photo.jpg "a dog on a beach" "a red car" --model demo/filter

    Args:
        image: an image file.
        texts: one or more texts.
        model: a checkpoint that can match: folder, run directory, file, https address or hub
            repository; by default the published base model.
        first_token: of a text: [ENC] as in training, or [CLS] as transformers does.
        dtype: of the weights; int8 on the CPU alone.
        device: cpu, cuda, mps; by default the best that there is.
        json: print JSON.
    """
    from openblip.inference import load
    from openblip.inference.published import PUBLISHED

    if not texts:
        raise DataError("no text was given; put one or more behind the image")
    blip = load(model or PUBLISHED["match"], device, dtype)
    matches = blip.match(image, list(texts), first_token)
    if json:
        print_json(
            [{"text": t, "itm": m.itm, "itc": m.itc} for t, m in zip(texts, matches, strict=True)]
        )
        return 0
    rows = [
        [text, f"{match.itm:.4f}", "-" if match.itc is None else f"{match.itc:.3f}"]
        for text, match in zip(texts, matches, strict=True)
    ]
    print_table(["text", "ITM probability", "ITC cosine"], rows)
    return 0
