"""The Chinese captions of the embedded world.

There are no spaces, no articles and no plurals, a number takes the measure word, and a relation
often stands behind both nouns.
"""

import re

from openblip.world.claims import Claim, Grammar, Mention, one_of, pick
from openblip.world.scene import Dice

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


def _noun_phrase(mention: Mention, dice: Dice, is_title: bool) -> str:
    words = []
    if mention.count > 1 or not is_title:
        words.append(pick(_words_for(_COUNTS, mention.count), 0.15, dice))
    if mention.size is not None:
        words.append(pick(_words_for(_SIZES, mention.size), 0.3, dice))
    if mention.colour is not None:
        words.append(_words_for(_COLOURS, mention.colour)[0])
        words += ["的"] if dice.chance(0.15) else []
    words.append(pick(_words_for(_KINDS, mention.kind), 0.15, dice))
    return "".join(words)


def _ground(claim: Claim, dice: Dice, is_title: bool) -> dict[str, str]:
    words = [
        word
        for meanings, meant in ((_GROUNDS, claim.ground), (_PATTERNS, claim.pattern))
        if meant is not None
        for word in _words_for(meanings, meant)
    ]
    if len(words) == 2 and dice.chance(0.5):
        words.reverse()
    return {"ground": "".join([*words, pick(_GROUND_NOUNS, 0.15, dice)])}


def _words_for(meanings: dict[str, str] | dict[str, int], meant: str | int) -> list[str]:
    return [word for word, meaning in meanings.items() if meaning == meant]


def _read(found: re.Match[str]) -> Mention:
    size, colour, count = (found[name] for name in ("size", "colour", "count"))
    return Mention(
        kind=_KINDS[found["kind"]],
        colour=None if colour is None else _COLOURS[colour],
        size=None if size is None else _SIZES[size],
        count=1 if count is None else _COUNTS[count],
    )


_GROUND_WORD, _PATTERN_WORD = one_of(_GROUNDS), one_of(_PATTERNS)
_PLACE = (
    f"(?P<ground>{_GROUND_WORD}{_PATTERN_WORD}|{_PATTERN_WORD}{_GROUND_WORD}|{_GROUND_WORD}"
    f"|{_PATTERN_WORD}){one_of(_GROUND_NOUNS)}"
)

CHINESE = Grammar(
    bodies=_BODIES,
    is_sentence=lambda body: body.startswith(_SENTENCE_STARTS),
    frames=("{body}，在{ground}上", "在{ground}上，{body}"),
    # What lies left of what is not "there" on a background.
    noun_frame="{ground}上有{body}",
    noun_frame_takes_relations=False,
    title_frames=("{body}，{ground}", "{body} {ground}"),
    space="",
    word=r"\w+",
    noun_phrase=_noun_phrase,
    ground=_ground,
    prefixes=("特价", "免费", "新款", "高清"),
    suffixes=("素材", "图片", "图标", "矢量图", "免费下载", "包邮"),
    separators=("", " - ", " | ", "，"),
    dressed="【{}】".format,
    boilerplate=_BOILERPLATE,
    phrase=(
        f"(?P<count>{one_of(_COUNTS)})?(?P<size>{one_of(_SIZES)})?"
        f"(?:(?P<colour>{one_of(_COLOURS)})的?)?(?P<kind>{one_of(_KINDS)})"
    ),
    read=_read,
    backgrounds=(
        f"(?P<body>.+?)(?:在{_PLACE}上)",
        f"在?{_PLACE}上有?(?P<body>.+)",
        f"(?P<body>.+?){_PLACE}",
    ),
    patterns=_PATTERNS,
    grounds=_GROUNDS,
)
