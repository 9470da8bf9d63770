"""An ONNX model on Ray Serve, speaking the protocol's JSON: a peer of bench/peers/gateway.sh.

    python gateway_ray.py MODEL.onnx PORT [MAX_BATCH] [BATCH_WAIT_S]
"""

import json
import sys
import time

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

MODEL, PORT = sys.argv[1], int(sys.argv[2])
MAX_BATCH = int(sys.argv[3]) if len(sys.argv) > 3 else 16
BATCH_WAIT_S = float(sys.argv[4]) if len(sys.argv) > 4 else 0.002


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Onnx:
    def __init__(self, path: str):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def infer(self, requests: list) -> list:
        sizes = [len(request[self.inputs[0]]) for request in requests]
        feeds = {name: np.concatenate([request[name] for request in requests]) for name in self.inputs}
        results = self.session.run(self.outputs, feeds)
        cuts = np.cumsum(sizes)[:-1]
        return list(zip(*[np.split(result, cuts) for result in results]))

    async def __call__(self, request: Request):
        if request.method == "GET":
            return JSONResponse({"ready": True})
        body = json.loads(await request.body())
        feeds = {
            i["name"]: np.asarray(i["data"], dtype=np.float32).reshape(i["shape"]) for i in body["inputs"]
        }
        results = await self.infer(feeds)
        outputs = [
            {"name": name, "shape": list(value.shape), "datatype": "FP32", "data": value.ravel().tolist()}
            for name, value in zip(self.outputs, results)
        ]
        return JSONResponse({"model_name": "delay", "outputs": outputs})


ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False, object_store_memory=10**8)
serve.start(http_options={"host": "127.0.0.1", "port": PORT, "location": "HeadOnly"})
serve.run(Onnx.bind(MODEL), route_prefix="/")
while True:
    time.sleep(3600)
