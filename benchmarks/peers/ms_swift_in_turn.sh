#!/usr/bin/env bash
# Times ms-swift's two trainings and this project's joint one in turn:
# ms_swift_in_turn.sh FOLDER WORLD_OUT ROUNDS [FIELD=VALUE ...]
#
# FOLDER is what ms_swift_convert.py wrote, WORLD_OUT what time_to_accuracy.py did, FIELD=VALUE as for its --changes; PYTHON as
# for ms_swift_train.sh, and the python of the PATH is this project's. One thread a process, one process at a time; nothing
# else should run. Prints a row a round: seconds by the clock and of the processor, of whole processes, and their ratios.
set -euo pipefail
folder=$(realpath "$1") world=$(realpath "$2") rounds=$3 changes=("${@:4}")
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
run=$folder/runs/in_turn
export OMP_NUM_THREADS=1 ONLY_TRAIN=1 TOKENIZERS_PARALLELISM=false

TIMEFORMAT="%R %U %S"
for ((round = 0; round < rounds; round++)); do
    rm -rf "$run"
    for head in reward cost; do bash "$here/ms_swift_train.sh" "$folder" "$head" "$round"; done
    { time python "$here/../../scripts/train_reward.py" --config "$here/../../configs/quickstart.yaml" \
        --heads "[reward,cost]" --out "$run" --data.path "$world/world" --data.frame_store "$world/frames" \
        --data.validation_fraction 0 --optimization.epochs 1 --seed "$round" --tracking.wandb disabled \
        "${changes[@]/#/--}" > "$run.log" 2>&1; } 2> "$run.seconds"
    awk -v round="$round" '
        FILENAME ~ /in_turn/ { clock = $1; cpu = $2 + $3; next }
        { their_clock += $1; their_cpu += $2 + $3 }
        END { printf "round %d: ms-swift %.1f s (CPU %.1f), ours %.1f s (CPU %.1f), ratio %.2f (CPU %.2f)\n",
              round, their_clock, their_cpu, clock, cpu, their_clock / clock, their_cpu / cpu }
    ' "$run.seconds" "$folder/runs/reward_$round.seconds" "$folder/runs/cost_$round.seconds"
done
