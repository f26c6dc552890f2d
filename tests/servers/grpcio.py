"""gRPC by its own makers: `server` serves the four shapes, `client PORT` calls them and says what it got.

Messages are bytes; no stubs are generated, since the names of the methods are all that is needed.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

SERVICE = "test.Real"


class Handlers(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.rsplit("/", 1)[-1]
        return {
            "Unary": grpc.unary_unary_rpc_method_handler(lambda message, _: message[::-1]),
            "ServerStream": grpc.unary_stream_rpc_method_handler(
                lambda message, _: (str(n).encode() for n in range(int(message)))
            ),
            "ClientStream": grpc.stream_unary_rpc_method_handler(lambda messages, _: b"".join(messages)),
            "Bidi": grpc.stream_stream_rpc_method_handler(lambda messages, _: (m[::-1] for m in messages)),
            "Fail": grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
            ),
            "Wait": grpc.unary_unary_rpc_method_handler(wait),
        }.get(name)


def wait(_, context):
    given_up = threading.Event()
    context.add_callback(given_up.set)
    given_up.wait()
    print("given up", flush=True)
    return b""


def serve():
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Handlers(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def call(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def method(kind, name):
        return getattr(channel, kind)(f"/{SERVICE}/{name}", None, None)

    assert method("unary_unary", "Unary")(b"abc", timeout=20) == b"cba"
    assert list(method("unary_stream", "ServerStream")(b"3", timeout=20)) == [b"0", b"1", b"2"]
    assert method("stream_unary", "ClientStream")(iter([b"a", b"b"]), timeout=20) == b"ab"

    # Each message is sent only when the last one was answered.
    answered = threading.Semaphore(1)

    def turns():
        for n in range(10):
            answered.acquire()
            yield f"{n}!".encode()

    got = []
    for message in method("stream_stream", "Bidi")(turns(), timeout=20):
        got.append(message)
        answered.release()
    assert got == [f"!{n}".encode() for n in range(10)], got

    assert method("unary_unary", "Unary")(b"x" * 4_000_000, timeout=20) == b"x" * 4_000_000
    for name, code, timeout in [
        ("Fail", grpc.StatusCode.FAILED_PRECONDITION, 20),
        ("Nope", grpc.StatusCode.UNIMPLEMENTED, 20),
        ("Wait", grpc.StatusCode.DEADLINE_EXCEEDED, 0.5),
    ]:
        try:
            method("unary_unary", name)(b"", timeout=timeout)
        except grpc.RpcError as error:
            assert error.code() == code, (name, error)
        else:
            raise AssertionError(f"{name} is no error")
    print("all as it should be", flush=True)


if sys.argv[1] == "server":
    serve()
else:
    call(sys.argv[2])
