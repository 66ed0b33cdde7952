"""Every sentence that a client may read, in the three languages, and nothing else.

What the notice quotes (N1, N3, N4, N5) is not here: those texts come with the verdict, from the policy file.
Sentences with names in braces are filled by `advice`. A test holds this page against `gateway.errors`: each
reason has its title and its sentence.
"""

from __future__ import annotations

from gateway.refusals.language import Language

Words = dict[Language, str]


def words(zh_cn: str, zh_hant: str, en: str) -> Words:
    return {"zh-CN": zh_cn, "zh-Hant": zh_hant, "en": en}


TITLES: dict[str, Words] = {
    "foreign_cap_reached": words("联盟商品数已达上限", "聯盟商品數已達上限", "Limit of other shops' products reached"),
    "foreign_not_allowed": words("不支持添加联盟商品", "不支持添加聯盟商品", "Other shops' products not allowed"),
    "replace_after_start": words("开播后不能替换商品", "開播後不能替換商品", "No replacing once live"),
    "address_malformed": words("请求地址有误", "請求地址有誤", "Malformed address"),
    "headers_malformed": words("请求头有误", "請求標頭有誤", "Malformed headers"),
    "body_malformed": words("请求内容有误", "請求內容有誤", "Malformed body"),
    "identity_missing": words("未登录", "未登入", "Not signed in"),
    "identity_invalid": words("身份验证失败", "身分驗證失敗", "Identity not accepted"),
    "identity_unavailable": words("身份验证暂不可用", "身分驗證暫不可用", "Identity check unavailable"),
    "not_session_owner": words("不是本账号的直播", "不是本帳號的直播", "Another account's session"),
    "not_account_owner": words("不是本账号", "不是本帳號", "Another account"),
    "route_unknown": words("接口不存在", "介面不存在", "No such route"),
    "session_unknown": words("找不到直播场次", "找不到直播場次", "Session unknown"),
    "product_unknown": words("找不到商品", "找不到商品", "Product unknown"),
    "account_unknown": words("找不到账号", "找不到帳號", "Account unknown"),
    "method_not_allowed": words("请求方法不支持", "不支援的請求方法", "Method not allowed"),
    "session_ended": words("直播已结束", "直播已結束", "Session ended"),
    "length_required": words("缺少内容长度", "缺少內容長度", "Length required"),
    "body_too_large": words("请求内容过大", "請求內容過大", "Body too large"),
    "media_type_unsupported": words("内容类型不支持", "不支援的內容類型", "Media type not supported"),
    "too_many_requests": words("操作太频繁", "操作太頻繁", "Too many requests"),
    "headers_too_large": words("请求头过大", "請求標頭過大", "Headers too large"),
    "upstream_unreachable": words("商品服务连接失败", "商品服務連線失敗", "Product service unreachable"),
    "upstream_timeout": words("商品服务响应超时", "商品服務回應逾時", "Product service timed out"),
    "ledger_unavailable": words("名额暂时无法核对", "名額暫時無法核對", "Count unavailable"),
    "directory_unavailable": words("资料暂时查不到", "資料暫時查不到", "Directory unavailable"),
    "session_unsettled": words("替换结果待确认", "替換結果待確認", "Session not settled yet"),
    "internal_error": words("系统出错", "系統出錯", "Internal error"),
    "overloaded": words("系统繁忙", "系統繁忙", "Overloaded"),
    "draining": words("服务正在更新", "服務正在更新", "Shutting down"),
}

REPLACE_AFTER_START: Words = words(
    "直播已开始，联盟商品不能再替换，请添加您店铺的商品",
    "直播已開始，聯盟商品不能再替換，請添加您店鋪的商品",
    "The session is live: other shops' products can no longer be replaced. Please add your own shop's products.",
)

_LATER = "请稍后再试。"
_LATER_HANT = "請稍後再試。"

SENTENCES: dict[str, tuple[str, str]] = {
    "address_malformed": ("请求地址无法识别，请求未处理。", "請求地址無法識別，請求未處理。"),
    "headers_malformed": ("请求头格式不正确，请求未处理。", "請求標頭格式不正確，請求未處理。"),
    "body_malformed": ("请求内容格式不正确，请求未处理。", "請求內容格式不正確，請求未處理。"),
    "identity_missing": ("没有收到账号身份，请登录后再试。", "沒有收到帳號身分，請登入後再試。"),
    "identity_invalid": (
        "账号身份无效或已过期，请重新登录后再试。",
        "帳號身分無效或已過期，請重新登入後再試。",
    ),
    "identity_unavailable": (f"暂时无法验证账号身份，{_LATER}", f"暫時無法驗證帳號身分，{_LATER_HANT}"),
    "not_session_owner": (
        "该场直播属于其他账号，请用开播的账号操作。",
        "該場直播屬於其他帳號，請用開播的帳號操作。",
    ),
    "not_account_owner": (
        "只能操作自己的账号，请切换到对应账号后再试。",
        "只能操作自己的帳號，請切換到對應帳號後再試。",
    ),
    "route_unknown": ("该接口不存在，请检查请求地址。", "該介面不存在，請檢查請求地址。"),
    "session_unknown": (
        "找不到该场直播，请确认场次编号，或先创建直播。",
        "找不到該場直播，請確認場次編號，或先建立直播。",
    ),
    "product_unknown": (
        "查不到商品所属的店铺，暂不能添加，请确认商品编号。",
        "查不到商品所屬的店鋪，暫不能添加，請確認商品編號。",
    ),
    "account_unknown": ("找不到该账号，请确认账号编号。", "找不到該帳號，請確認帳號編號。"),
    "method_not_allowed": ("该接口不支持这种请求方法。", "該介面不支援這種請求方法。"),
    "session_ended": ("该场直播已结束，不能再更改商品。", "該場直播已結束，不能再更改商品。"),
    "length_required": ("请求没有说明内容长度，请求未处理。", "請求沒有說明內容長度，請求未處理。"),
    "body_too_large": ("请求内容过大，请分几次提交。", "請求內容過大，請分幾次提交。"),
    "media_type_unsupported": (
        "不支持请求的内容类型或编码，请使用 UTF-8 的 JSON。",
        "不支援請求的內容類型或編碼，請使用 UTF-8 的 JSON。",
    ),
    "too_many_requests": (f"操作太频繁，{_LATER}", f"操作太頻繁，{_LATER_HANT}"),
    "headers_too_large": ("请求头过大，请求未处理。", "請求標頭過大，請求未處理。"),
    "upstream_unreachable": (
        "商品服务暂时连接不上，操作可能没有生效，请刷新商品列表后再试。",
        "商品服務暫時連線不上，操作可能沒有生效，請重新整理商品列表後再試。",
    ),
    "upstream_timeout": (
        "商品服务没有及时响应，操作可能已经生效，请刷新商品列表确认后再试。",
        "商品服務沒有及時回應，操作可能已經生效，請重新整理商品列表確認後再試。",
    ),
    "ledger_unavailable": (
        f"暂时无法核对本场名额，联盟商品暂不能添加，{_LATER}",
        f"暫時無法核對本場名額，聯盟商品暫不能添加，{_LATER_HANT}",
    ),
    "directory_unavailable": (
        f"暂时查不到账号或商品资料，{_LATER}",
        f"暫時查不到帳號或商品資料，{_LATER_HANT}",
    ),
    "session_unsettled": (
        "本场有一次商品替换还没确认结果，请几秒后再试。",
        "本場有一次商品替換還沒確認結果，請幾秒後再試。",
    ),
    "internal_error": (
        "系统出错，操作可能没有生效，请刷新商品列表后再试。",
        "系統出錯，操作可能沒有生效，請重新整理商品列表後再試。",
    ),
    "overloaded": (f"系统繁忙，{_LATER}", f"系統繁忙，{_LATER_HANT}"),
    "draining": (f"服务正在更新，{_LATER}", f"服務正在更新，{_LATER_HANT}"),
}
"""An error's sentence in zh-CN and zh-Hant; in English an error speaks for itself, by its own `detail`."""

WITH_WHERE_AND_WHAT = frozenset(
    {
        "address_malformed",
        "headers_malformed",
        "body_malformed",
        "identity_invalid",
        "route_unknown",
        "product_unknown",
        "method_not_allowed",
        "length_required",
        "body_too_large",
        "media_type_unsupported",
        "headers_too_large",
    }
)
"""Errors whose reader is whoever wrote the client: in Chinese, too, their technical sentence follows."""

ADVICE: dict[str, tuple[str, Words]] = {
    "why_live_room": (
        "N1",
        words(
            "专业店的官方账号，直播间只能添加本店商品，不能添加其他店铺的商品（联盟商品）",
            "專業店的官方帳號，直播間只能添加本店商品，不能添加其他店鋪的商品（聯盟商品）",
            "An official account of a professional shop can add only its own shop's products to the live room",
        ),
    ),
    "why_elsewhere": (
        "N4",
        words(
            "官方账号的橱窗和短视频只能添加本店商品",
            "官方帳號的櫥窗和短影片只能添加本店商品",
            "An official account can add only its own shop's products to its showcase and short videos",
        ),
    ),
    "why_other": (
        "",
        words(
            "按现行规则，您的账号在这里只能添加本店商品",
            "按現行規則，您的帳號在這裡只能添加本店商品",
            "By the rules now in force your account can add only its own shop's products here",
        ),
    ),
    "used": (
        "N3",
        words(
            "每场直播最多添加{cap}件联盟商品，本场已用{used}个名额",
            "每場直播最多添加{cap}件聯盟商品，本場已用{used}個名額",
            "Other shops' products per live session: {cap} at most; places used in this one: {used}",
        ),
    ),
    "too_many_at_once": (
        "N3",
        words(
            "本场还剩{remaining}个名额，不够这次添加的商品，请减少后再提交",
            "本場還剩{remaining}個名額，不夠這次添加的商品，請減少後再提交",
            "Places left in this session: {remaining}, too few for this request; ask for fewer at once",
        ),
    ),
    "add_instead": (
        "N3",
        words(
            "本场还剩{remaining}个名额，可以直接添加新商品，不用替换",
            "本場還剩{remaining}個名額，可以直接添加新商品，不用替換",
            "Places left in this session: {remaining}; add the new product instead of replacing one",
        ),
    ),
    "cumulative": (
        "N5",
        words(
            "开播后名额累计计算，移出商品不会退回名额；本场用过的商品可以重新添加",
            "開播後名額累計計算，移出商品不會退回名額；本場用過的商品可以重新添加",
            "Once live, the count is cumulative: removing a product gives no place back; a product already "
            "used in this session may be added again",
        ),
    ),
    "replaceable": (
        "N6",
        words(
            "本场还没开播：移出一件联盟商品会退回名额，也可以直接替换",
            "本場還沒開播：移出一件聯盟商品會退回名額，也可以直接替換",
            "This session is not live yet: remove another shop's product to get its place back, or replace it",
        ),
    ),
    "replaceable_before_start": (
        "N6",
        words(
            "开播前可以移出或替换联盟商品并退回名额，开播后不可以",
            "開播前可以移出或替換聯盟商品並退回名額，開播後不可以",
            "Before a session goes live, removing or replacing another shop's product gives its place "
            "back; once live it does not",
        ),
    ),
    "choose_before_start": (
        "N6",
        words(
            "联盟商品要在开播前选定：开播前可以替换，开播后不可以",
            "聯盟商品要在開播前選定：開播前可以替換，開播後不可以",
            "Choose other shops' products before the session goes live: until then they can be replaced",
        ),
    ),
    "next_session": (
        "N7",
        words(
            "名额按场计算，下一场直播重新计数",
            "名額按場計算，下一場直播重新計數",
            "The count is per session: your next live session starts afresh",
        ),
    ),
    "own_products": (
        "N3",
        words(
            "本店商品不限数量，可以继续添加",
            "本店商品不限數量，可以繼續添加",
            "Your own shop's products are never limited: go on adding them",
        ),
    ),
    "vanished": (
        "N8",
        words(
            "在直播间添加过的联盟商品，不会再出现在橱窗的可添加列表里",
            "在直播間添加過的聯盟商品，不會再出現在櫥窗的可添加列表裡",
            "Another shop's product that was once in your live session no longer appears among the "
            "products that you may add to your showcase",
        ),
    ),
    "shop_type": (
        "N9",
        words(
            "可以变更店铺类型（专业店改为非专业店），变更后按新类型的规则执行",
            "可以變更店鋪類型（專業店改為非專業店），變更後按新類型的規則執行",
            "You may change your shop's type from professional to non-professional; the rules of the new "
            "type then hold",
        ),
    ),
    "close_shop": (
        "N10",
        words(
            "只想给别人带货、不需要店铺：关店后账号自动解绑，成为达人账号，不再受限制",
            "只想幫別人帶貨、不需要店鋪：關店後帳號自動解綁，成為達人帳號，不再受限制",
            "To go on selling for others without a shop: close it; the account is then unbound, becomes a "
            "creator and is no longer restricted",
        ),
    ),
    "pure_creator": (
        "N11",
        words(
            "不想关店：可以选择“纯达人带货”（7月16日截止），选择后账号不受限制",
            "不想關店：可以選擇「純達人帶貨」（7月16日截止），選擇後帳號不受限制",
            "To keep the shop: until 16 July you may choose to sell as a pure creator; the account is then "
            "not restricted",
        ),
    ),
    "pure_creator_ended": (
        "N11",
        words(
            "“纯达人带货”（不关店也不受限制）的申请已于7月16日截止；此前选择的账号仍不受限制",
            "「純達人帶貨」（不關店也不受限制）的申請已於7月16日截止；此前選擇的帳號仍不受限制",
            "Selling as a pure creator without closing the shop was on offer until 16 July; accounts that chose it by "
            "then stay unrestricted",
        ),
    ),
    "other_accounts": (
        "N12",
        words(
            "限制分批随机开放，7月底前覆盖所有官方账号；别的账号还能添加，可能是还没开放到，"
            "也可能是不受限制的达人或跨境专业店",
            "限制分批隨機開放，7月底前覆蓋所有官方帳號；別的帳號還能添加，可能是還沒開放到，"
            "也可能是不受限制的達人或跨境專業店",
            "The restriction is opened step by step and at random, and reaches every official account by "
            "the end of July; an account that can still add may not have been reached yet, or is a creator "
            "or a cross-border professional shop, which are not restricted",
        ),
    ),
}
"""What a merchant can know and do: the notice's id (empty: the rule that refused) and the sentence."""

SLOTS: Words = words(
    "本场{cap}个名额已用{used}个：{slots}（北京时间）",
    "本場{cap}個名額已用{used}個：{slots}（北京時間）",
    "Places used in this session, {used} of {cap}: {slots} (Beijing time)",
)
SLOT_ATTACHED: Words = words("{product}，{since} 添加", "{product}，{since} 添加", "{product} added {since}")
SLOT_GONE: Words = words(
    "{product}，{since} 添加，现不在购物车",
    "{product}，{since} 添加，現不在購物車",
    "{product} added {since}, not in the cart now",
)
SLOTS_MORE: Words = words("另有{more}件", "另有{more}件", "{more} more")
SLOT_SEPARATOR: Words = words("；", "；", "; ")
