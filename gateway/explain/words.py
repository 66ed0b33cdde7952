"""The words of an explanation: why something is allowed, and the labels of the table, in the three languages.

Why something is refused is told in the words of `refusals`.
"""

from __future__ import annotations

from gateway.policy.model import SessionState, ShopType, Standing, Surface
from gateway.refusals import Language

_LANGUAGES: tuple[Language, ...] = ("zh-CN", "zh-Hant", "en")

ALLOWED: dict[str, tuple[str, tuple[str, str, str]]] = {
    "own": (
        "N3",
        (
            "商品属于账号绑定的店铺，本店商品不限数量",
            "商品屬於帳號綁定的店鋪，本店商品不限數量",
            "The product belongs to the account's own shop; own products are never limited",
        ),
    ),
    "creator": (
        "N14",
        ("达人账号不受限制", "達人帳號不受限制", "Creators without a shop are not restricted"),
    ),
    "unbound": (
        "N10",
        (
            "店铺已关闭或解绑，账号按达人对待，不受限制",
            "店鋪已關閉或解綁，帳號按達人對待，不受限制",
            "The shop is closed or unbound, so the account is a creator and not restricted",
        ),
    ),
    "pure_creator": (
        "N11",
        (
            "账号已选择“纯达人带货”，不受限制",
            "帳號已選擇「純達人帶貨」，不受限制",
            "The account has chosen to sell as a pure creator and is not restricted",
        ),
    ),
    "cross_border": (
        "N2",
        (
            "跨境专业店不受限制",
            "跨境專業店不受限制",
            "Cross-border merchants of the professional shop types are excepted",
        ),
    ),
    "not_reached": (
        "N12",
        (
            "限制还没开放到该账号，7月底前会覆盖所有官方账号",
            "限制還沒開放到該帳號，7月底前會覆蓋所有官方帳號",
            "The restriction has not reached this account yet; it reaches every official account by the end of July",
        ),
    ),
    "not_reached_live": (
        "N12",
        (
            "限制还没开放到该账号，7月底前会覆盖所有官方账号；现在添加的联盟商品也有记录，开放后计入本场",
            "限制還沒開放到該帳號，7月底前會覆蓋所有官方帳號；現在添加的聯盟商品也有記錄，開放後計入本場",
            "The restriction has not reached this account yet; it reaches every official account by the end "
            "of July. What is added now is recorded, and counts in this session once it has",
        ),
    ),
    "no_cap": (
        "",
        (
            "按现行规则，该账号在这里不受限制",
            "按現行規則，該帳號在這裡不受限制",
            "By the rules now in force this account is not limited here",
        ),
    ),
    "has_slot": (
        "N5",
        (
            "商品在本场已有名额，重新添加不再占用",
            "商品在本場已有名額，重新添加不再佔用",
            "The product has a place in this session already and needs no other",
        ),
    ),
    "no_session": (
        "N3",
        (
            "每场直播最多添加{cap}件联盟商品；没有指定场次，按还没用过名额的一场判断",
            "每場直播最多添加{cap}件聯盟商品；沒有指定場次，按還沒用過名額的一場判斷",
            "Other shops' products per live session: {cap} at most. No session was named, so this is the "
            "answer for one whose places are all free",
        ),
    ),
    "free": (
        "N3",
        (
            "本场还有名额：这是第{next}件联盟商品，最多{cap}件",
            "本場還有名額：這是第{next}件聯盟商品，最多{cap}件",
            "A place is free: this is number {next} of at most {cap} of other shops' products in this session",
        ),
    ),
}
"""Why an attach is allowed: the notice's id (empty: the rule that was applied) and the sentence."""

LABELS: dict[str, tuple[str, str, str]] = {
    "allowed": ("允许", "允許", "Allowed"),
    "refused": ("拒绝", "拒絕", "Refused"),
    "account": ("账号", "帳號", "Account"),
    "product": ("商品", "商品", "Product"),
    "surface": ("场景", "場景", "Surface"),
    "session": ("场次", "場次", "Session"),
    "at": ("时间", "時間", "Time"),
    "beijing": ("北京时间", "北京時間", "Beijing time"),
    "rule": ("规则", "規則", "Rule"),
    "version": ("策略版本", "策略版本", "policy version"),
    "why": ("原因", "原因", "Why"),
    "message": ("客户端提示", "用戶端提示", "Client reads"),
    "places": ("名额", "名額", "Places"),
    "counted": (
        "共{cap}个，已用{used}个，剩余{remaining}个",
        "共{cap}個，已用{used}個，剩餘{remaining}個",
        "{used} of {cap} used, {remaining} left",
    ),
    "cap_only": ("每场最多{cap}个", "每場最多{cap}個", "at most {cap} in a session"),
    "since": ("添加时间", "添加時間", "Added"),
    "cart": ("购物车", "購物車", "Cart"),
    "attached": ("在", "在", "in it"),
    "gone": ("不在，仍占名额", "不在，仍佔名額", "not in it, still counts"),
    "help": ("怎么办", "怎麼辦", "What to do"),
    "own": ("本店商品", "本店商品", "own product"),
    "foreign": ("非本店商品", "非本店商品", "another shop's product"),
    "shop": ("店铺", "店鋪", "shop"),
    "cross_border": ("跨境", "跨境", "cross-border"),
    Standing.official: ("官方账号", "官方帳號", "official"),
    Standing.pure_creator: ("官方账号，纯达人带货", "官方帳號，純達人帶貨", "official, pure creator"),
    Standing.unbound: ("店铺已关闭或解绑", "店鋪已關閉或解綁", "shop closed or unbound"),
    Standing.creator: ("达人", "達人", "creator"),
    ShopType.mall: ("卖场", "賣場", "mall"),
    ShopType.official_flagship: ("官方旗舰店", "官方旗艦店", "official flagship shop"),
    ShopType.flagship: ("旗舰店", "旗艦店", "flagship shop"),
    ShopType.exclusive: ("专卖店", "專賣店", "exclusive shop"),
    ShopType.franchise: ("专营店", "專營店", "franchise shop"),
    ShopType.individual: ("个体店", "個體店", "individual shop"),
    ShopType.enterprise: ("企业店", "企業店", "enterprise shop"),
    Surface.live_room: ("直播间", "直播間", "live room"),
    Surface.showcase: ("橱窗", "櫥窗", "showcase"),
    Surface.short_video: ("短视频", "短影片", "short video"),
    SessionState.preparing: ("未开播", "未開播", "preparing"),
    SessionState.live: ("已开播", "已開播", "live"),
    SessionState.ended: ("已结束", "已結束", "ended"),
}


def label(name: str, language: Language, **values: object) -> str:
    """A label of the table, filled in."""
    return LABELS[name][_LANGUAGES.index(language)].format(**values)


def allowed(key: str, language: Language, **values: object) -> tuple[str, str]:
    """The notice's id and the sentence for what is allowed."""
    notice, sentences = ALLOWED[key]
    return notice, sentences[_LANGUAGES.index(language)].format(**values)
