"""What a review server is told: which runs, on which address, who may sign in. Plain values; no web framework.

`medseq review` writes it to a file that only its owner reads, and names that file to the server in
``MEDSEQ_REVIEW_CONFIG``; paths and secrets appear neither in the list of processes nor in an address.
"""

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseq.errors import InputError, ManifestError

__all__ = [
    "VARIABLE",
    "AuthConfig",
    "ReviewConfig",
    "host_of",
    "is_loopback",
    "load_auth",
    "read_config",
    "require_address",
]

VARIABLE = "MEDSEQ_REVIEW_CONFIG"


class AuthConfig(BaseModel):
    """How people sign in: OpenID Connect as Streamlit's ``[auth]`` takes it, and who has which role.

    Attributes:
        auth: ``redirect_uri``, ``cookie_secret``, ``client_id``, ``client_secret``, ``server_metadata_url``.
        user_claim: Claim that names the user.
        role_claim: Claim whose value, or one of its values, stands in `roles`.
        roles: Claim value to ``reviewer``, ``adjudicator`` or ``admin``; the highest counts.
        default_role: Of whoever has none of them; None keeps them out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    auth: dict[str, Any] = Field(repr=False)
    user_claim: str = "email"
    role_claim: str = "roles"
    roles: dict[str, str] = {}
    default_role: str | None = None

    def user_of(self, claims: dict[str, Any]) -> str:
        """The user's name; empty if the claims do not tell."""
        return str(claims.get(self.user_claim) or claims.get("sub") or "")

    def role_of(self, claims: dict[str, Any]) -> str | None:
        """The highest role among a user's claims; None keeps them out."""
        held = claims.get(self.role_claim) or []
        values = [held] if isinstance(held, str) else list(held)
        order = ("reviewer", "adjudicator", "admin")
        found = [self.roles[str(value)] for value in values if self.roles.get(str(value)) in order]
        return max(found, key=order.index) if found else self.default_role


class ReviewConfig(BaseModel):
    """See the command line; every word there is a word here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folders: tuple[Path, ...] = ()
    inputs: tuple[Path, ...] = ()
    references: tuple[Path, ...] = ()
    address: str = "127.0.0.1"
    port: int = Field(default=8501, ge=1, le=65535)
    user: str = "reviewer"
    study: str | None = None
    auth: AuthConfig | None = None
    push_to: str | None = None
    roots: tuple[Path, ...] = ()
    workspace: Path | None = None
    memory_mb: int = Field(default=1024, ge=64)
    session_minutes: float = Field(default=30.0, gt=0)
    https: bool = False
    access_log: Path | None = None
    # The file holds secrets and is removed by whoever read it.
    once: bool = False

    @property
    def hosts(self) -> frozenset[str]:
        """Names that a browser may reach this server by: those of this machine, and where the sign-in returns to."""
        found = {"localhost", "127.0.0.1", "::1", host_of(self.address)}
        if self.auth is not None:
            found.add(urlsplit(str(self.auth.auth.get("redirect_uri", ""))).hostname or "")
        # Listening everywhere is no name.
        return frozenset(found - {"", "0.0.0.0", "::"})


def host_of(text: str) -> str:
    """The name in ``name:port``, lower case, without brackets; empty if it makes no sense."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


def load_auth(path: Path) -> AuthConfig:
    """A TOML file with ``[auth]`` as Streamlit takes it and ``[medseq]`` with `AuthConfig`'s other words.

    Raises:
        ManifestError: Not readable, unknown words, or a word that is missing.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ManifestError("the sign-in file cannot be read", where="--auth", found=error.strerror) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError("the sign-in file is no TOML", where="--auth", found=str(error)) from None
    wanted = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")
    auth = content.get("auth", {})
    missing = [name for name in wanted if not auth.get(name)]
    if missing:
        raise ManifestError("the sign-in file is not complete", where="[auth]", found=f"no {', '.join(missing)}")
    if len(str(auth["cookie_secret"])) < 32:
        raise ManifestError(
            "the cookie secret is too short", where="[auth]", wanted="32 characters", remedy="openssl rand -hex 32"
        )
    unknown = set(content) - {"auth", "medseq"}
    if unknown:
        raise ManifestError("unknown tables", where="--auth", found=", ".join(sorted(unknown)), wanted="auth, medseq")
    # The claims of the sign-in are what roles are made of.
    auth = {"expose_tokens": [], **auth}
    try:
        config = AuthConfig(auth=auth, **content.get("medseq", {}))
    except (ValidationError, TypeError) as error:
        found = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ManifestError("the sign-in file is not understood", where="[medseq]", found=found) from None
    known = ("reviewer", "adjudicator", "admin")
    wrong = [role for role in (*config.roles.values(), config.default_role or "reviewer") if role not in known]
    if wrong:
        raise ManifestError("no such role", where="[medseq]", found=", ".join(wrong), wanted=", ".join(known))
    return config


def read_config(path: str | None = None) -> ReviewConfig:
    """The configuration named in the environment; an empty one if none is.

    Raises:
        ManifestError: Not readable or not understood.
    """
    path = path or os.environ.get(VARIABLE)
    if not path:
        return ReviewConfig()
    try:
        config = ReviewConfig.model_validate_json(Path(path).read_bytes())
        if config.once:
            Path(path).unlink()
        return config
    except (OSError, ValidationError) as error:
        raise ManifestError(
            "the review's configuration cannot be read", found=type(error).__name__, remedy="start it by medseq review"
        ) from None


def require_address(address: str, auth: AuthConfig | None) -> None:
    """Only this machine may connect, unless people sign in.

    Raises:
        InputError: Another address without sign-in.
    """
    if auth is None and not is_loopback(address):
        raise InputError(
            "other machines may connect only where people sign in",
            where="--address",
            found=address,
            wanted="127.0.0.1 or ::1",
            remedy="give --auth FILE with the sign-in service",
        )


def is_loopback(address: str) -> bool:
    """Whether an address is reached from this machine only."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
