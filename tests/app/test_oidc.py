"""Tokens of an identity provider: real keys, handed out by a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from realm import CLIENT, SECRET, Provider, running_realm

from vqseg.errors import ConfigError


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with running_realm() as running:
        yield running


@pytest.fixture
def make_realm(app_module: Any, provider: Provider) -> Any:
    module = app_module("oidc")

    def make(**changes: Any) -> Any:
        settings = {"MONAI_LABEL_AUTH_REALM_URI": provider.issuer, "MONAI_LABEL_AUTH_CLIENT_ID": CLIENT} | changes
        return module.Realm(module.settings.model_copy(update=settings))

    return make


@pytest.fixture
def realm(make_realm: Any) -> Any:
    return make_realm()


@pytest.mark.parametrize(("key", "algorithm"), [("rsa", "RS256"), ("ec", "ES256")])
def test_a_token_of_the_realm_says_who_it_is(realm: Any, provider: Provider, key: str, algorithm: str) -> None:
    identity = realm.identity(provider.token(key, algorithm, email="r@example.org", name="Rita"))
    assert (identity.username, identity.email, identity.name) == ("rita", "r@example.org", "Rita")
    assert identity.roles == {"offline_access", "monailabel-annotator"}
    assert realm.identity(provider.token(aud=CLIENT)) is not None  # one audience may stand without a list


def ago(seconds: float) -> int:
    return int(time.time() - seconds)


@pytest.mark.parametrize(
    "changes",
    [
        # Seconds from now, so that a test has the same name whenever it is collected.
        {"exp": -60},
        {"exp": None},
        {"nbf": 3600},
        {"iat": 3600},
        {"aud": "account"},
        {"aud": None},
        {"aud": [f"{CLIENT}-other"]},
        {"iss": None},
        {"iss": "http://127.0.0.1/realms/hospital"},
        {"preferred_username": None},
        {"preferred_username": ""},
        {"preferred_username": "a\nb"},
        {"preferred_username": ["admin"]},
    ],
    ids=str,
)
def test_a_token_for_others_or_out_of_date_is_refused(realm: Any, provider: Provider, changes: dict[str, Any]) -> None:
    assert realm.identity(provider.token()) is not None
    claims = {name: ago(-value) if isinstance(value, int) else value for name, value in changes.items()}
    assert realm.identity(provider.token(**claims)) is None


def test_a_token_that_has_expired_stays_so_when_the_clock_is_set_back(
    realm: Any, provider: Provider, app_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = provider.token()
    assert realm.identity(token) is not None
    later = datetime.now(timezone.utc) + timedelta(days=1)
    monkeypatch.setattr(app_module("oidc"), "latest_now", lambda: later)
    assert realm.identity(token) is None


def part(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def hmac_of_public_key(provider: Provider, algorithm: str) -> str:
    """The well-known forgery: the public key, which everybody has, as the secret of a symmetric signature."""
    public = provider.keys["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': 'rsa'})}.{part(provider.claims())}"
    digest = hmac.new(public, signed.encode(), getattr(hashlib, f"sha{algorithm[2:]}")).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def forged(provider: Provider) -> dict[str, str]:
    head, claims, signature = provider.token().split(".")
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    admin = part(provider.claims(realm_access={"roles": ["monailabel-admin"]}))
    return {
        "no signature": f"{part({'alg': 'none', 'kid': 'rsa'})}.{claims}.",
        "None": f"{part({'alg': 'None', 'kid': 'rsa'})}.{claims}.{signature}",
        "HS256": hmac_of_public_key(provider, "HS256"),
        "HS512": hmac_of_public_key(provider, "HS512"),
        "RS512": jwt.encode(provider.claims(), provider.keys["rsa"], "RS512", headers={"kid": "rsa512"}),
        "HS256 with a key of the list": jwt.encode(provider.claims(), SECRET, "HS256", headers={"kid": "secret"}),
        "another key": jwt.encode(provider.claims(), stranger, "RS256", headers={"kid": "rsa"}),
        "unknown key": jwt.encode(provider.claims(), stranger, "RS256", headers={"kid": "other"}),
        "no key": jwt.encode(provider.claims(), stranger, "RS256"),
        "key of another kind": jwt.encode(
            provider.claims(), ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "rsa"}
        ),
        "changed claims": f"{head}.{admin}.{signature}",
        "changed signature": f"{head}.{claims}.{signature[:-8]}AAAAAAAA",
        "list as claims": f"{head}.{part([])}.{signature}",
        "depth": f"{head}.{base64.urlsafe_b64encode(b'[' * 30000).decode()}.{signature}",
        "one part": "abc",
        "nothing": "",
        "dots": "..",
        "no text": "\udcff.\udcff.\udcff",
    }


def test_a_token_writes_nothing_into_the_log(realm: Any, provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert realm.identity(jwt.encode(provider.claims(), stranger, "RS256", headers={"kid": "x\nfalse line"})) is None
    assert "is refused" in caplog.text
    assert "false line" not in caplog.text


def test_forged_tokens_are_refused(realm: Any, provider: Provider) -> None:
    assert realm.identity(provider.token()) is not None
    accepted = {kind for kind, token in forged(provider).items() if realm.identity(token) is not None}
    assert accepted == set()


def test_a_key_within_the_token_counts_for_nothing(realm: Any, provider: Provider) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = jwt.algorithms.RSAAlgorithm.to_jwk(stranger.public_key(), as_dict=True)
    headers = {"kid": "own", "jwk": own, "jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/keys"}
    assert realm.identity(jwt.encode(provider.claims(), stranger, "RS256", headers=headers)) is None


@pytest.mark.parametrize("claim", [None, "admin", {"roles": "monailabel-admin"}, {"roles": [7, None]}, {}])
def test_roles_that_are_no_list_of_names_are_none(realm: Any, provider: Provider, claim: Any) -> None:
    assert realm.identity(provider.token(realm_access=claim)).roles == set()


def test_the_setting_says_where_roles_and_names_stand(make_realm: Any, provider: Provider) -> None:
    places = {"MONAI_LABEL_AUTH_TOKEN_ROLES": "a#b#c", "MONAI_LABEL_AUTH_TOKEN_USERNAME": "sub"}
    identity = make_realm(**places).identity(provider.token(a={"b": {"c": ["monailabel-user"]}}))
    assert (identity.username, identity.roles) == ("0f6a", {"monailabel-user"})


def test_unknown_keys_do_not_make_the_provider_busy(realm: Any, provider: Provider) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    realm.identity(provider.token())
    asked = len(provider.asked)
    for number in range(20):
        token = jwt.encode(provider.claims(), stranger, "RS256", headers={"kid": f"key {number}"})
        assert realm.identity(token) is None
    assert realm.identity(provider.token(algorithm="RS512")) is None
    assert len(provider.asked) == asked


def test_a_provider_that_is_away_is_an_error_and_no_refusal(
    app_module: Any, make_realm: Any, provider: Provider
) -> None:
    away = app_module("oidc").ProviderError
    known = make_realm()
    known.identity(provider.token())
    provider.answers = False
    try:
        assert known.identity(provider.token()) is not None  # its keys are known
        with pytest.raises(away, match="503"):
            make_realm().identity(provider.token())
        with pytest.raises(away, match="503"):
            known.exchange("rita", provider.passwords["rita"])
    finally:
        provider.answers = True
    with pytest.raises(away, match="does not answer"):
        make_realm(MONAI_LABEL_AUTH_REALM_URI="http://127.0.0.1:9/realms/x").identity(provider.token())
    with pytest.raises(away, match="issuer"):
        make_realm(MONAI_LABEL_AUTH_REALM_URI=f"{provider.issuer}/").identity(provider.token())


def test_a_password_is_exchanged_for_a_token(realm: Any, provider: Provider) -> None:
    answer = realm.exchange("rita", provider.passwords["rita"])
    assert realm.identity(answer["access_token"]).username == "rita"
    assert realm.exchange("rita", "wrong") is None
    assert realm.exchange("nobody", provider.passwords["rita"]) is None


def test_with_a_provider_alone_no_browser_asks_for_a_token(app_module: Any, realm: Any) -> None:
    """As docs/how-to/accounts.md says: it could not send what the provider wants."""
    accounts, options = app_module("accounts").Accounts(None, realm), app_module("options").Options({})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/vqseg/", "query_string": b"", "headers": []}
    asyncio.run(app_module("gate").Gate(None, accounts=accounts, options=options)(scope, None, send))
    assert sent[0]["status"] == 401
    challenges = [value for name, value in sent[0]["headers"] if name == b"www-authenticate"]
    assert [value.split()[0] for value in challenges] == [b"Bearer"]


def test_tokens_for_nobody_in_particular_are_never_taken(make_realm: Any) -> None:
    with pytest.raises(ConfigError, match="CLIENT_ID"):
        make_realm(MONAI_LABEL_AUTH_CLIENT_ID="")
