"""The gateway's own answers: a verdict or an error as a problem document (RFC 9457) in the client's language.

`language` chooses the language, `texts` holds every sentence, `advice` chooses what a merchant can do,
`document` puts the answer together. Pure: no I/O and no clock. What a rule says is the policy's business, not
this package's.
"""

from gateway.refusals.advice import Help, SlotView, beijing_time, say
from gateway.refusals.document import (
    Answer,
    HeaderList,
    PolicyReason,
    Problem,
    ProductVerdict,
    answer,
    encode,
    headers,
    policy_reason,
    rate_limit_headers,
    refusal_body,
    refuse_error,
    refuse_policy,
    refused_by,
)
from gateway.refusals.language import DEFAULT_LANGUAGE, Language, language

__all__ = [
    "DEFAULT_LANGUAGE",
    "Answer",
    "HeaderList",
    "Help",
    "Language",
    "PolicyReason",
    "Problem",
    "ProductVerdict",
    "SlotView",
    "answer",
    "beijing_time",
    "encode",
    "headers",
    "language",
    "policy_reason",
    "rate_limit_headers",
    "refusal_body",
    "refuse_error",
    "refuse_policy",
    "refused_by",
    "say",
]
