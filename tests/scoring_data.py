"""What the scorers' tests share: official outputs, a run of score.py, a chat server to talk to."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
SAMPLE = ROOT / "data" / "sample" / "amber"


def read_data(name: str) -> Any:
    """A JSON file of tests/data, packed or not."""
    file = DATA / name
    return json.loads(gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes())


class ScoreRun:
    """One run of score.py --json in this process: exit status, what people read, and the JSON, which stands alone."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.printed, self.err = status, out, err
        self.out = err if status == 0 else out

    @property
    def result(self) -> dict[str, Any]:
        """The numbers."""
        assert self.status == 0, self.err
        return json.loads(self.printed)


Score = Callable[..., ScoreRun]


# The status of a response, the reply's text or the whole body, and headers in place of the usual ones.
Served = tuple[int, str | bytes] | tuple[int, str | bytes, dict[str, str]]
Answering = Callable[[dict[str, Any]], Served]


@contextmanager
def chat_server(answer: Answering) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real HTTP server for chat completions on localhost: its base address, and the requests it got so far.

    ``answer`` makes what is served of a request; each request also holds the headers under "headers".
    """
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request["headers"] = dict(self.headers)
            request["path"] = self.path
            requests.append(request)
            status, data, *more = answer(request)
            if isinstance(data, str):
                body = {"model": request["model"], "choices": [{"message": {"role": "assistant", "content": data}}]}
                data = json.dumps(body if status == 200 else {"error": {"message": data}}).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            self.send_response(status)
            for name, value in (headers | (more[0] if more else {})).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # who has read enough may go
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
