"""The services that a store of objects can be at, and the way in: addresses, settings, credentials.

An address is SCHEME://BUCKET or SCHEME://BUCKET/PREFIX, with "s3", "gs" or "az". It has no
credentials in it: those are the configuration's (``[store.options]``), or the environment's
(``AWS_...``, ``GOOGLE_...``, ``AZURE_...``), or in the files in which the services' own programs
keep them; or a machine of the cloud has them by itself.

Source: the AWS SDKs' reference guide (shared configuration and credentials files)."""

import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.config import StoreConfig
from fusejournal.objects.read_windows import WindowedStore
from fusejournal.objects.store import ObjectStore, StoreError

_ADDRESS = re.compile(r"(s3|gs|az)://([a-zA-Z0-9][a-zA-Z0-9._-]{1,254})((?:/[\w.+=-]+)*)/*")
_CONNECT_SECONDS = 10.0
_CLIENT_OPTIONS = frozenset(
    {
        *("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate"),
        *("proxy_excludes", "root_certificate", "user_agent"),
    }
)
"""Settings that are of the connection, whatever the service."""
_READ_BY_WINDOWS = ("packs/",)
_SECRETS = ("key", "secret", "token", "credential", "password")


def do_not_wait() -> None:
    """Does nothing, for callers that are not interrupted while they wait for a store."""


class StoreAddress(NamedTuple):
    """The place of a store at a service."""

    scheme: str
    bucket: str
    prefix: str
    """Empty, or components joined by "/"."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_address(text: str) -> bool:
    """Returns True if *text* is meant as an address, and not as a directory."""
    return "://" in text


def parse_address(text: str) -> StoreAddress:
    """Returns the address that *text* is. Raises StoreError, in which the text is not repeated:
    it may hold what should not have been typed."""
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in match[3].split("/"):
        raise StoreError(
            text.partition("://")[0] + "://",
            "a store is s3://BUCKET/PREFIX, gs:// or az:// likewise, or a directory; credentials "
            "are no part of it",
        )
    return StoreAddress(match[1], match[2], match[3].strip("/"))


def holds_secrets(options: Mapping[str, str]) -> bool:
    """Returns True if some of *options* are not for everybody."""
    return any(word in name.lower() for name in options for word in _SECRETS)


def open_service(
    address: StoreAddress, config: StoreConfig, waiting: Callable[[], None]
) -> ObjectStore:
    """Returns the store at *address*; nothing is asked of it yet. See RemoteStore for *waiting*.
    Raises StoreError where the library is not installed, or the settings are wrong."""
    where = str(address)
    try:
        # Only here: most commands have nothing to do with it.
        from obstore import exceptions
        from obstore import store as stores

        from fusejournal.objects.remote import RemoteStore
    except ImportError:
        raise StoreError(
            where, "needs a library that is not installed: pip install 'fusejournal[remote]'"
        ) from None
    kinds: dict[str, Any] = {
        "s3": stores.S3Store,
        "gs": stores.GCSStore,
        "az": stores.AzureStore,
    }
    given = {name.lower(): value for name, value in config.options.items()}
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=config.request_seconds),
        "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, config.request_seconds)),
        **{name: given.pop(name) for name in list(given) if name in _CLIENT_OPTIONS},
    }
    settings = {**_s3_settings(given), **given} if address.scheme == "s3" else given
    try:
        service = kinds[address.scheme](
            address.bucket,
            prefix=address.prefix or None,
            config=settings,
            client_options=client,
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
        )
    except (exceptions.BaseError, OSError, ValueError, TypeError) as error:
        words = str(error).partition("\n")[0]
        raise StoreError(where, f"its settings are wrong: {words}: see [store.options]") from None
    return WindowedStore(RemoteStore(service, where, config, waiting), _READ_BY_WINDOWS)


def _s3_settings(given: dict[str, str]) -> dict[str, Any]:
    """Returns settings of S3 that neither *given* nor the environment has."""
    settings: dict[str, Any] = {"disable_bulk_delete": True}
    if "AWS_CHECKSUM_ALGORITHM" not in os.environ:
        settings["checksum_algorithm"] = "SHA256"
    if "AWS_ACCESS_KEY_ID" in os.environ or any("access_key" in name for name in given):
        return settings
    return {**settings, **_shared_files(Path.home() / ".aws")}


def _shared_files(directory: Path) -> dict[str, str]:
    """Returns what the files of the service's own programs have for the profile in use."""
    # Only here: stores in directories have no such files.
    import configparser

    profile = os.environ.get("AWS_PROFILE", "default")
    files = (
        (os.environ.get("AWS_SHARED_CREDENTIALS_FILE", directory / "credentials"), profile),
        (
            os.environ.get("AWS_CONFIG_FILE", directory / "config"),
            profile if profile == "default" else f"profile {profile}",
        ),
    )
    names = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
        "region": "region",
        "endpoint_url": "endpoint",
    }
    unless = {"region": ("AWS_REGION", "AWS_DEFAULT_REGION"), "endpoint": ("AWS_ENDPOINT_URL",)}
    found: dict[str, str] = {}
    for path, section in files:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
            values = parser[section] if parser.has_section(section) else {}
        except (configparser.Error, OSError, ValueError):
            raise StoreError(str(path), "cannot be read as a file of profiles") from None
        for name, setting in names.items():
            if name in values and not any(one in os.environ for one in unless.get(setting, ())):
                found.setdefault(setting, values[name])
    return found
