"""What a model was trained as, in the words of each layout."""

from openblip.interop.huggingface_layout import HuggingFaceKind
from openblip.interop.original_layout import Kind

# The original's code cuts the texts of each kind to so many tokens; sentences about two images
# it does not cut.
FROM_ORIGINAL: dict[Kind, tuple[str, int | None]] = {
    "pretrain": ("pretrain", 30),
    "caption": ("captioner", 40),
    "retrieval": ("filter", 35),
    "itm": ("filter", 35),
    "vqa": ("vqa", 35),
    "nlvr": ("nlvr", None),
    "albef_pretrain": ("albef", 30),
    "albef_retrieval": ("albef", 30),
}
"""Our kind and longest text, for the original's kinds that can be used here."""

TO_ORIGINAL: dict[str, Kind] = {
    "pretrain": "pretrain",
    "captioner": "caption",
    "filter": "retrieval",
    "vqa": "vqa",
    "nlvr": "nlvr",
}
"""As what the original writes a model of ours."""

FROM_HUGGINGFACE: dict[HuggingFaceKind, str] = {
    "caption": "captioner",
    "retrieval": "filter",
    "vqa": "vqa",
    "dual": "dual_encoder",
}
"""Our kind for the classes of `transformers`."""

TO_HUGGINGFACE: dict[str, HuggingFaceKind] = {
    ours: theirs for theirs, ours in FROM_HUGGINGFACE.items()
}
"""As which class `transformers` has a model of ours; a pre-trained one is none alone."""
