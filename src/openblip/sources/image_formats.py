"""What a file is by its name and its first bytes: an image that is read, or something to name."""

import re
import unicodedata
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from openblip.runtime.errors import install_extra

# Only formats that Pillow decodes itself: EPS, for one, would start Ghostscript on a stranger's
# file. Only those that their first bytes tell: a TGA, for one, could be anything. AVIF is last
# because a Pillow without it stops there.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO"),
    *("DDS", "ICNS", "PCX", "QOI", "SGI", "SUN"),
    *("HEIF", "AVIF"),
)
HEIF = "HEIF"
# What else Pillow knows by its suffix, and is no picture.
_NO_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG")

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "mpo", "jpg_large", "jpeg_large"),
        *("png", "apng", "webp", "gif", "bmp", "tif", "tiff", "ico"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
        *("avif", "avifs", "heic", "heif", "heics", "heifs", "hif"),
    )
)
"""Names of files that are taken for images without a look into them."""
_RAW_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3fr", "arw", "cr2", "cr3", "dcr", "dng", "erf", "iiq", "kdc", "mef", "mos", "mrw"),
        *("nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "sr2", "srf", "srw", "x3f"),
    )
)
# What begins so, is no photograph that could be read; each is what errors call it.
_OTHERS = (
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a file packed by gzip"),
    (b"BZh", "a file packed by bzip2"),
    (b"\xfd7zXZ", "a file packed by xz"),
    (b"\x28\xb5\x2f\xfd", "a file packed by zstd"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image, which is not read (save it as JPEG or PNG)"),
    (b"SIMPLE", "a FITS file"),
    (b"\x93NUMPY", "an array of numpy"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet table"),
    (b"version https://git-lfs", "a pointer of Git LFS (`git lfs pull` fetches the file)"),
)
_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
# Of the family of containers that videos come in too.
_OTHER_BRANDS = {
    b"crx ": "a raw file of a camera (save it as JPEG or PNG)",
    **dict.fromkeys(_AVIF_BRANDS, "an AVIF image"),
    **dict.fromkeys(_HEIF_BRANDS, "a HEIC photograph"),
}
_PPM = re.compile(rb"P\w\s+[\d#-]")
HEAD_BYTES = 512
"""As much of a file as tells its format."""


def formats() -> list[str]:
    """Pillow's names of the formats that are read.

    Those that other packages have registered with Pillow count. HEIF does where pillow-heif is.
    """
    others = [
        name
        for name, (factory, _) in Image.OPEN.items()
        if name not in _FORMATS and not _is_pillows(factory)
    ]
    ours = [name for name in _FORMATS if name != HEIF or HEIF in Image.OPEN]
    return [*others, *ours]


def format_of(head: bytes) -> str | None:
    """The format of an image that begins so, as Pillow calls it; None if it is none that is read.

    HEIF is recognised whether or not it can be read here.

    Args:
        head: `HEAD_BYTES` of it, or all.
    """
    if is_heif(head):
        return HEIF
    _init()
    return next((name for name in formats() if name in Image.OPEN and _accepts(name, head)), None)


def is_heif(head: bytes) -> bool:
    """Whether it begins as HEIC photographs do, and not as AVIF, which is of the same family."""
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        return False
    # Of a brand for both, the compatible ones tell.
    end = min(int.from_bytes(head[:4], "big"), len(head))
    compatible = {head[place : place + 4] for place in range(16, end, 4)}
    return head[8:12] not in (b"mif1", b"msf1") or not compatible & _AVIF_BRANDS


@cache
def register_heif() -> str | None:
    """Lets Pillow read HEIC; returns the remedy where the extra is not installed."""
    if HEIF in Image.OPEN:
        return None
    try:
        import pillow_heif
    except ImportError:
        return f"a HEIC photograph: {install_extra('heif')}"
    pillow_heif.register_heif_opener()
    return None


def is_image_file(path: Path) -> bool:
    """Whether a file is an image, by its suffix, or where this says nothing by its first bytes.

    Raises:
        OSError: it would have to be read, and cannot be.
    """
    if (known := known_by_name(path.name)) is not None:
        return known
    with path.open("rb") as stream:
        return format_of(stream.read(HEAD_BYTES)) is not None


def loose_name(name: str) -> str:
    """What names have in common that differ in their suffix, in capitals or in how é is made."""
    stem = PurePosixPath(name).stem if known_by_name(name) else name
    return unicodedata.normalize("NFC", stem).casefold()


def known_by_name(name: str) -> bool | None:
    """Whether a file of that name is an image; None where only its content can tell."""
    suffix = Path(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES or _suffix_format(suffix, len(Image.EXTENSION)) is not None:
        return True
    # Their thumbnails would be taken for the photographs.
    return False if suffix in _RAW_SUFFIXES else None


def what_it_is(head: bytes, name: str = "") -> str | None:
    """What something that is no image is, for errors; None if that is unknown."""
    if Path(name).suffix.lower() in _RAW_SUFFIXES:
        return "a raw file of a camera (save it as JPEG or PNG)"
    if found := next((what for magic, what in _OTHERS if head.startswith(magic)), None):
        return found
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG drawing or other XML"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"ftyp" and head[8:12] in _OTHER_BRANDS:
        return _OTHER_BRANDS[head[8:12]]
    if head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "a video"
    _init()
    form = Image.EXTENSION.get(Path(name).suffix.lower())
    if form in Image.OPEN and form not in (*formats(), *_NO_PICTURES):
        return f"an image of the format {form}, which is not read (save it as JPEG or PNG)"
    return None


@cache
def _init() -> None:
    Image.init()


@lru_cache(maxsize=4096)
def _suffix_format(suffix: str, num_registered: int) -> str | None:
    """The format that another package has registered for a suffix."""
    name = Image.EXTENSION.get(suffix)
    is_foreign = name in Image.OPEN and not _is_pillows(Image.OPEN[name][0])
    return name if is_foreign else None


def _accepts(name: str, head: bytes) -> bool:
    accept = Image.OPEN[name][1]
    try:
        # A text instead of a yes says what is missing here: it is of that format all the same.
        if accept is None or accept(head[:16].ljust(16, b"\0")) in (False, None, ""):
            return False
    except Exception:  # of somebody else's plugin
        return False
    # Two letters, with which texts begin too.
    if name == "BMP":
        return head[6:10] == bytes(4)
    return name != "PPM" or _PPM.match(head) is not None


def _is_pillows(factory: object) -> bool:
    return str(getattr(factory, "__module__", "")).startswith("PIL.")
