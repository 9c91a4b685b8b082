"""Tokens of an identity provider (OpenID Connect), such as Keycloak, by the settings MONAI Label has for it.

Reason (monailabel 0.8.5): its own check names no algorithm, so that PyJWT refuses every token, and it asks neither for
whom a token was made nor by whom.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import requests
from monailabel.config import Settings, settings

from vqseg.clock import latest_now
from vqseg.errors import ConfigError, VQSegError

logger = logging.getLogger(__name__)

# Signatures of a private key that never leaves the provider. `none` and HS*, for which the public key would be the
# secret, are what forged tokens ask for.
ALGORITHMS = ("RS256", "ES256")
# Clocks of two machines differ.
_LEEWAY_SECONDS = 30
_NEEDED = ("exp", "iss", "aud")
_LONGEST_NAME = 200


class ProviderError(VQSegError):
    """The identity provider does not answer, or not as one."""


@dataclass(frozen=True)
class Identity:
    """Who a token says it is for, with the names of the provider's roles."""

    username: str
    roles: frozenset[str]
    email: str | None = None
    name: str | None = None


class Realm:
    """The realm of `MONAI_LABEL_AUTH_REALM_URI`, whose tokens are made for `MONAI_LABEL_AUTH_CLIENT_ID`."""

    def __init__(self, chosen: Settings = settings) -> None:
        self._settings = chosen
        self._issuer = chosen.MONAI_LABEL_AUTH_REALM_URI
        self._audience = chosen.MONAI_LABEL_AUTH_CLIENT_ID
        if not self._audience:
            # PyJWT would take a token that was made for nobody.
            raise ConfigError("MONAI_LABEL_AUTH_CLIENT_ID is empty: tokens are accepted for one named client only")
        self._lock = threading.Lock()
        self._description: Mapping[str, Any] | None = None
        self._keys: jwt.PyJWKClient | None = None

    def identity(self, token: str) -> Identity | None:
        """Who holds a token, none when it is not valid here. Waits for the provider when its keys are not known yet.

        Raises `ProviderError`.
        """
        try:
            if jwt.get_unverified_header(token).get("alg") not in ALGORITHMS:  # nobody need be asked for a key
                return None
            claims = jwt.decode(
                token,
                self._signing_keys().get_signing_key_from_jwt(token),
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": list(_NEEDED), "enforce_minimum_key_length": True},
            )
        except jwt.PyJWKClientConnectionError as error:
            raise ProviderError(f"{self._issuer}: its keys cannot be fetched ({error})") from None
        except (jwt.PyJWTError, ValueError) as error:
            # Not its words: they repeat what a stranger put into the token.
            logger.info("a token for %s is refused: %s", self._issuer, type(error).__name__)
            return None
        # PyJWT looks at the machine's clock, which may be set back.
        if int(claims["exp"]) + _LEEWAY_SECONDS < latest_now().timestamp():
            return None
        return self._read(claims)

    def exchange(self, username: str, password: str) -> dict[str, Any] | None:
        """A token for a name and a password, none when the provider refuses them. Raises `ProviderError`."""
        form = {
            "client_id": self._audience,
            "username": username,
            "password": password,
            "grant_type": "password",
        }
        reply = self._ask("POST", self._described("token_endpoint"), data=form)
        if reply.status_code >= 500:
            raise ProviderError(f"{self._issuer}: it answers {reply.status_code} to a login")
        content = _json_object(reply)
        if reply.status_code != 200 or not isinstance(content.get("access_token"), str):
            return None
        return {"access_token": content["access_token"], "token_type": "Bearer"}

    def _read(self, claims: Mapping[str, Any]) -> Identity | None:
        username = claims.get(self._settings.MONAI_LABEL_AUTH_TOKEN_USERNAME)
        if not isinstance(username, str) or not 0 < len(username) <= _LONGEST_NAME or not username.isprintable():
            logger.info("a token for %s is refused: it names no user", self._issuer)
            return None
        roles: Any = claims
        for part in self._settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
            roles = roles.get(part) if isinstance(roles, Mapping) else None
        granted = frozenset(role for role in roles if isinstance(role, str)) if isinstance(roles, list) else frozenset()
        texts = (
            claims.get(self._settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
            claims.get(self._settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        )
        email, name = (text if isinstance(text, str) else None for text in texts)
        return Identity(username, granted, email, name)

    def _signing_keys(self) -> jwt.PyJWKClient:
        """It keeps the keys for five minutes, and asks for a key it does not know at most every 30 seconds."""
        address = self._described("jwks_uri")
        with self._lock:
            if self._keys is None:
                self._keys = jwt.PyJWKClient(address, timeout=self._settings.MONAI_LABEL_AUTH_TIMEOUT)
            return self._keys

    def _described(self, name: str) -> str:
        """An address out of the provider's description of itself, which is fetched once."""
        with self._lock:
            if self._description is None:
                reply = self._ask("GET", f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
                content = _json_object(reply)
                if reply.status_code != 200 or content.get("issuer") != self._issuer:
                    raise ProviderError(
                        f"{self._issuer}: it answers {reply.status_code} and issuer {content.get('issuer')!r}; "
                        "MONAI_LABEL_AUTH_REALM_URI must be the issuer's own address"
                    )
                self._description = content
            address = self._description.get(name)
        if not isinstance(address, str) or not address.startswith(("http://", "https://")):
            raise ProviderError(f"{self._issuer}: its description names no {name}")
        return address

    def _ask(self, method: str, address: str, **content: Any) -> requests.Response:
        timeout = self._settings.MONAI_LABEL_AUTH_TIMEOUT
        try:
            return requests.request(method, address, timeout=timeout, allow_redirects=False, **content)
        except requests.RequestException as error:
            raise ProviderError(f"{self._issuer}: it does not answer ({type(error).__name__})") from None


def _json_object(reply: requests.Response) -> dict[str, Any]:
    try:
        content = reply.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
