"""Tiny models of `transformers` with random weights, each as its library saves it."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

_WORDS = "a photo of the red dog cat on under two describe image in one sentence . assistant"
WORDS = (*_WORDS.split(" "), "<image>")
VOCABULARY = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} assistant"
)
_TEXT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def tokenizer() -> Any:
    """Words are tokens."""
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def images() -> Any:
    """What makes images of 32 pixels of any; with Pillow, for torchvision need not be there."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = {"height": 32, "width": 32}
    return CLIPImageProcessorPil(size=side, do_center_crop=False)


def save_llava(folder: Path) -> Path:
    """A model that is talked to: an image and an instruction become one talk."""
    import transformers as library

    torch.manual_seed(0)
    config = library.LlavaConfig(
        vision_config=library.CLIPVisionConfig(**_VISION),
        text_config=library.LlamaConfig(**_TEXT, num_key_value_heads=2),
        image_token_id=VOCABULARY["<image>"],
        vision_feature_layer=-1,
    )
    model = library.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    processor = library.LlavaProcessor(
        images(),
        tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return _saved(folder, model, processor)


def save_git(folder: Path) -> Path:
    """A captioner that takes an image alone."""
    import transformers as library

    torch.manual_seed(0)
    config = library.GitConfig(vision_config=_VISION, **_TEXT, max_position_embeddings=64)
    model = library.GitForCausalLM(config)
    return _saved(folder, model, library.GitProcessor(images(), tokenizer()))


def save_pair(folder: Path) -> Path:
    """An encoder-decoder of a vision and a text model, which has no processor of its own."""
    import transformers as library

    torch.manual_seed(0)
    text = {name: value for name, value in _TEXT.items() if name != "intermediate_size"}
    config = library.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        library.ViTConfig(**_VISION),
        library.BertConfig(**text, is_decoder=True, add_cross_attention=True),
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = library.VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    _saved(folder, model, tokenizer())
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def _saved(folder: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


KINDS = {"git": save_git, "llava": save_llava, "pair": save_pair}
