#!/usr/bin/env bash
# Trains a reward or a cost with ms-swift and scores the test clips: ms_swift_train.sh FOLDER HEAD SEED [EIGHTS [RATE]]
#
# FOLDER is what ms_swift_convert.py wrote; PYTHON, an interpreter of an environment with ms-swift. A step has EIGHTS times
# eight comparisons, 56 unless given; RATE is 2e-3 unless given. The scores of the test clips go to FOLDER/HEAD_SEED.json,
# unless ONLY_TRAIN is set; the seconds of the training (by the clock, of the user, of the system) to
# FOLDER/runs/HEAD_SEED.seconds. Adapter and frames are those of configs/quickstart.yaml; what is not named keeps ms-swift's
# default.
set -euo pipefail
folder=$(realpath "$1") head=$2 seed=$3 eights=${4:-7} rate=${5:-2e-3}
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
run=$folder/runs/${head}_$seed
mkdir -p "$folder/runs"

export MODEL=$folder/model OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= USE_HF=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# 4 frames of 32 x 32: 16 tokens for two frames.
export FPS=2 FPS_MIN_FRAMES=4 FPS_MAX_FRAMES=4 VIDEO_MIN_TOKEN_NUM=16 VIDEO_MAX_TOKEN_NUM=16 FORCE_QWENVL_VIDEO_READER=decord

TIMEFORMAT="%R %U %S"
{ time "${PYTHON:-python}" -m swift.cli.main rlhf --rlhf_type rm --model "$MODEL" --model_type qwen3_vl \
    --external_plugins "$here/ms_swift_plugin.py" --dataset "$folder/$head.jsonl" --split_dataset_ratio 0 \
    --output_dir "$run" --add_version false --seed "$seed" --data_seed "$seed" --torch_dtype float32 \
    --tuner_type lora --lora_rank 8 --lora_alpha 16 --target_modules all-linear --freeze_vit true --freeze_aligner true \
    --num_train_epochs 1 --per_device_train_batch_size 8 --gradient_accumulation_steps "$eights" \
    --learning_rate "$rate" --gradient_checkpointing false --attn_impl sdpa --dataloader_num_workers 0 \
    --save_strategy epoch --report_to none > "$run.log" 2>&1; } 2> "$run.seconds"

if [ -z "${ONLY_TRAIN:-}" ]; then
    "${PYTHON:-python}" "$here/ms_swift_score.py" "$run" "$folder/clips.jsonl" "$folder/${head}_$seed.json" "$run.seconds" \
        >> "$run.log" 2>&1
fi
