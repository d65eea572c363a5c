"""A sign-in service on the loopback, made with Authlib: authorisation code flow, signed tokens, one button a person."""

import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

PEOPLE = {"anna": ["radiology"], "boris": ["lead"], "carla": []}


class Issuer:
    """Serves until it is closed; `url` names it."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})
        self.codes: dict[str, dict[str, str]] = {}
        self.tries = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, str, str, dict[str, str]]:
        """Status, kind, text and headers of a request."""
        if path == "/.well-known/openid-configuration":
            return _json(
                {
                    "issuer": self.url,
                    "authorization_endpoint": f"{self.url}/authorize",
                    "token_endpoint": f"{self.url}/token",
                    "jwks_uri": f"{self.url}/jwks",
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )
        if path == "/jwks":
            return _json({"keys": [self.key.as_dict(private=False)]})
        if path == "/authorize":
            self.tries += 1
            links = "".join(
                f"<p><a id='{name}' href='/as?{urlencode({**query, 'who': name})}'>{name}</a></p>" for name in PEOPLE
            )
            return 200, "text/html", f"<h1>Who are you?</h1>{links}", {}
        if path == "/as":
            code = secrets.token_hex(8)
            self.codes[code] = query
            back = urlencode({"code": code, "state": query["state"]})
            return 302, "text/plain", "", {"Location": f"{query['redirect_uri']}?{back}"}
        if path == "/token":
            return self._token(self.codes.pop(query["code"]))
        return 404, "text/plain", "", {}

    def _token(self, asked: dict[str, str]) -> tuple[int, str, str, dict[str, str]]:
        now, who = int(time.time()), asked["who"]
        claims = {"iss": self.url, "sub": who, "aud": asked["client_id"], "iat": now, "exp": now + 3600}
        claims |= {"email": f"{who}@example.org", "name": who, "roles": PEOPLE[who]}
        if "nonce" in asked:
            claims["nonce"] = asked["nonce"]
        token = jwt.encode({"alg": "RS256", "kid": "k1"}, claims, self.key)
        return _json({"access_token": "a", "token_type": "Bearer", "expires_in": 3600, "id_token": token})

    def settings(self, server_url: str) -> str:
        """The file for `medseq review --auth`."""
        return (
            f'[auth]\nredirect_uri = "{server_url}/oauth2callback"\ncookie_secret = "{secrets.token_hex(32)}"\n'
            f'client_id = "medseq"\nclient_secret = "secret"\n'
            f'server_metadata_url = "{self.url}/.well-known/openid-configuration"\n'
            '[medseq]\nrole_claim = "roles"\n[medseq.roles]\nradiology = "reviewer"\nlead = "adjudicator"\n'
        )


def _json(content: dict[str, Any]) -> tuple[int, str, str, dict[str, str]]:
    return 200, "application/json", json.dumps(content), {}


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self, query: dict[str, str]) -> None:
            status, kind, text, headers = issuer.answer(urlsplit(self.path).path, query)
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(text.encode())), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            self._reply({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._reply({name: values[0] for name, values in parse_qs(body).items()})

        def log_message(self, *words: object) -> None:
            pass

    return Handler
