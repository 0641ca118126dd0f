"""What messages, files and tags show of a URL: nothing that could be a password, a token or a key. Also URLs of files.

People write passwords into URLs unescaped, and parsers disagree about them: in `u:p@s/s@host`, SQLAlchemy takes `p` for
the password and urllib takes `p@s/s@host` for a path. So if a URL can be read in two ways, only its scheme is shown,
and of a query only values that are known to be harmless.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"

_HARMLESS = {
    "cache",
    "charset",
    "check_same_thread",
    "connect_timeout",
    "dbname",
    "host",
    "mode",
    "port",
    "sslmode",
    "target_session_attrs",
    "timeout",
    "uri",
}
"""Keys of a query whose values may be shown; of all others only the key."""

_IN_THE_ENVIRONMENT = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
_URL = re.compile(r"([A-Za-z][\w+.-]*)://(.*)", re.DOTALL)
_SHORT = 4
"""A secret with fewer characters is hidden only where it is a whole word."""


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite database, whatever characters its path has."""
    return "sqlite:///" + str(file).replace("%", "%25").replace(
        "?", "%3F"
    )  # SQLAlchemy takes everything else literally


def without_secrets(url: str) -> str:
    """`url` as it may be shown; if it is not a URL, or can be read in two ways, only its scheme.

    The user name is shown for a database, but not for a server, where it may be a token.
    """
    match = _URL.fullmatch(url.strip())
    if match is None:
        return HIDDEN
    scheme, rest = match.groups()
    is_file = scheme.startswith("sqlite") and rest.startswith("/")
    parts = re.fullmatch(r"([^?]*)()(?:\?(.*))?" if is_file else r"([^/?#]*)([^?#]*)(?:\?(.*))?", rest, re.DOTALL)
    if parts is None:  # with a fragment
        return f"{scheme}://{HIDDEN}"
    authority, path, query = parts.groups(default="")
    if is_file:
        shown = re.sub(r";\w+=.*", f";{HIDDEN}", authority, flags=re.DOTALL)
    else:
        userinfo, at, host = authority.rpartition("@")
        if "@" in path + query or not re.fullmatch(r"[\w.,:%\[\]-]*", host) or not re.fullmatch(r"[\w./%~+-]*", path):
            return f"{scheme}://{HIDDEN}"
        user, colon, _ = userinfo.partition(":")
        if not scheme.startswith("http") and re.fullmatch(r"[\w.%+-]+", user):
            userinfo = user + (f":{HIDDEN}" if colon else "")
        else:
            userinfo = HIDDEN
        shown = (userinfo + at if at else "") + host + path
    return f"{scheme}://{shown}" + (f"?{_query(query)}" if "?" in rest else "")


def redacted(text: str, *urls: str) -> str:
    """`text` without the secrets of any URL in it, and without those of `urls` in any form."""
    secrets = {secret for url in urls for secret in _secrets(url)}
    secrets |= {secret for name in _IN_THE_ENVIRONMENT if (secret := os.environ.get(name))}
    for url in urls:
        text = text.replace(url, without_secrets(url)) if "://" in url else text
    text = re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>]*[^\s'\"<>().,:;]", lambda url: without_secrets(url[0]), text)
    for secret in sorted(secrets, key=len, reverse=True):
        pattern = re.escape(secret)
        text = re.sub(pattern if len(secret) >= _SHORT else rf"(?<!\w){pattern}(?!\w)", HIDDEN, text)
    return text


def _query(query: str) -> str:
    shown = []
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        is_plain = re.fullmatch(r"\w+", key) and equals
        if is_plain and key.lower() in _HARMLESS and re.fullmatch(r"[\w.,:/%-]*", value):
            shown.append(pair)
        else:
            shown.append(f"{key}={HIDDEN}" if is_plain else HIDDEN)
    return "&".join(shown)


def _secrets(url: str) -> Iterator[str]:
    """Everything that may be secret in a URL by any reading of it: as written, decoded and encoded."""
    match = _URL.fullmatch(url.strip())
    rest = url if match is None else match[2]
    raw = set()
    for pair in re.finditer(r"[?&;]([^=&;]*)=(?=(([^&;]*).*))", rest, re.DOTALL):
        if pair[1].lower() not in _HARMLESS:
            raw |= {pair[2], pair[3]}  # a `&` may be part of it
    if not rest.startswith("/") and "@" in rest:
        userinfo = rest.rpartition("@")[0]
        raw.add(userinfo.partition(":")[2] or userinfo)
    # also in pieces, which a parser with another reading may quote in its error
    for value in {piece for secret in raw for piece in (secret, *re.split("[@/?#:&;=]", secret))} - {""}:
        decoded = {value, unquote(value), unquote_plus(value), repr(value)[1:-1]}
        yield from decoded | {quote(each, safe="") for each in decoded} | {quote_plus(each) for each in decoded}
