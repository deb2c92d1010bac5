"""Small tokenizers in the files of published models of other languages."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

TEXTS = {
    "chinese": ["一只狗在公园里跑\uff0c很快。", "两只猫睡在沙发上"],
    "japanese": ["犬が公園を走っている。", "カタカナと漢字"],
    "arabic": ["كلب يجري في الحديقة", "قطة نائمة؟"],
    "hindi": ["एक कुत्ता पार्क में दौड़ रहा है।"],
    "thai": ["สุนัขกำลังวิ่งอยู่ในสวน"],
    "german": ["Ein Hund läuft über die Straße.", "Der Hund (groß)"],
}
ALL = [text for own in TEXTS.values() for text in own]


def bert_folder(folder: Path, words: Iterable[str], **settings: object) -> Path:
    """`vocab.txt` and `tokenizer_config.json` as bert-base-multilingual-cased has them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{token}\n" for token in (*SPECIAL, *words))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def letters_of(texts: Iterable[str]) -> list[str]:
    """Every character, at the beginning of a word and within one: any word can be spelt."""
    every = sorted({letter for text in texts for letter in text if not letter.isspace()})
    return [*every, *(f"##{letter}" for letter in every)]


def unigram_folder(folder: Path, texts: Iterable[str]) -> Path:
    """`tokenizer.json` of a Unigram, as XLM-RoBERTa has it."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(list(texts), trainer)
    backend.add_special_tokens(["<mask>"])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def byte_level_folder(folder: Path, texts: Iterable[str]) -> Path:
    """`tokenizer.json` of a byte-level BPE, as RoBERTa has it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(list(texts), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder
