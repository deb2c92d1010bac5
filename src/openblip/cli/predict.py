"""`openblip caption` and `openblip match`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openblip.cli.decoding_flags import DecodingFlags
from openblip.cli.flags import Count, Seed
from openblip.cli.output import (
    check_texts,
    complain,
    end_of_each,
    print_each,
    print_json,
    print_table,
)

_DECODING = DecodingFlags()
DtypeName = Literal["float32", "bfloat16", "float16", "int8"]

if TYPE_CHECKING:
    from openblip.inference import Blip, Match
    from openblip.inference.caption_job import CaptionSettings, CaptionTarget
    from openblip.inference.image_sources import ImageSources
    from openblip.inference.texts import FirstTokenName


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
    decoding: Annotated[DecodingFlags, tyro.conf.arg(name="")] = _DECODING,
    prompt: str = "a picture of ",
    num_captions: Count = 1,
    seed: Seed = 0,
    batch_size: Count = 16,
    image_size: Count | None = None,
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
        decoding: how tokens are chosen.
        prompt: what the model continues.
        num_captions: captions an image.
        seed: nucleus: same seed and name of an image within its folder, same captions.
        batch_size: images at once.
        image_size: pixels of a side that images are brought to, where not the model's own.
        dtype: of the weights; int8 on the CPU alone.
        device: cpu, cuda, mps; by default the best that there is.
    """
    from openblip.inference.caption_job import CaptionSettings, CaptionTarget
    from openblip.inference.published import PUBLISHED

    settings = CaptionSettings(
        model=model or PUBLISHED["caption"],
        decoding=decoding.decoding(),
        prompt=prompt,
        num_captions=num_captions,
        seed=seed,
        image_size=image_size,
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
            report=lambda failure: complain("openblip caption", failure),
            # Below the buffer, which on a full disk or a closed pipe would complain again at the
            # end; and below `sys.stdout`, which a progress bar redirects to its terminal.
            stdout=getattr(sys.stdout.buffer, "raw", sys.stdout.buffer),
        )
    except BrokenPipeError:
        return 1  # whoever reads, such as `head`, has read enough
    empty = f" ({result.empty:,} of them empty)" if result.empty else ""
    print(
        f"{result.captioned:,} captioned{empty}, {result.failed:,} failed, "
        f"{result.skipped:,} skipped, "
        f"{result.rate:,.1f} images/s",
        file=sys.stderr,
    )
    if sources.left_out:
        print(f"left out: {left_out_text(sources.left_out)}", file=sys.stderr)
    if result.interrupted:
        print(f"interrupted; {_what_next(target)}", file=sys.stderr)
        return 130
    return 1 if result.failed or result.empty else 0


def _what_next(target: "CaptionTarget") -> str:
    if target.overwrite and target.sidecar:
        return "the same command begins again"
    if target.file is None and not target.sidecar:
        return "with -o FILE or --sidecar the same command would go on"
    return f"the same command{' without --overwrite' if target.overwrite else ''} goes on"


def match(
    image: tyro.conf.Positional[str],
    texts: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    split: str | None = None,
    model: str | None = None,
    first_token: Literal["[ENC]", "[CLS]"] = "[ENC]",
    dtype: DtypeName = "float32",
    device: str | None = None,
    json: bool = False,
) -> int:
    """How well texts match an image, or each of many: ITM probability and ITC cosine.

    Of many images there is a line each: the name, and the ITM probability of each text. One that
    cannot be read is reported on standard error, and the exit code is 1.
    Example: openblip match photo.jpg "a dog on a beach" "a red car" --model demo/filter

    Args:
        image: an image file; or a folder, a quoted pattern, a tar archive or a pair table.
        texts: one or more texts.
        split: of a pair table only this one.
        model: a checkpoint that can match: folder, run directory, file, https address or hub
            repository; by default the published base model.
        first_token: of a text: [ENC] as in training, or [CLS] as transformers does.
        dtype: of the weights; int8 on the CPU alone.
        device: cpu, cuda, mps; by default the best that there is.
        json: print JSON; of many images a line each.
    """
    from openblip.inference import load
    from openblip.inference.image_sources import ImageSources, is_single
    from openblip.inference.published import PUBLISHED

    check_texts(texts, "text")
    source = model or PUBLISHED["match"]
    if split is not None or not is_single(image):
        sources = ImageSources([image], split)
        return _match_each(load(source, device, dtype), sources, texts, first_token, json)
    blip = load(source, device, dtype)
    matches = blip.match(Path(image), list(texts), first_token)
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


def _match_each(
    blip: "Blip",
    sources: "ImageSources",
    texts: tuple[str, ...],
    first_token: "FirstTokenName",
    json: bool,
) -> int:
    from openblip.inference.each_image import match_each

    def tell(name: str, matches: "list[Match]") -> None:
        if json:
            found = [
                {"text": t, "itm": m.itm, "itc": m.itc} for t, m in zip(texts, matches, strict=True)
            ]
            print_json({"image": name, "matches": found})
        else:
            print_each(name, [f"{match.itm:.4f}" for match in matches])

    if not json:
        note = "the ITM probability of each text; --json has the ITC cosine too"
        print(f"openblip match: {note}", file=sys.stderr)
        print_each("image", texts)
    counts = match_each(
        blip,
        sources,
        texts,
        tell,
        lambda failure: print(f"openblip match: {failure}", file=sys.stderr),
        first_token=first_token,
        show_progress=not sys.stdout.isatty(),
    )
    return end_of_each("openblip match", counts.done, counts.failed, counts.interrupted)
