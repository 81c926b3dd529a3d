"""Scores clips by a reward model that ms-swift trained: RUN CLIPS.jsonl OUT.json SECONDS; see ms_swift_train.sh.

OUT.json has the scores by the clips' names, and the seconds of processor that the training took.
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ms_swift_plugin  # noqa: F401
from swift.infer_engine import InferRequest, RequestConfig, TransformersEngine

run, clips, out, seconds = map(Path, sys.argv[1:])
(checkpoint,) = run.glob("checkpoint-*")
rows = [json.loads(line) for line in clips.read_text().splitlines()]
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
engine = TransformersEngine(
    os.environ["MODEL"], model_type="qwen3_vl", adapters=[str(checkpoint)], task_type="seq_cls", num_labels=1,
    problem_type="regression", torch_dtype=torch.float32, attn_impl="sdpa", max_batch_size=64,
)  # fmt: skip
requests = [InferRequest(messages=row["messages"], videos=row["videos"]) for row in rows]
answers = engine.infer(requests, RequestConfig(max_tokens=1, temperature=0))
scores = {row["name"]: float(answer.choices[0].message.content) for row, answer in zip(rows, answers, strict=True)}
_, user, system = map(float, seconds.read_text().splitlines()[-1].split())
out.write_text(json.dumps({"cpu_seconds": user + system, "scores": scores}) + "\n")
