# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""A MONAI Label server in a process of its own, spoken to by HTTP; needs nothing but the standard library."""

from __future__ import annotations

import email.parser
import email.policy
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Answer", "LabelServer"]

START_SECONDS = 600
TASK_SECONDS = 900


class Answer(NamedTuple):
    """What the server sent back."""

    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def parts(self) -> dict[str, bytes]:
        """Content of a multipart answer, by name."""
        head = f"Content-Type: {self.kind}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.body)
        names = [part.get_param("name", header="content-disposition") for part in message.iter_parts()]
        return dict(zip(names, (part.get_payload(decode=True) for part in message.iter_parts()), strict=True))


class LabelServer:
    """Starts ``monailabel start_server`` on a free port; a context manager that ends it.

    Args:
        python: interpreter of the environment that has MONAI Label.
        app: folder of the app.
        studies: folder of images.
        log: file that gets what the server prints.
        conf: of the app.
    """

    def __init__(self, python: str, app: Path, studies: Path, log: Path, **conf: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # the environment of the server, not the one of the tests
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PATH"] = os.pathsep.join([str(Path(python).parent), environment.get("PATH", "")])
        pairs = [word for item in conf.items() for word in ("--conf", *item)]
        places = ["--app", str(app), "--studies", str(studies), "--host", "127.0.0.1", "--port", str(self.port)]
        self.command = [python, "-m", "monailabel.main", "start_server", *places, *pairs]
        self.environment, self.folder, self.log = environment, app, log

    def __enter__(self) -> LabelServer:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            try:
                self._send("GET", "/info/")
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(60)

    def get(self, path: str, **query: Any) -> Answer:
        return self._send("GET", _with_query(path, query))

    def infer(self, model: str, params: dict[str, Any] | None = None, **query: Any) -> Answer:
        """Ask for a registration onto an image of the datastore."""
        form = urllib.parse.urlencode({"params": json.dumps(params or {})}).encode()
        return self._send("POST", _with_query(f"/infer/{model}", query), form, "application/x-www-form-urlencoded")

    def infer_upload(self, model: str, image: Path, params: dict[str, Any], **query: Any) -> Answer:
        """Ask for a registration onto an image that the request brings along."""
        head = "--part\r\nContent-Disposition: form-data; name="
        text = f'{head}"params"\r\n\r\n{json.dumps(params)}\r\n{head}"file"; filename="{image.name}"\r\n\r\n'
        body = text.encode() + image.read_bytes() + b"\r\n--part--\r\n"
        return self._send("POST", _with_query(f"/infer/{model}", query), body, "multipart/form-data; boundary=part")

    def run_task(self, path: str, status_path: str, params: dict[str, Any], **query: Any) -> dict[str, Any]:
        """Start a batch or a training and wait for its end; its last state."""
        answer = self._send("POST", _with_query(path, query), json.dumps(params).encode(), "application/json")
        assert answer.status == 200, answer.body
        end = time.monotonic() + TASK_SECONDS
        while time.monotonic() < end:
            state = self._send("GET", status_path, quiet=True).json
            if state["id"] == answer.json["id"] and state["status"] not in ("SUBMITTED", "RUNNING"):
                print(f"GET {status_path}\n  200 status {state['status']}, last line: {state['details'][-1]}")
                return state
            time.sleep(2)
        raise TimeoutError(f"{path} did not end in {TASK_SECONDS} seconds")

    def _send(self, method: str, path: str, body: bytes | None = None, kind: str = "", quiet: bool = False) -> Answer:
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TASK_SECONDS) as response:
                answer = Answer(response.status, response.headers["Content-Type"], response.read())
        except urllib.error.HTTPError as error:
            answer = Answer(error.code, error.headers["Content-Type"] or "", error.read())
        if not quiet:
            said = urllib.parse.unquote_plus((body or b"").decode(errors="replace"))[:200]
            print(f"{method} {path} {said}\n  {_summary(answer)}")
        return answer


def _with_query(path: str, query: dict[str, Any]) -> str:
    return f"{path}?{urllib.parse.urlencode(query)}" if query else path


def _summary(answer: Answer) -> str:
    text = answer.body.decode() if "json" in answer.kind else f"{len(answer.body)} bytes"
    return f"{answer.status} {answer.kind.split(';')[0]}: {text if len(text) < 400 else text[:400] + '...'}"
