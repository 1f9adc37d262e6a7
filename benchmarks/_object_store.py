"""A server of the S3 protocol over a directory, for tests: localbucket, and two calls it lacks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree as ET

from localbucket import S3Handler

BUCKET = "headrace"


class _Handler(S3Handler):  # type: ignore[misc]
    """Also takes marks of folders (keys that end in `/`), and removes many objects at once."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass

    def _put(self, bucket: str, key: str) -> None:
        if key.endswith("/"):
            self._read_body()
            self._send(HTTPStatus.OK, headers={"ETag": '"mark"'})
        else:
            super()._put(bucket, key)

    def _delete_request(self, bucket: str, key: str) -> None:
        if key.endswith("/"):
            self._send(HTTPStatus.NO_CONTENT)
        else:
            super()._delete_request(bucket, key)

    def _post_request(self, bucket: str, key: str) -> None:
        if "delete" not in self.query:
            super()._post_request(bucket, key)
            return
        asked = ET.fromstring(self._read_body())  # noqa: S314 - our own client's
        for element in asked.iter():
            if element.tag.endswith("Key") and not (element.text or "/").endswith("/"):
                self._object_path(bucket, element.text).unlink(missing_ok=True)
        self._send_xml(ET.Element("DeleteResult"))


@contextmanager
def object_store(root: Path) -> Iterator[str]:
    """The URL of an empty bucket, as a recipe would name it; its objects are files under root."""
    (root / BUCKET).mkdir(parents=True)
    handler = type("Handler", (_Handler,), {"data_root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        options = f"region=local&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
        yield f"s3://{BUCKET}/models?{options}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
