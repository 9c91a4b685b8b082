"""An identity provider on loopback: real signing keys, described and handed out over HTTP as Keycloak does."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

CLIENT = "monailabel-app"
SECRET = b"a symmetric key that a realm has published"


class Provider:
    """One realm. Its keys may change while it runs, and it may go away (`answers`)."""

    def __init__(self, url: str) -> None:
        self.issuer = f"{url}/realms/hospital"
        self.answers = True
        self.asked: list[str] = []
        self.passwords = {"rita": "s3cret pässword"}
        self.keys: dict[str, Any] = {}
        self.add_key("rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048))
        self.add_key("ec", ec.generate_private_key(ec.SECP256R1()))

    def add_key(self, name: str, key: Any) -> None:
        self.keys[name] = key

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a token of Keycloak says; a claim that is None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": [CLIENT, "account"],
            "azp": CLIENT,
            "iat": now,
            "exp": now + 300,
            "sub": "0f6a",
            "preferred_username": "rita",
            "realm_access": {"roles": ["offline_access", "monailabel-annotator"]},
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: str = "rsa", algorithm: str = "RS256", **changes: Any) -> str:
        return jwt.encode(self.claims(**changes), self.keys[key], algorithm, headers={"kid": key})

    def description(self) -> dict[str, Any]:
        connect = f"{self.issuer}/protocol/openid-connect"
        return {"issuer": self.issuer, "jwks_uri": f"{connect}/certs", "token_endpoint": f"{connect}/token"}

    def public_keys(self) -> dict[str, Any]:
        """As a realm lists them. It may list keys, too, that are for algorithms which nobody should accept."""
        keys = [{**_public(key), "kid": name, "use": "sig"} for name, key in self.keys.items()]
        other = {**_public(self.keys["rsa"]), "kid": "rsa512", "alg": "RS512"}
        secret = {"kty": "oct", "kid": "secret", "alg": "HS256", "k": base64.urlsafe_b64encode(SECRET).decode()}
        return {"keys": [*keys, other, secret]}

    def log_in(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        name, password = form["username"][0], form["password"][0]
        if form["client_id"] != [CLIENT] or self.passwords.get(name) != password:
            return 401, {"error": "invalid_grant"}
        return 200, {"access_token": self.token(preferred_username=name), "token_type": "Bearer", "expires_in": 300}


@contextmanager
def running_realm() -> Iterator[Provider]:
    """A provider that answers as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            provider.asked.append(name)
            if name == "certs":
                self._reply(200, provider.public_keys())
            else:
                self._reply(200 if name == "openid-configuration" else 404, provider.description())

        def do_POST(self) -> None:
            provider.asked.append("token")
            self._reply(*provider.log_in(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())))

        def _reply(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status if provider.answers else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = Provider(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


def _public(key: Any) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return dict(algorithm.to_jwk(key.public_key(), as_dict=True))
