"""Writes checkpoints, stores and scores into a folder for as long as it runs, for test_power_cuts.py."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from clips import write_clip
from test_power_cuts import SAMPLING, CountingScorer, save_model

from safe_rlhf_video.files import write_whole
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.devices import Shard
from safe_rlhf_video.scoring.score_many import ScoreRequest
from safe_rlhf_video.scoring.score_parts import content_key, score_in_parts
from safe_rlhf_video.training.state import TrainerState, save_checkpoint, with_validation
from safe_rlhf_video.video.store_builder import ClipFile, build_store

root, clips = Path(sys.argv[1]), Path(sys.argv[2])
state = TrainerState(0, "data", schedule_end=10**6)
files = [ClipFile(f"prompt/{n}", write_clip(clips / f"{n}.mp4", 2, 32, 32, seed=n)) for n in range(9)]
for turn in range(1, 10**6):
    state = with_validation(replace(state, step=turn), 1.0 / turn)
    moments = {"exp_avg.x": torch.full((99_999,), float(turn))}
    save_checkpoint(root / "run", state, moments, lambda folder, turn=turn: save_model(turn % 256, folder), keep_last=1)
    build_store(root / f"store-{turn}", SAMPLING, files, len(files), num_workers=1)
    requests = [ScoreRequest(content_key("a", text), "a", text) for text in (TextResponse("x"), TextResponse("xx"))]
    score_in_parts(CountingScorer(), requests, root / f"scores-{turn}.parts", Shard(0, 1))
    write_whole(root / f"scores-{turn}.jsonl", "scores\n" * turn)
    print(turn, flush=True)
