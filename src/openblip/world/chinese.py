"""The sentences of the embedded world in Chinese, written and read.

As in English (`grammar.py`) one set of templates serves both; but there are no spaces, no articles
and no plurals, a number takes the measure word, and a relation often stands behind both nouns.
"""

import re
from functools import lru_cache

from openblip.world.claims import Claim, Mention, make_claim, one_of, spoken_order
from openblip.world.scene import Dice

# (number of groups, relation) -> sentences, the plainest first.
_BODIES: dict[tuple[int, str | None], tuple[str, ...]] = {
    (1, None): ("{A}", "图中有{A}", "这里有{A}"),
    (2, None): ("{A}和{B}", "图中有{A}和{B}", "{A}与{B}"),
    (2, "left_of"): (
        "{A}在{B}左边",
        "{A}在{B}的左侧",
        "{B}在{A}右边",
        "{B}在{A}的右侧",
        "{A}位于{B}左边",
        "左边是{A}、右边是{B}",
        "右边是{B}、左边是{A}",
        "图中{A}在{B}左边",
    ),
    (2, "above"): (
        "{A}在{B}上面",
        "{B}在{A}下面",
        "{A}在{B}的上方",
        "{B}在{A}的下方",
        "{A}位于{B}上面",
        "上面是{A}、下面是{B}",
        "下面是{B}、上面是{A}",
        "图中{A}在{B}上面",
    ),
    (2, "beside"): ("{A}在{B}旁边", "{A}挨着{B}"),
    (3, None): ("{A}、{B}和{C}", "图中有{A}、{B}和{C}"),
    (3, "left_of"): ("从左到右是{A}、{B}和{C}", "{A}、{B}和{C}从左到右"),
    (3, "above"): ("从上到下是{A}、{B}和{C}", "{A}、{B}和{C}从上到下"),
    (3, "between"): ("{B}在{A}和{C}之间", "{A}和{C}中间是{B}"),
}
_SENTENCE_STARTS = ("图中", "这里")
_FRAMES = ("{body}，在{ground}上", "在{ground}上，{body}")
# Takes groups that lie anyhow: what lies left of what is not "there" on a background.
_NOUN_FRAME = "{ground}上有{body}"
_TITLE_FRAMES = ("{body}，{ground}", "{body} {ground}")

_KINDS = {
    "圆形": "circle", "方块": "square", "星星": "star", "三角形": "triangle", "十字": "cross",
    "爱心": "heart", "圆环": "ring", "菱形": "diamond", "圆盘": "circle",
}  # fmt: skip
_COLOURS = {
    "红色": "red", "蓝色": "blue", "黄色": "yellow", "绿色": "green", "黑色": "black",
    "橙色": "orange", "紫色": "purple", "粉色": "pink",
}  # fmt: skip
_SIZES = {"大": "large", "大号": "large", "小": "small", "小号": "small"}
_COUNTS = {"一个": 1, "两个": 2, "一对": 2, "三个": 3}
_PATTERNS = {
    "纯色": "plain", "条纹": "striped", "格子": "checkered", "渐变": "gradient", "斑点": "speckled",
}  # fmt: skip
_GROUNDS = {"灰色": "gray", "米色": "beige", "青色": "teal", "深蓝": "navy"}
_GROUND_NOUNS = ("背景", "底子")

_PREFIXES = ("特价", "免费", "新款", "高清")
_SUFFIXES = ("素材", "图片", "图标", "矢量图", "免费下载", "包邮")
_SEPARATORS = ("", " - ", " | ", "，")
_BOILERPLATE = (
    "IMG_{number}.jpg",
    "DSC0{number}.jpg",
    "图片{number}",
    "全网最低价包邮",
    "点击查看大图",
    "加入购物车",
    "版权所有",
    "买家还看了",
    "暂无描述",
    "订阅我们的邮件",
    "未命名",
)


def write_human(claim: Claim, dice: Dice) -> str:
    """A sentence with exactly the meaning of a claim, without a full stop."""
    return _write(claim, dice, is_title=False)


def write_web(claim: Claim, dice: Dice) -> str:
    """The same meaning as an alt text: mostly a title, often with shop words or brackets around."""
    is_title = dice.chance(0.7)
    text = _write(claim, dice, is_title)
    if is_title and dice.chance(0.25):
        text = f"{dice.choose(_PREFIXES)}{text}"
    if dice.chance(0.3):
        text = f"{text}{dice.choose(_SEPARATORS)}{dice.choose(_SUFFIXES)}"
    return f"【{text}】" if dice.chance(0.25) else text


def write_nothing(dice: Dice) -> str:
    """A text that says nothing of any image."""
    return dice.choose(_BOILERPLATE).format(number=dice.between(1000, 9999))


def parse(text: str) -> Claim | None:
    """The claim of a caption of this grammar; None where it is none. Punctuation does not count."""
    words = _decoration().sub("", _without_marks(text))
    body, pattern, ground = _split_background(words)
    for slots, relation, sentence in _sentences():
        found = sentence.fullmatch(body)
        if found is not None:
            mentions = tuple(_mention(found[slot]) for slot in slots)
            return make_claim(mentions, relation, pattern, ground)
    return None


def _write(claim: Claim, dice: Dice, is_title: bool) -> str:
    mentions = spoken_order(claim, dice)
    bodies = _BODIES[len(mentions), claim.relation]
    if is_title:
        bodies = tuple(body for body in bodies if not body.startswith(_SENTENCE_STARTS))
    body = bodies[0] if dice.chance(0.6 if is_title else 0.3) else dice.choose(bodies)
    phrases = [_noun_phrase(mention, dice, is_title) for mention in mentions]
    text = body.format_map(dict(zip("ABC", phrases, strict=False)))
    if claim.pattern is None and claim.ground is None:
        return text
    frames: tuple[str, ...] = _TITLE_FRAMES if is_title else _FRAMES
    if not is_title and claim.relation is None and not body.startswith(_SENTENCE_STARTS):
        frames += (_NOUN_FRAME,)
    # Two times in three the background comes last, as in English.
    frame = frames[0] if dice.chance(0.5) else dice.choose(frames)
    return frame.format(body=text, ground=_ground_phrase(claim, dice))


def _noun_phrase(mention: Mention, dice: Dice, is_title: bool) -> str:
    words = []
    if mention.count > 1 or not is_title:
        words.append(_pick(_words_for(_COUNTS, mention.count), 0.15, dice))
    if mention.size is not None:
        words.append(_pick(_words_for(_SIZES, mention.size), 0.3, dice))
    if mention.colour is not None:
        words.append(_words_for(_COLOURS, mention.colour)[0])
        words += ["的"] if dice.chance(0.15) else []
    words.append(_pick(_words_for(_KINDS, mention.kind), 0.15, dice))
    return "".join(words)


def _ground_phrase(claim: Claim, dice: Dice) -> str:
    words = [
        word
        for meanings, meant in ((_GROUNDS, claim.ground), (_PATTERNS, claim.pattern))
        if meant is not None
        for word in _words_for(meanings, meant)
    ]
    if len(words) == 2 and dice.chance(0.5):
        words.reverse()
    return "".join([*words, _pick(_GROUND_NOUNS, 0.15, dice)])


def _words_for(meanings: dict[str, str] | dict[str, int], meant: str | int) -> list[str]:
    return [word for word, meaning in meanings.items() if meaning == meant]


def _pick(words: list[str] | tuple[str, ...], probability_of_second: float, dice: Dice) -> str:
    """The first word, or its synonym if there is one."""
    return words[1] if len(words) > 1 and dice.chance(probability_of_second) else words[0]


def _without_marks(text: str) -> str:
    return "".join(re.findall(r"\w+", text)).lower()


@lru_cache(maxsize=1)
def _decoration() -> re.Pattern[str]:
    return re.compile(f"^{one_of(_PREFIXES)}|{one_of(_SUFFIXES)}$")


@lru_cache(maxsize=1)
def _phrase() -> re.Pattern[str]:
    return re.compile(
        f"(?P<count>{one_of(_COUNTS)})?(?P<size>{one_of(_SIZES)})?"
        f"(?:(?P<colour>{one_of(_COLOURS)})的?)?(?P<kind>{one_of(_KINDS)})"
    )


@lru_cache(maxsize=1)
def _sentences() -> tuple[tuple[str, str | None, re.Pattern[str]], ...]:
    """(slots, relation, pattern) of every body; a slot captures one noun phrase."""
    phrase = re.sub(r"\?P<\w+>", "?:", _phrase().pattern)
    compiled = []
    for (num_groups, relation), bodies in _BODIES.items():
        slots = "ABC"[:num_groups]
        for body in bodies:
            pattern = body.replace("、", "")
            for slot in slots:
                pattern = pattern.replace(f"{{{slot}}}", f"(?P<{slot}>{phrase})")
            compiled.append((slots, relation, re.compile(pattern)))
    return tuple(compiled)


@lru_cache(maxsize=1)
def _backgrounds() -> tuple[re.Pattern[str], ...]:
    ground, pattern = one_of(_GROUNDS), one_of(_PATTERNS)
    words = f"(?P<words>{ground}{pattern}|{pattern}{ground}|{ground}|{pattern})"
    place = f"{words}{one_of(_GROUND_NOUNS)}"
    shapes = (
        f"(?P<body>.+?)(?:在{place}上)",
        f"在?{place}上有?(?P<body>.+)",
        f"(?P<body>.+?){place}",
    )
    return tuple(re.compile(shape) for shape in shapes)


def _split_background(words: str) -> tuple[str, str | None, str | None]:
    for shape in _backgrounds():
        found = shape.fullmatch(words)
        if found is not None:
            pattern = next((_PATTERNS[word] for word in _PATTERNS if word in found["words"]), None)
            ground = next((_GROUNDS[word] for word in _GROUNDS if word in found["words"]), None)
            return found["body"], pattern, ground
    return words, None, None


def _mention(phrase: str) -> Mention:
    found = _phrase().fullmatch(phrase)
    assert found is not None, phrase
    size, colour, count = (found[name] for name in ("size", "colour", "count"))
    return Mention(
        kind=_KINDS[found["kind"]],
        colour=None if colour is None else _COLOURS[colour],
        size=None if size is None else _SIZES[size],
        count=1 if count is None else _COUNTS[count],
    )
