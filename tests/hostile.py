"""Malformed and hostile requests, drawn from a seed: gRPC tensors, gRPC bytes, HTTP, raw sockets.

Each function sends one and returns how it ended: "answered", "refused" with a status, or "closed"
(a broken HTTP/2 or HTTP stream has no status). Anything else is a finding.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import string
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2

METHODS = (
    "ModelInfer", "ModelConfig", "ModelMetadata", "ModelStatistics", "ModelReady", "ServerLive",
    "RepositoryModelLoad", "RepositoryModelUnload", "RepositoryIndex", "TraceSetting",
    "SystemSharedMemoryRegister", "CudaSharedMemoryRegister", "LogSettings", "NoSuchMethod",
)  # fmt: skip
DATATYPES = (
    "INT64", "INT32", "INT8", "UINT8", "FP32", "FP64", "FP16", "BF16", "BOOL", "BYTES", "", "X",
)  # fmt: skip
NAMES = ("user_id", "top_k", "time", "device", "query_vector", "", "a" * 10_000, "é\0", "../x")
MODELS = ("marquee", "query_tower", "retrieval", "ranker", "", "nothing", "../marquee", "m" * 5_000)
SIZES = (-1, 0, 1, 2, 31, 33, 1_000, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
EDGES = (-(2**63), -1, 0, 1, 2**31, 2**62, 2**63 - 1)
TOP_K = (-(2**31), -1, 0, 1, 20, 20, 20, 100, 501, 2**31 - 1)
TIMEOUT_S = 20.0


class Hostile:
    """One attacker with its own random numbers.

    Args:
        grpc_url, http_url: of the server.
        seed: the same seed sends the same requests.
    """

    def __init__(self, grpc_url: str, http_url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.channel = grpc.insecure_channel(grpc_url)
        self.grpc_place = _place(grpc_url)
        self.http_place = _place(urlsplit(http_url).netloc)
        self.kinds: tuple[Callable[[], str], ...] = (
            self.tensors, self.tensors, self.tensors, self.flipped, self.noise, self.http_json,
            self.http_binary, self.http_path, self.raw_http, self.raw_grpc,
        )  # fmt: skip

    def send(self) -> tuple[str, str]:
        """One request: (its kind, how it ended)."""
        kind = self.random.choice(self.kinds)
        return kind.__name__, kind()

    def close(self) -> None:
        self.channel.close()

    # --- gRPC ------------------------------------------------------------------------------------
    def tensors(self) -> str:
        """A well-formed message with absurd contents."""
        near = self.random.random() < 0.3
        request = self._nearly_right() if near else self._message()
        return self._call("ModelInfer", request.SerializeToString())

    def flipped(self) -> str:
        """A message with some bytes changed, cut off or repeated."""
        content = bytearray(self._message().SerializeToString())
        for _ in range(self.random.randint(1, 8)):
            at = self.random.randrange(len(content) or 1)
            change = self.random.randrange(3)
            if change == 0 and content:
                content[at % len(content)] = self.random.randrange(256)
            elif change == 1:
                del content[at:]
            else:
                content[at:at] = content[: self.random.randint(0, 64)]
        return self._call("ModelInfer", bytes(content))

    def noise(self) -> str:
        """Random bytes to any method, those that change the server included."""
        content = self.random.randbytes(self.random.choice((0, 1, 7, 100, 5_000)))
        return self._call(self.random.choice(METHODS), content)

    def _message(self) -> Any:
        draw = self.random
        request = service_pb2.ModelInferRequest(
            model_name=draw.choice(MODELS) if draw.random() < 0.4 else "marquee",
            model_version=draw.choice(("", "", "1", "-1", "99", "x", "1" * 400)),
            id=draw.choice(("", "x", "\n" * 50, "%s%n" * 20)),
        )
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 20))):
            tensor = request.inputs.add(
                name=draw.choice(NAMES) if draw.random() < 0.6 else "user_id",
                datatype=draw.choice(DATATYPES) if draw.random() < 0.6 else "INT64",
                shape=self._shape(),
            )
            if draw.random() < 0.15:
                self._parameter(tensor.parameters)
            where = draw.randrange(4)
            if where == 0:
                tensor.contents.int64_contents.extend(draw.choices(SIZES, k=draw.randint(0, 5)))
            elif where == 1:
                tensor.contents.bytes_contents.append(draw.randbytes(draw.randint(0, 300)))
            else:
                request.raw_input_contents.append(self._content())
        if draw.random() < 0.3:
            request.outputs.add(name=draw.choice(("score", "video_id", "nothing", "", "s" * 9_999)))
        if draw.random() < 0.2:
            self._parameter(request.parameters)
        return request

    def _nearly_right(self) -> Any:
        """Tensors that reach the stages, with values from the edges."""
        draw = self.random
        request = service_pb2.ModelInferRequest(model_name="marquee")
        rows = draw.choice((1, 1, 1, 2, 32))
        values = {
            "user_id": ("INT64", struct.pack(f"<{rows}q", *draw.choices(EDGES, k=rows))),
            "top_k": ("INT32", struct.pack(f"<{rows}i", *draw.choices(TOP_K, k=rows))),
            "time": ("INT64", struct.pack(f"<{rows}q", *draw.choices(EDGES, k=rows))),
            "device": ("BYTES", b"".join(map(self._text, range(rows)))),
        }
        for name, (datatype, content) in values.items():
            if name == "user_id" or draw.random() < 0.5:
                request.inputs.add(name=name, datatype=datatype, shape=[rows, 1])
                request.raw_input_contents.append(content)
        return request

    def _text(self, row: int) -> bytes:
        text = self.random.randbytes(self.random.choice((0, 1, 2, 40, 3_000)))
        return struct.pack("<I", len(text)) + text

    def _shape(self) -> list[int]:
        if self.random.random() < 0.4:
            return [1, 1]
        return self.random.choices(SIZES, k=self.random.choice((0, 1, 2, 2, 2, 3, 64)))

    def _content(self) -> bytes:
        draw = self.random
        if draw.random() < 0.3:  # a text whose declared length is a lie
            return struct.pack("<I", draw.choice((0, 1, 2**31, 2**32 - 1))) + draw.randbytes(8)
        return draw.randbytes(draw.choice((0, 1, 4, 8, 8, 8, 9, 256, 100_000)))

    def _parameter(self, parameters: Any) -> None:
        draw = self.random
        name = draw.choice(
            ("sequence_id", "priority", "timeout", "binary_data_output", "shared_memory_region",
             "shared_memory_byte_size", "classification", "triton_final_response", "x")
        )  # fmt: skip
        if draw.random() < 0.5:
            parameters[name].int64_param = draw.choice(SIZES)
        else:
            parameters[name].string_param = draw.choice(("", "x", "/dev/shm/x", "9" * 1_000))

    def _call(self, method: str, content: bytes) -> str:
        call = self.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            call(content, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return "no answer in time"
            if code is grpc.StatusCode.UNAVAILABLE and "connect" in str(error.details()):
                return "server gone"
            return "refused"
        return "answered"

    # --- HTTP ------------------------------------------------------------------------------------
    def http_json(self) -> str:
        """JSON that is deep, wrong, huge or nearly right."""
        draw = self.random
        tensor = {
            "name": draw.choice(NAMES), "datatype": draw.choice(DATATYPES),
            "shape": draw.choice((self._shape(), "x", None, {"a": 1}, [1.5], [[1]])),
            "data": draw.choice(([1], [[1]], ["x"], [None], [2**70], "x", {}, [[[]]], [True])),
        }  # fmt: skip
        bodies = (
            json.dumps({"inputs": [tensor]}),
            json.dumps({"inputs": [tensor] * 50, "outputs": [{"name": "score"}]}),
            json.dumps({"inputs": draw.choice((None, 1, "x", {}, [], [1], [None]))}),
            json.dumps({"inputs": [tensor], "parameters": {"priority": draw.choice(SIZES)}}),
            '{"inputs":' + "[" * draw.choice((10, 90, 2_000)),
            json.dumps({"inputs": [tensor]})[: draw.randint(0, 60)],
            "".join(draw.choices(string.printable, k=draw.randint(0, 500))),
        )
        return self._http("POST", self._infer_path(), draw.choice(bodies).encode())

    def http_binary(self) -> str:
        """Binary tensors whose declared sizes do not fit."""
        draw = self.random
        size = draw.choice((*SIZES, "8", "x"))
        tensor = {"name": "user_id", "datatype": draw.choice(DATATYPES), "shape": self._shape()}
        head = json.dumps(
            {"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}
        ).encode()
        length = draw.choice((str(len(head)), "0", "-1", "999999999999", "x", "1e3"))
        headers = {"Inference-Header-Content-Length": length}
        return self._http("POST", self._infer_path(), head + self._content(), headers)

    def http_path(self) -> str:
        """Other methods and paths; those that change a server are among them."""
        draw = self.random
        path = draw.choice(
            ("/", "/v2", "/v2/models/%00", "/v2/models/../../etc/passwd", "/v2/" + "a" * 6_000,
             "/v2/models/marquee/versions/x/infer", "/v2/models/marquee/config", "/%ff%fe",
             "/v2/repository/models/ranker/unload", "/v2/repository/index", "/v2/logging",
             "/v2/systemsharedmemory/region/x/register", "/v2/trace/setting", "/v2/models/stats")
        )  # fmt: skip
        return self._http(
            draw.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS")), path, b"{"
        )

    def _infer_path(self) -> str:
        name = self.random.choice(("marquee", "marquee", "ranker", "nothing", "a" * 3_000))
        return f"/v2/models/{name}/infer"

    def _http(
        self, method: str, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> str:
        connection = http.client.HTTPConnection(*self.http_place, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, headers or {})
            return "answered" if connection.getresponse().status == 200 else "refused"
        except TimeoutError:
            return "no answer in time"
        except ConnectionRefusedError:
            return "server gone"
        except (http.client.HTTPException, OSError):
            return "closed"
        finally:
            connection.close()

    # --- sockets ---------------------------------------------------------------------------------
    def raw_http(self) -> str:
        """Broken HTTP: sizes that are not sent, endless headers, noise."""
        draw = self.random
        start = b"POST /v2/models/marquee/infer HTTP/1.1\r\nHost: x\r\n"
        return self._raw(
            self.http_place,
            draw.choice(
                (
                    start + b"Content-Length: 99999999999999\r\n\r\n{}",
                    start + b"Content-Length: -5\r\n\r\n{}",
                    start + b"Content-Length: 4294967297\r\n\r\n{",
                    start + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{",
                    start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{",
                    start + b"".join(b"X-%d: y\r\n" % n for n in range(3_000)),
                    b"GET " + b"/" * 50_000,
                    draw.randbytes(draw.randint(1, 2_000)),
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                )
            ),
        )

    def raw_grpc(self) -> str:
        """Broken HTTP/2: a good beginning with noise or a frame that lies about its length."""
        draw = self.random
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
        frame = struct.pack(">I", draw.choice((0, 9, 2**14 + 1, 2**24 - 1)))[1:]
        frame += bytes((draw.randrange(256), draw.randrange(256))) + draw.randbytes(4)
        return self._raw(
            self.grpc_place,
            draw.choice(
                (preface + frame + draw.randbytes(50), preface, draw.randbytes(500), b"GET /")
            ),
        )

    def _raw(self, place: tuple[str, int], content: bytes) -> str:
        """Send, say that nothing more comes, and see whether the server says or closes."""
        try:
            with socket.create_connection(place, timeout=TIMEOUT_S) as connection:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
        except TimeoutError:
            return "no answer in time"
        except ConnectionRefusedError:
            return "server gone"
        except OSError:
            return "closed"
        return "closed"


def _place(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition(":")
    return host, int(port)
