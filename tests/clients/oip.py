"""Drives a gateway with clients that nobody here wrote: tritonclient over HTTP and gRPC, and KServe's over both.

    oip.py HTTP GRPC VECTORS

HTTP and GRPC are `host:port` of a gateway in front of a node that holds no model yet and has the service `delay`
configured (the model of models/delay.onnx) and a second one, `broken`, whose file is no model. VECTORS is
models/test-vectors.json. Ends with 0 and the word `ok`, or with the assertion that failed.
"""

import asyncio
import json
import queue
import subprocess
import sys
import time

import numpy as np

# Both clients bring the protocol's messages under the same names, and a process can have them once: KServe's client runs
# in a process of its own.
KSERVE = "--kserve"
if sys.argv[1] != KSERVE:
    import tritonclient.grpc as tg
    import tritonclient.grpc.aio as tga
    import tritonclient.http as th
    from tritonclient.utils import InferenceServerException

MODEL = "delay"


def raises(call, *parts):
    """The call fails with an InferenceServerException whose message has all parts; returns it."""
    try:
        call()
    except InferenceServerException as error:
        for part in parts:
            assert part in str(error), f"{part!r} is missing in {error}"
        return error
    raise AssertionError(f"nothing was raised, expected {parts}")


def vectors(path):
    case = json.load(open(path))["models"][MODEL]["cases"][0]
    rows = np.array(case["input"]["rows"], dtype=np.float32)
    return rows, np.array(case["expected"], dtype=np.float32)


def close(got, expected):
    np.testing.assert_allclose(got.reshape(-1), expected.reshape(-1), rtol=1e-4, atol=1e-4)


def names(client, as_json):
    """Names of input and output as the metadata tells them."""
    about = client.get_model_metadata(MODEL, **as_json)
    assert about["name"] == MODEL and about["versions"] == ["1"], about
    assert about["inputs"][0]["datatype"] == "FP32" and about["outputs"][0]["datatype"] == "FP32", about
    assert [int(d) for d in about["inputs"][0]["shape"]] == [-1, 16], about
    return about["inputs"][0]["name"], about["outputs"][0]["name"]


def repository(client, index):
    """Loads, fails to load, and leaves `delay` loaded."""
    assert index(client) == {"broken": "UNAVAILABLE", MODEL: "UNAVAILABLE"}, index(client)
    assert not client.is_model_ready(MODEL)
    client.load_model(MODEL)
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert index(client)[MODEL] == "READY"
    raises(lambda: client.load_model("broken"), "failed to load", "broken.onnx")
    assert index(client)["broken"] == "UNAVAILABLE"
    raises(lambda: client.load_model("nobody"), "nobody")


def triton_http(address, rows, expected):
    client = th.InferenceServerClient(address, concurrency=4)
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata()["name"] == "barista"
    repository(client, lambda c: {m["name"]: m["state"] for m in c.get_model_repository_index()})
    x, y = names(client, {})
    assert client.get_model_config(MODEL)["input"][0]["data_type"] == "TYPE_FP32"

    for binary_in in (True, False):
        for outputs in (None, [th.InferRequestedOutput(y, binary_data=True)], [th.InferRequestedOutput(y, binary_data=False)]):
            tensor = th.InferInput(x, rows.shape, "FP32")
            tensor.set_data_from_numpy(rows, binary_data=binary_in)
            result = client.infer(MODEL, [tensor], outputs=outputs, request_id="42", model_version="1")
            assert result.get_response()["id"] == "42"
            close(result.as_numpy(y), expected)
    tensor = th.InferInput(x, rows.shape, "FP32")
    tensor.set_data_from_numpy(rows)
    pending = [client.async_infer(MODEL, [tensor]) for _ in range(20)]
    for request in pending:
        close(request.get_result().as_numpy(y), expected)
    close(client.infer(MODEL, [tensor], timeout=5_000_000).as_numpy(y), expected)
    for algorithm in ("gzip", "deflate"):
        result = client.infer(
            MODEL, [tensor], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
        )
        close(result.as_numpy(y), expected)

    wrong = th.InferInput(x, [1, 15], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 15), dtype=np.float32))
    error = raises(lambda: client.infer(MODEL, [wrong]), f"inputs[`{x}`].shape")
    assert error.status() == "400", error.status()
    ints = th.InferInput(x, [1, 16], "INT64")
    ints.set_data_from_numpy(np.zeros((1, 16), dtype=np.int64))
    raises(lambda: client.infer(MODEL, [ints]), "`INT64`", "`FP32`")
    raises(lambda: client.infer("nobody", [tensor]), "nobody")
    raises(lambda: client.infer(MODEL, [tensor], model_version="9"), "9")
    raises(lambda: client.get_system_shared_memory_status(), "not served")
    stats = client.get_inference_statistics(MODEL)["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] >= 27, stats
    client.close()


def triton_grpc(address, rows, expected):
    client = tg.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.get_server_metadata().name == "barista"
    x, y = names(client, {"as_json": True})
    config = client.get_model_config(MODEL).config
    assert config.name == MODEL and config.input[0].name == x and config.max_batch_size > 0, config

    tensor = tg.InferInput(x, rows.shape, "FP32")
    tensor.set_data_from_numpy(rows)
    result = client.infer(MODEL, [tensor], request_id="42", outputs=[tg.InferRequestedOutput(y)])
    assert result.get_response().id == "42"
    close(result.as_numpy(y), expected)
    close(client.infer(MODEL, [tensor], timeout=5_000_000, client_timeout=30).as_numpy(y), expected)
    answers = queue.Queue()
    for _ in range(20):
        client.async_infer(MODEL, [tensor], callback=lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=60)
        assert error is None, error
        close(result.as_numpy(y), expected)

    streamed = queue.Queue()
    client.start_stream(callback=lambda result, error: streamed.put((result, error)))
    for i in range(10):
        client.async_stream_infer(MODEL, [tensor], request_id=str(i))
    for i in range(10):
        result, error = streamed.get(timeout=60)
        assert error is None, error
        assert result.get_response().id == str(i)
        close(result.as_numpy(y), expected)
    client.async_stream_infer("nobody", [tensor])
    _, error = streamed.get(timeout=60)
    assert "nobody" in str(error)
    client.stop_stream()

    wrong = tg.InferInput(x, [1, 15], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 15), dtype=np.float32))
    error = raises(lambda: client.infer(MODEL, [wrong]), f"inputs[`{x}`].shape")
    assert error.status() == "StatusCode.INVALID_ARGUMENT", error.status()
    error = raises(lambda: client.infer("nobody", [tensor]), "nobody")
    assert error.status() == "StatusCode.NOT_FOUND", error.status()
    assert client.get_inference_statistics(MODEL).model_stats[0].inference_stats.success.count >= 60
    index = {m.name: m.state for m in client.get_model_repository_index().models}
    assert index == {"broken": "UNAVAILABLE", MODEL: "READY"}, index

    async def aio():
        async with tga.InferenceServerClient(address) as asynchronous:
            result = await asynchronous.infer(MODEL, [tensor])
            close(result.as_numpy(y), expected)

    asyncio.run(aio())
    client.close()


def kserve(http, grpc, rows, expected):
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
    from kserve.inference_client import RESTConfig

    def request(binary):
        tensor = InferInput("features", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows, binary_data=binary)
        return InferRequest(MODEL, [tensor], request_id="k")

    async def rest():
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        base = f"http://{http}"
        assert await client.is_server_live(base) and await client.is_server_ready(base)
        assert await client.is_model_ready(base, MODEL)
        assert not await client.is_model_ready(base, "broken")
        for binary in (True, False):
            answer = await client.infer(base, request(binary), model_name=MODEL)
            assert answer.id == "k" and answer.model_name == MODEL
            close(answer.outputs[0].as_numpy(), expected)
        await client.close()

    async def rpc():
        client = InferenceGRPCClient(grpc)
        assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready(MODEL)
        for binary in (True, False):
            answer = await client.infer(request(binary))
            assert answer.id == "k"
            close(answer.outputs[0].as_numpy(), expected)
        await client.close()

    asyncio.run(rest())
    asyncio.run(rpc())


def unload(address):
    client = tg.InferenceServerClient(address)
    client.unload_model(MODEL)
    # Where a gateway also listens to heartbeats, the last one counts until the next: about a second.
    for _ in range(100):
        if not client.is_model_ready(MODEL):
            break
        time.sleep(0.1)
    assert not client.is_model_ready(MODEL)
    client.close()


def main():
    alone = sys.argv[1] == KSERVE
    http, grpc, path = sys.argv[2 if alone else 1 :]
    rows, expected = vectors(path)
    if alone:
        return kserve(http, grpc, rows, expected)
    triton_http(http, rows, expected)
    triton_grpc(grpc, rows, expected)
    subprocess.run([sys.executable, __file__, KSERVE, http, grpc, path], check=True)
    unload(grpc)
    print("ok")


main()
