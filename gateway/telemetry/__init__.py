"""What the gateway tells its operators: metrics for Prometheus (`metrics`, and the numbers of the hot path in
`counts`), and log lines as JSON (`logs`).
"""

from gateway.telemetry.counts import MAX_CHILDREN
from gateway.telemetry.logs import MAX_TEXT_CHARS, Seldom, configure_logging, without_secrets
from gateway.telemetry.metrics import DirectoryCounts, Telemetry

__all__ = [
    "MAX_CHILDREN",
    "MAX_TEXT_CHARS",
    "DirectoryCounts",
    "Seldom",
    "Telemetry",
    "configure_logging",
    "without_secrets",
]
