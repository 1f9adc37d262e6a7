"""Where the feature store keeps what is newest: a recipe's `[features]`, without Feast's import."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from streaming.errors import ConfigError

EMBEDDED = "sqlite"


@dataclass(frozen=True)
class StoreConfig:
    """`online` is "sqlite", in the home, or "redis://[user:password@]host[:port][/database]".

    `project` is Feast's: two homes that share a database in Redis need two.

    Raises:
        ConfigError: `online` is neither, or `project` is no name.
    """

    online: str = EMBEDDED
    project: str = "headrace"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.project):
            raise ConfigError(
                f"features.project = {self.project!r} is no name: it is a letter and then letters,"
                " digits and _, all of them small"
            )
        if self.online != EMBEDDED:
            self.redis  # noqa: B018 - raises

    @property
    def shown(self) -> str:
        """What may be printed: `online` without its password.

        >>> StoreConfig("redis://ada:secret@cache/2").shown
        'redis://cache:6379/2'
        """
        if self.online == EMBEDDED:
            return "SQLite"
        url = urlsplit(self.online)
        return f"{url.scheme}://{url.hostname}:{url.port or 6379}{url.path.rstrip('/') or '/0'}"

    @property
    def redis(self) -> str:
        """The connection as Feast wants it said.

        >>> StoreConfig("redis://ada:secret@cache/2").redis
        'cache:6379,db=2,socket_connect_timeout=5,socket_timeout=5,username="ada",password="secret"'
        """
        try:
            url = urlsplit(self.online)
            port = url.port or 6379
        except ValueError:
            raise self._unusable("it has no port that is one") from None
        if url.scheme not in ("redis", "rediss") or not url.hostname:
            raise self._unusable("it names no store")
        database = url.path.strip("/") or "0"
        if not database.isdecimal():
            raise self._unusable("a database in Redis is a number")
        told = [f"{url.hostname}:{port}", f"db={database}"]
        told += ["socket_connect_timeout=5", "socket_timeout=5"]
        for name, value in (("username", url.username), ("password", url.password)):
            if value:
                if "," in unquote(value):
                    raise self._unusable(f"Feast takes no {name} with a comma")
                told.append(f"{name}={json.dumps(unquote(value))}")
        return ",".join([*told, "ssl=true"] if url.scheme == "rediss" else told)

    def _unusable(self, why: str) -> ConfigError:
        shown = re.sub(r"//.*@", "//", self.online)
        return ConfigError(
            f'features.online = "{shown}" cannot be used, {why}: set it to "{EMBEDDED}" or to'
            ' "redis://host:6379/0"'
        )
