"""What is shown of URLs, and what never is."""

import random
from urllib.parse import quote, urlsplit

import pytest
import sqlalchemy

from search.secrets import redacted, without_secrets

PIECES = [
    *"abcXYZ0189",
    "@",
    "/",
    "#",
    "%",
    "?",
    "&",
    "=",
    ":",
    ";",
    "%40",
    "[",
    "]",
    "+",
    "-",
    ".",
    "~",
    "'",
    "\\",
    "ü",
]
SCHEMES = ("postgresql", "postgresql+psycopg", "mysql", "http", "https", "ray", "sqlite")
KEYS = ("password", "token", "secret", "api_key", "sslpassword", "access_token", "options", "odbc_connect")


def _secret(draw: random.Random) -> str:
    return "S3" + "".join(draw.choices(PIECES, k=draw.randint(6, 14))) + "cr3t"


def _parts(secret: str) -> set[str]:
    """What of a secret nobody may see: all of it, and what stands at its ends, as little as any parser leaves."""
    return {secret, "S3", "cr3t", quote(secret, safe="")}


@pytest.mark.parametrize("seed", range(20))
def test_no_part_of_a_secret_in_a_url_is_ever_shown(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(100):
        raw = _secret(draw)
        secret = draw.choice((raw, quote(raw, safe="")))
        scheme, key = draw.choice(SCHEMES), draw.choice(KEYS)
        host = draw.choice(("host", "host:5432", "h1:1,h2:2", "[::1]:5432", "127.0.0.1", ""))
        url = draw.choice(
            (
                f"{scheme}://user:{secret}@{host}/db",
                f"{scheme}://:{secret}@{host}",
                f"{scheme}://user:{secret}@{host}/db?sslmode=require",
                f"{scheme}://user:{secret}@h1,user:{secret}@h2/db",
                f"{scheme}://{host}/db?{key}={secret}",
                f"{scheme}://user:{secret}@{host}/db?{key}={secret}&timeout=3",
                f"{scheme}://user:{secret}@{host}:port/db",
                f"{scheme}://{host}/db;{key}={secret}",
                f"{scheme}:///db?host={host}&{key}={secret}",
                f"{scheme}:/user:{secret}@{host}/db",
                f"user:{secret}@{host}",
            )
        )
        assert not [part for part in _parts(secret) if part in without_secrets(url)], url
        said = redacted(f"{url} does not answer (no host {secret!r}, nor {raw})", url)
        assert not [part for part in _parts(secret) | {raw} if part in said], (url, said)


@pytest.mark.parametrize("seed", range(5))
def test_what_parsers_take_for_the_password_is_not_shown(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(200):
        url = f"postgresql://user:{_secret(draw)}@host:1/db"
        shown = without_secrets(url)
        passwords = []
        for parse in (sqlalchemy.make_url, urlsplit):
            try:
                passwords.append(parse(url).password)
            except (ValueError, sqlalchemy.exc.ArgumentError):
                continue
        assert not [password for password in passwords if password and password in shown], url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://dux:pw@db.example:5432/dux?sslmode=require", "postgresql://dux:***@db.example:5432/dux?sslmode=require"),
        ("postgresql://dux@host/dux", "postgresql://dux@host/dux"),
        ("postgresql://dux:p%40ss@h1:1,h2:2/dux", "postgresql://dux:***@h1:1,h2:2/dux"),
        ("postgresql://dux:p@ss@host/dux", "postgresql://dux:***@host/dux"),
        ("postgresql://dux:p/ss@host/dux", "postgresql://***"),
        ("postgresql:///dux?host=there&password=pw", "postgresql:///dux?host=there&password=***"),
        ("sqlite:////home/a@b #1/ledger.db", "sqlite:////home/a@b #1/ledger.db"),
        ("https://token@mlflow.example/base", "https://***@mlflow.example/base"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("not a URL", "***"),
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_a_text_keeps_what_is_no_secret() -> None:
    said = redacted(
        "GET http://u:hunter2@host:5000/api failed: hunter2 (see http://host/docs).", "http://u:hunter2@host:5000"
    )
    assert said == "GET http://***@host:5000/api failed: *** (see http://host/docs)."  # fmt: skip
