"""A stand-in for wandb's server: a good one, and the ways in which servers are not."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Server:
    """Answers by `kind`: `good`, `refuses`, `stalls`, or every request with that status.

    A server that was good can become another kind later.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.history: list[dict[str, Any]] = []
        self.uploads: list[dict[str, Any]] = []
        self._over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if server.kind == "stalls":
                    server._over.wait()
                    return
                answer = server._answer(self.path, body) if server.kind == "good" else {}
                content = json.dumps(answer).encode()
                self.send_response(200 if server.kind == "good" else int(server.kind))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST  # noqa: N815

            def log_message(self, *_args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        if kind == "refuses":
            self._http.server_close()
        self._is_open = kind != "refuses"

    def __enter__(self) -> Self:
        if self._is_open:
            threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._is_open:
            self._http.shutdown()
            self._http.server_close()

    def _answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.history += [json.loads(line) for line in history.get("content", [])]
            return {}
        if path != "/graphql":
            return {}
        request = json.loads(body)
        query, given = request["query"], request.get("variables") or {}
        if "RunResumeStatus" in query:
            return {"data": {"model": self._project(given)}}
        if "upsertBucket" in query:
            self.uploads.append(given)
            entity = {"id": "e", "name": "team"}
            project = {"id": "p", "name": given["project"], "entity": entity}
            run = {"id": "r", "name": given["name"], "historyLineCount": 0, "project": project}
            return {"data": {"upsertBucket": {"bucket": run, "inserted": True}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/f"} for name in given["files"]]
            created = {"runID": "r", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": created}}
        return {"data": {}}

    def _project(self, given: dict[str, Any]) -> dict[str, Any]:
        """With the run that was asked for, if it was begun before, and the end of its history."""
        known = any(upload["name"] == given["name"] for upload in self.uploads)
        tail = json.dumps([json.dumps(row) for row in self.history[-1:]])
        lines = {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
        texts = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": '{"t": 1}'}
        run = {"id": "r", "name": given["name"], "displayName": "first", "tags": [], "notes": ""}
        run |= {**lines, **texts, "historyTail": tail, "eventsTail": "[]"}
        entity = {"id": "e", "name": "team"}
        bucket = run if known else None
        return {"id": "p", "name": given["project"], "entity": entity, "bucket": bucket}
