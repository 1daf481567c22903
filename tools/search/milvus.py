"""An index in Milvus, a vector database for several machines; Milvus Lite stores it in a file.

One collection: an entity per file, keyed by a hash of its path, and entity 0, which describes gallery and model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tools.loading import require
from tools.search.rows import About, Row, Stamp, identity
from utils.errors import DataError, brief

REQUIREMENTS = "requirements-milvus.txt"
COLLECTION = "rde_search"
_ABOUT_ID = 0
_TIMEOUT = 30  # seconds
_MAX_STRING = 65_535  # bytes
_MAX_RESULTS = 16_384
_BATCH, _QUERY_BATCH = 1000, 64


class MilvusStore:
    """An open index, with the methods of `files.FileStore`.

    Args:
        uri: a server, http://host:19530 or http://host:19530/DATABASE, or a file NAME.db for Milvus Lite.
        about: gallery and model of the index to create if there is none.
    """

    def __init__(self, uri: str, about: About | None = None) -> None:
        self._milvus = require("pymilvus", REQUIREMENTS)
        logging.getLogger("pymilvus").setLevel(logging.ERROR)  # errors are raised as well
        self.name = uri
        with self._translated_errors():
            self._client = self._milvus.MilvusClient(uri, timeout=_TIMEOUT)
            exists = self._client.has_collection(COLLECTION)
            if not exists and about:
                self._create(about)
            elif not exists:
                raise DataError(f"no index in {uri}: build one with python -m tools.search index --store {uri}")
            entities = self._client.get(COLLECTION, _ABOUT_ID, output_fields=["note"])
            self.about = About.from_json(entities[0]["note"])

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise errors of the client or of malformed entities as a one-line DataError."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # from the client, the network or JSON
            raise DataError(f"--store {self.name}: {brief(error)}") from None

    def _create(self, about: About) -> None:
        kinds, schema = self._milvus.DataType, self._client.create_schema(auto_id=False)
        schema.add_field("id", kinds.INT64, is_primary=True)
        for name in ("path", "error", "note"):
            schema.add_field(name, kinds.VARCHAR, max_length=_MAX_STRING)
        for name in ("size", "mtime"):
            schema.add_field(name, kinds.INT64)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=about.width)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        self._client.create_collection(COLLECTION, schema=schema, index_params=index, consistency_level="Strong")
        self._write_about(about)

    def _write_about(self, about: About) -> None:
        entity = {"id": _ABOUT_ID, "path": "", "error": "none", "note": about.to_json(), "size": 0, "mtime": 0}
        self._client.upsert(COLLECTION, [entity | {"vector": np.zeros(about.width, np.float32)}])

    def _select(self, condition: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        with self._translated_errors():
            condition = f"id != {_ABOUT_ID} and {condition}"
            query = self._client.query_iterator(COLLECTION, _BATCH, filter=condition, output_fields=[*fields])
            while batch := query.next():
                yield from batch
            query.close()

    def __len__(self) -> int:
        with self._translated_errors():
            return self._client.query(COLLECTION, filter='error == ""', output_fields=["count(*)"])[0]["count(*)"]

    def stamps(self) -> dict[Path, Stamp]:
        fields = ("path", "size", "mtime")
        return {_path(e): Stamp(e["size"], e["mtime"]) for e in self._select("size >= 0", fields)}

    def broken(self) -> list[tuple[Path, str]]:
        return sorted((_path(e), json.loads(e["error"])) for e in self._select('error != ""', ("path", "error")))

    def put(self, rows: Sequence[Row]) -> None:
        no_vector = np.zeros(self.about.width, np.float32)
        entities = [
            {
                "id": identity(row.path),
                "path": json.dumps(row.path.as_posix()),  # file names needn't be UTF-8
                "error": json.dumps(row.error) if row.error is not None else "",
                "note": "",
                **row.stamp._asdict(),
                "vector": no_vector if row.vector is None else row.vector,
            }
            for row in rows
        ]
        if entities:
            with self._translated_errors():
                self._client.upsert(COLLECTION, entities)

    def drop(self, paths: Iterable[Path]) -> None:
        ids = [identity(path) for path in paths]
        with self._translated_errors():
            for start in range(0, len(ids), _BATCH):
                self._client.delete(COLLECTION, ids=ids[start : start + _BATCH])

    def record_location(self, about: About) -> None:
        self.about = about
        with self._translated_errors():
            self._write_about(about)

    def tidy(self) -> None:
        """Nothing to do: the database compacts itself."""

    def everything(self) -> tuple[list[Path], np.ndarray]:
        rows = [(_path(e), np.array(e["vector"], np.float32)) for e in self._select('error == ""', ("path", "vector"))]
        vectors = np.stack([vector for _, vector in rows]) if rows else np.empty((0, self.about.width), np.float32)
        return [path for path, _ in rows], vectors

    def nearest(self, queries: np.ndarray, count: int) -> list[tuple[list[Path], np.ndarray]]:
        result = []
        query = {"limit": min(count, _MAX_RESULTS), "filter": 'error == ""', "output_fields": ["path", "vector"]}
        with self._translated_errors():
            for start in range(0, len(queries), _QUERY_BATCH):
                batch = list(queries[start : start + _QUERY_BATCH])
                for hits in self._client.search(COLLECTION, data=batch, **query):
                    entities = [hit["entity"] for hit in hits]
                    vectors = np.array([entity["vector"] for entity in entities], np.float32)
                    result.append(([_path(e) for e in entities], vectors.reshape(-1, self.about.width)))
        return result


def _path(entity: dict[str, Any]) -> Path:
    return Path(json.loads(entity["path"]))
