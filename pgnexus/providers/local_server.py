"""Nexus side, the local model's own process: llama.cpp behind OpenAI's wire, on loopback only.

A process of its own, so that a crash in native code is a failed call and not the end of a worker, and so that
no interpreter lock is shared. Started by `pgnexus.providers.local_model` and by nobody else: reads one JSON
line on stdin ({path, alias, key, slots, context, threads}), writes one on stdout ({url}) when it can answer,
and ends when its stdin closes, which is also what happens when its parent is killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any

import xllamacpp

# SmolLM2's own recommendation; the seed makes the same question give the same answer.
_TEMPERATURE = 0.2
_TOP_P = 0.9
_SEED = 42
_MAX_TOKENS = 256
_REPEAT_PENALTY = 1.1  # small models run in circles
_LOOK_EVERY = 1.0


def serve(config: dict[str, Any]) -> xllamacpp.Server:
    """Load the model and listen on a free port."""
    params = xllamacpp.CommonParams()
    params.model.path = config["path"]
    params.model_alias = {config["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config["key"]]
    params.n_parallel = config["slots"]
    # Each slot has its own share: with a common one, two long prompts would crowd each other out.
    params.n_ctx = config["context"] * config["slots"]
    params.kv_unified = False
    params.cpuparams.n_threads = config["threads"]
    params.cpuparams_batch.n_threads = config["threads"]
    params.n_predict = _MAX_TOKENS
    params.sampling.temp = _TEMPERATURE
    params.sampling.top_p = _TOP_P
    params.sampling.seed = _SEED
    params.sampling.penalty_repeat = _REPEAT_PENALTY
    params.cache_ram_mib = 0
    params.endpoint_slots = False
    params.ui = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear: it drains first
    parent = os.getppid()
    server = serve(json.loads(sys.stdin.buffer.readline()))
    print(json.dumps({"url": server.listening_address}), flush=True)
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin.buffer], [], [], _LOOK_EVERY)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    # Without the interpreter's and llama.cpp's farewell, which waits for calls under way.
    os._exit(0)


if __name__ == "__main__":
    main()
