"""Which errors show that a swap was refused, and which leave its outcome unknown.

Once any byte of a swap may have been sent, an error refuses it only if two things hold: it is
certainly the reply to this swap, which `matching` decides, and its code or text is listed here as a
refusal. Everything else leaves the outcome unknown, and the swap is looked up. The texts of the
broker aren't documented, so **doubt wins**: "Insufficient liquidity, the venue timed out" is no
refusal.

The order of the checks:

1. An error that doesn't name the operation may be about authentication, a rate limit, a channel or
   another message. Then it refuses no swap.
2. A documented refusal code decides, where the broker has sent one.
3. A word of doubt: the swap, or an earlier one with its id, may have been executed.
4. A text of a refusal. With the operation, authentication and rate limits are refusals too.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Final

from trio_broker.exceptions import BrokerError, ServerError


class Verdict(enum.Enum):
    """What an error says about a swap."""

    REFUSED = enum.auto()
    """It was not executed."""
    DUPLICATE = enum.auto()
    """There is a swap with this id, perhaps this one."""
    UNKNOWN = enum.auto()
    """It may have been executed."""


# The documentation of the REST API explains them: nothing was executed.
_REFUSAL_CODES: Final = frozenset({"INSUFFICIENT_BALANCE", "INVALID_AMOUNT", "INVALID_REQUEST"})

# Each text is compared in lower case, with blanks for underscores, hyphens and changes of case.
_DUPLICATE: Final = (
    r"duplicat|\bdupe?s?\b",  # "Duplicate client order id", "DUPLICATE_REQUEST"
    r"\bexist(?:s|ed|ing)\b(?! (?:balance|funds))",  # "order already exists"
    r"\b(?:already|previously)\b",  # "already processed"
    r"\b(?:processed|received|seen|sent|submitted|used) before\b",  # the same
    r"\bdouble (?:order|request|sen[dt]|submi\w+|swap)\b",  # the same
    r"\bbelongs? to\b",  # "this id belongs to another order"
    r"\bhas (?:that|the same|this) (?:\w+ ){0,2}(?:ids?|key)\b",  # "another order has this id"
    r"\b(?:re|(?:been|was|is|in) )used?\b",  # "the id has been used", "id in use"
    r"\b(?:unique|taken|conflict\w*|collision)\b",  # "the id must be unique"
    r"\b(?:replay|repeat|idempoten)",  # "replayed request", "Idempotency key mismatch"
    r"\b(?:identical|resubmi\w+|resent|twice)\b",  # "an identical request", "resubmission"
    r"\b(?:same|second) (?:\w+ ){0,3}(?:ids?|key|order|request|submission|swap|time)\b",  # the same
    r"\bbeing processed\b",  # "request is being processed"
    r"\bin (?:progress|process|flight)\b",  # the same
)
_DONE: Final = "accepted|broadcast|created|execut(?:ed|ing)|filled|placed|processed|sent|submitted"
_DOUBTS: Final = (
    r"\bnonce",  # ours are unique: an earlier delivery of this message may have been executed
    r"\binternal",  # an internal error may come after the execution
    r"\bunexpected\b",  # as "internal"
    r"tim(?:e|ed|ing) ?out",  # the answer is missing, not the execution
    r"\bdeadline\b|\bexecution time\b|\bblock ?height\b",  # the same
    r"\bgateway\b",  # a proxy speaks, which doesn't know what the broker did
    r"\bupstream\b",  # the same
    r"\beof\b",  # the same
    r"\bconnection (?:is |was )?(?:reset|refused|closed|lost|aborted)\b",  # the same
    r"\binvalid connection\b",  # the same, of a database
    r"\b(?:server|network|connection|socket|database|runtime|rpc|system) (?:error|failure)",
    r"\b(?:econn|broken pipe|panic|unreachable)",  # as "internal"
    # Something of the server is short or broken: "no route to host", "not enough memory".
    r"\b(?:buffers?|capacity|connections?|dial|disk|hosts?|json|pointer|recursion|resources)\b",
    r"\b(?:enough|insufficient|invalid|of|shared) memory\b",  # the same
    r"\b(?:halted|leg|midway|payout|returned)\b|<!?\w",  # a part was executed; or a page of HTML
    r"\b(?:call stack|stack size|space|threads?|workers?)\b|\btook too long\b",
    r"\bfrom (?:the )?(?:backend|broker|exchange|provider|server|venue)\b",  # as "upstream"
    # "invalid response from the venue": it may have executed all the same. So does Go say that a
    # response is no JSON, and Python that it lacks a member.
    r"\brespon(?:d|se)|\brepl(?:y|ies)\b|\blooking for beginning\b|\bin json\b|^key error\b",
    r"\bunknown (?:\w+ )?(?:error|failure|status|state|outcome|result|reason)\b",  # it says so
    r"\b(?:status|state|outcome|result|reason) (?:is |still )*unknown\b",  # the same
    r"\b(?:confirm|(?:determine|verify) )",  # "not enough confirmations": it was executed
    r"\bpartial",  # "partially filled, not enough liquidity": a part was executed
    rf"\b(?:order|swap|transaction|tx|trade|was|been) (?:{_DONE})\b",  # it says that it went on
    # The same, unless it "cannot be executed".
    r"(?<!not )(?<!not be )(?<!n't be )\b(?:completed|confirmed|executed|filled|mined|settled)\b",
    r"(?<!not )\bsucce\w+",  # the same
    r"\b(?:finished|(?:re)?processing)\b|\bstill (?!closed\b)|\bswap done\b",  # the same
    r"\bafter (?:the |its )?(?:execut|fill|settle|swap|trade)",  # the same
    # "the order is live"
    r"\b(?:order|request|swap|trade)\b(?: \w+){0,4} (?:active|alive|live|open|running|working)\b",
    r"\b(?:may|might) (?:be|have)\b|\bnot (?:certain|known|sure)\b|\b(?:perhaps|possibly)\b",
    r"\b(?:pending|queued?|wait(?:ed|ing)?)\b",  # it may be executed later
    r"\b(?:cancel|abort|interrupt)",  # it may have been executed before
    r"\b(?:busy|overloaded)\b",  # it may be executed later
    r"\b(?:broker|exchange|provider|server|service|temporarily|venue) unavailable\b",  # the same
    r"\btry(?:ing)? again\b",  # the same
    r"\b(?:retr(?:y|ied|ies|ying)|attempts)\b",  # the same; "maximum retries exceeded"
    # A 5xx status: as "gateway". An amount is none: "500 USDT minimum", "500,000 is too large".
    r"(?:\b(?:http(?:/[\d.]+)?|status|code)[ :=#(]*|^error[ :=#(]+)5\d\d\b",
    r"\b(?:answered|failed|replied|returned)(?: with)?[ :=#(]+5\d\d\b(?! [a-z]{2,6}\b)",
    r"^[\[(]?5\d\d(?:$|[:;\])]|,(?!\d)| (?![a-z0-9]{2,6}\b.*\bm(?:in|ax)imum))",
)
# "Invalid channel format" answers a `subscribe`, whatever else the error names.
_CHANNELS: Final = (r"\bchannel", r"\b(?:un)?subscri")
# These are about the message, so it wasn't executed. Without the operation, it may be another one.
_ACCESS: Final = (
    r"\bsignature\b",
    r"\b(?:api|access|secret) ?keys?\b",
    r"\b(?:bad|disabled|expired|invalid|revoked|unknown|wrong) keys?\b",
    r"\bkeys? (?:is |has |was )?(?:disabled|expired|invalid|not found|revoked|unknown)\b",
    r"\btimestamps?\b",
    r"\brate ?limit",
    r"\btoo many requests\b",
    r"authenticat",
    r"\bunauthori[sz]ed\b",
    r"(?:\bnot|\bno longer|n't) (?:currently )?authori[sz]ed\b",  # "not authorized to trade"
    r"\b(?:have|has|lacks?|missing|no|requires?|without) (?:\w+ ){0,3}permissions?\b",  # likewise
    r"^permission denied\b|\bnot permitted (?:for|to)\b",  # elsewhere, a system's error
)
# Without the operation, these may be about the session or about another message. With it, a text of
# a refusal decides.
_ELSEWHERE: Final = (
    r"\bsession\b",
    r"\btoken (?:is |has )?(?:expired|invalid|missing|revoked)\b",
    r"\b(?:expired|invalid|missing|revoked) token\b",
    r"\bcredentials?\b",
    r"\blog(?:ged)? ?(?:in|out)\b",
    r"\b(?:sig|hmac|ts|clock)\b|\bauthori[sz]",  # as in `_ACCESS`, but too short for a refusal
    r"\b(?:message|request) rate\b|\bper (?:second|minute|hour)\b",  # a rate limit in other words
    r"\btoo many (?:\w+ )?(?:calls|connections|messages|sessions|subscriptions)\b",  # the same
    r"(?<!client )\border ids?\b",  # "Invalid order id" answers a lookup
    r"(?:^|\b(?:op|operation)\W+)(?:auth|balances|estimate|order status)\b",  # it names another one
)
_TRADED: Final = r"(?:asset|pair|network|token|symbol|currency|coin)s?"
_REFUSALS: Final = (
    r"\binsufficient\b",  # of balance, funds, liquidity
    r"\bnot enough\b|\bnot have (?:\w+ )?(?:enough|sufficient)\b",  # the same
    r"\binvalid\b",  # a value of the swap
    r"\bmalformed\b",  # the same
    rf"\b(?:unknown|unsupported) (?:\w+ )?{_TRADED}\b",  # a value of the swap
    rf"\b{_TRADED}\b.*\b(?:unknown|unsupported|not supported)\b",  # the same
    r"\bm(?:in|ax)imum\b",  # an amount outside of the limits
    r"\btoo (?:small|large|low|high)\b",  # the same
    r"\bno route\b",  # there is no way to swap
    r"\bno liquidity\b",  # the same
    r"\bslippage\b",  # the price is worse than allowed
    r"\bmarket (?:\w+ ){0,2}closed\b",  # "market is currently closed"
    r"\bnot allowed\b",  # this account may not swap so
    r"\bforbidden\b",  # the same
    r"\bdisabled\b",  # the same
    r"\bunknown operation\W+swap\b",
)
# In a text about missing funds, these words tell where the funds are, and nothing about this swap.
# But an id may be in use, and a request pending.
_FUNDS: Final = re.compile(
    r"(?!.*\b(?:clientorderid|ids?|key|request)\b)"
    r".*\b(?:insufficient|not enough) (?:\w+ ){0,3}(?:balances?|funds?)\b"
)
_HELD: Final = re.compile(
    r"\b(?:been|in|is|was) used?\b"
    r"|\bpending (?:\w+ )?(?:deposit|order|settlement|swap|trade|transfer|withdrawal)s\b"
    r"|\bpending (?:\w+ )?(?:deposit|settlement|transfer|withdrawal)\b"
    r"|\b(?:balances?|deposits?|funds?|orders|swaps|trades|transfers?|withdrawals?) "
    r"(?:is |are )?(?:still )?pending\b"
)
_NAMES_SWAP: Final = re.compile(r"\b(?:ids?|key|order|swap)\b")
_MAX_TEXT: Final = 2000
_MAX_CODE: Final = 100
# A code at the beginning of a text, as "INVALID_AMOUNT: too small".
_CODE: Final = re.compile(r"\W*([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b", re.IGNORECASE)
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|[_\s-]+")


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_IS_DUPLICATE: Final = _any_of(_DUPLICATE)
_IS_DOUBT: Final = _any_of((*_DOUBTS, *_CHANNELS))
_IS_ACCESS: Final = _any_of(_ACCESS)
_IS_ELSEWHERE: Final = _any_of((*_ACCESS, *_ELSEWHERE, *_CHANNELS))
_IS_REFUSAL: Final = _any_of(_REFUSALS)


class RefusalTable:
    """The errors that refuse a swap.

    Args:
        texts: More texts of refusals, from the user. Any part of an error's text counts.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts = tuple(_plain(text) for text in texts)

    def judge(self, text: str, code: str, *, names_op: bool) -> Verdict:
        """What an error that is certainly the reply to a swap says about it.

        Args:
            text: The broker's text.
            code: The machine code beside it, empty if there is none.
            names_op: Whether the error names the operation.
        """
        start = text[:_MAX_TEXT]
        texts = _plain(start), _plain(code[:_MAX_CODE])
        is_elsewhere = not names_op and _matches(_IS_ELSEWHERE, texts)
        is_duplicate = _matches(_IS_DUPLICATE, texts)
        sent = (code or _code_of(start)).strip().upper()
        # A broker without a code of its own for a duplicate may call it an invalid request.
        is_vague = is_duplicate and sent == "INVALID_REQUEST" and _matches(_NAMES_SWAP, texts)
        if sent in _REFUSAL_CODES and not is_elsewhere and not is_vague:
            return Verdict.REFUSED
        if start != text:
            # No text of a refusal is so long, and the patterns would be slow.
            return Verdict.UNKNOWN
        if is_duplicate:
            return Verdict.DUPLICATE
        if is_elsewhere or _matches(_IS_DOUBT, texts):
            return Verdict.UNKNOWN
        is_refusal = _matches(_IS_ACCESS, texts) or any(map(self._is_listed, texts))
        return Verdict.REFUSED if is_refusal else Verdict.UNKNOWN

    def _is_listed(self, text: str) -> bool:
        return bool(_IS_REFUSAL.search(text)) or any(one in text for one in self._texts)


def _matches(pattern: re.Pattern[str], texts: Iterable[str]) -> bool:
    return any(map(pattern.search, texts))


def _plain(text: str) -> str:
    """A text in lower case, with one blank between words, and without where funds are held."""
    plain = _WORDS.sub(" ", text).strip().casefold()
    return _HELD.sub("held", plain) if _FUNDS.match(plain) else plain


def _code_of(text: str) -> str:
    found = _CODE.match(text)
    return found[1] if found else ""


def says_not_found(error: BrokerError | None) -> bool:
    """Whether this answer to a lookup means that the broker doesn't know the order.

    The swap may have been executed even so. Only the documented REST API promises to find an order
    by its client order id.
    """
    return isinstance(error, ServerError) and "not found" in _plain(error.message)
