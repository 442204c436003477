"""HTTP errors to the ways in which a request has no answer; the same reading for every API."""

import email.utils
import re
import time
from collections.abc import Mapping

from e5jax.synthetic.request import AskError, OutOfQuotaError, Refused, Throttled, Unavailable


# What ends the job, not the request: asking for the other 499,999 would get the same.
FINAL = {
    401: "the API key is not accepted",
    402: "the account has no credit",
    403: "the API key may not do this",
    404: "no such model or address",
}
PASSING = (408, 409, 425)


def fault(status: int, message: str, retry_after_s: float | None, final: str | None) -> AskError | OutOfQuotaError:
    """An HTTP status and the server's words (redacted) -> the error to raise.

    `final` says in words why nothing will be answered today, where the body says so; it goes before the status.
    """
    said = f"HTTP {status}: {' '.join(message.split())[:500]}"
    if reason := final or FINAL.get(status):
        return OutOfQuotaError(f"{reason} ({said})")
    if status == 429:
        return Throttled(said, retry_after_s)
    if status in PASSING or not 400 <= status < 500:
        return Unavailable(said)
    return Refused(said)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after` (seconds, or a date), of headers in lower case or any."""
    headers = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if re.fullmatch(r"\d+(\.\d+)?", value := headers.get(name, "").strip()):
            return float(value) * unit
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
