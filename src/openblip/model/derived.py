"""Models for questions and for two images, made out of a pre-trained MED."""

from collections.abc import Mapping

from torch import Tensor

from openblip.errors import MissingHead
from openblip.model.med import Med
from openblip.model.nlvr import Nlvr, NlvrConfig
from openblip.model.text import TextStack
from openblip.model.vqa import Vqa, VqaConfig

# The original merges the two images in the upper half of the text layers.
_MERGE_FROM = 0.5


def vqa_from(med: Med) -> Vqa:
    """A model for questions that begins as the MED (BLIP, figure 5b).

    The question encoder has the weights of the image-grounded encoder, the answer decoder those of
    the decoder, which attends to the states of a question. Where these are as wide as an
    image's, its keys and values are the decoder's, as in the original; else they are fresh.

    Raises:
        MissingHead: if the MED has no encoder or no decoder.
    """
    med.require("lm")
    _require_encoder(med)
    vqa = Vqa(VqaConfig(vision=med.config.vision, text=med.config.text))
    vqa.image_encoder.load_state_dict(med.image_encoder.state_dict())
    _take_over(vqa.question, med.text)
    _take_over(vqa.answer, med.text)
    return vqa


def nlvr_from(med: Med) -> Nlvr:
    """A two-image model with the weights of the MED's image-grounded encoder (BLIP, figure 5c).

    Both cross-attentions of a layer begin as copies of the one; the maps that merge them and the
    classifier are fresh.

    Raises:
        MissingHead: if the MED has no image-grounded encoder.
    """
    _require_encoder(med)
    text = med.config.text
    nlvr = Nlvr(
        NlvrConfig(
            vision=med.config.vision,
            text=text,
            merge_from_layer=int(text.depth * _MERGE_FROM),
        )
    )
    nlvr.image_encoder.load_state_dict(med.image_encoder.state_dict())
    weights = med.text.state_dict()
    for name in [name for name in weights if ".cross_attention." in name]:
        before, part = name.split(".cross_attention.")
        if not part.startswith("norm."):
            for twin in ("first", "second"):
                weights[f"{before}.cross_attention.{twin}.{part}"] = weights[name]
    _take_over(nlvr.text, med.text, weights)
    return nlvr


def _require_encoder(med: Med) -> None:
    if not {"itm", "multimodal"} & set(med.config.heads):
        raise MissingHead(
            "this checkpoint has no image-grounded encoder (it has: "
            f"{', '.join(med.config.heads)}); load a pre-trained, retrieval or filter checkpoint"
        )


def _take_over(
    stack: TextStack, source: TextStack, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Copies into a stack every weight of the same name and shape."""
    known = source.state_dict() if weights is None else weights
    own = stack.state_dict()
    stack.load_state_dict(
        own | {k: v for k, v in known.items() if k in own and own[k].shape == v.shape}
    )
