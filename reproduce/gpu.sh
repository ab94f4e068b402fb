#!/usr/bin/env bash
# What one GPU can add to the results here in nine minutes, in order of worth:
#
#     DATA_DIR=… reproduce/gpu.sh OUT_DIR
#
#   tests        those that ask for a GPU                                     tests.xml
#   speed        training and scoring of ours and others, shapes of 135M, 1B and 7B
#                (benchmarks.gpu)                                             speed.json
#   sweep        SFT and DPO^γ of MODEL on HH-RLHF, γ = 0, 0.5, 1, 2, three seeds:
#                the dynamics file and settings of every run                  sweep.tar.gz
#   determinism  scoring and DPO twice, float32 and bfloat16                  determinism.json
#
# Each part has a time limit; a part whose result is in OUT_DIR is left out, so the same command
# goes on after a kill. gpu_log.txt says what happened, in its last line which parts are there; the
# OUT_DIR of a dry run is refused by a real one, and the other way round.
# Models and logs of single commands are kept in WORK_DIR (default: OUT_DIR.work).
# From the environment: DATA_DIR (hub otherwise), MODEL (SmolLM2-135M-Instruct), PYTHON,
# SECONDS_IN_ALL (540), JOBS (training runs side by side, 6).
# --dry-run, or DRY_RUN=1: every part on the CPU, with a tiny random model and the sample data.
set -euo pipefail

[[ ${DRY_RUN:-0} == 0 ]] && dry_run=0 || dry_run=1
if [[ ${1:-} == --dry-run ]]; then
    dry_run=1
    shift
fi
if [[ $# -ne 1 || $1 == -* ]]; then
    echo "usage: [DATA_DIR=…] reproduce/gpu.sh [--dry-run] OUT_DIR" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
work=${WORK_DIR:-$out.work}
mkdir -p "$work/logs"
work=$(realpath "$work")
model=${MODEL:-SmolLM2-135M-Instruct}
[[ ! -e $model ]] || model=$(realpath "$model")
from_data_dir=(${DATA_DIR:+--data-dir "$(realpath "$DATA_DIR")"})
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
python=$(command -v "${PYTHON:-$root/.venv/bin/python}" || command -v python3)
[[ $python == /* ]] || python=$PWD/$python
cd "$root"
if [[ $dry_run == 1 ]]; then
    export CUDA_VISIBLE_DEVICES=
    device=cpu dataset=sample seconds=${SECONDS_IN_ALL:-3600} jobs=${JOBS:-1}
    gammas=(1 0) seeds=(0)
    speed_parts=(dpo-7b score-7b) speed_flags=(--dry-run --minutes 60)
    sft_flags=(--max_train_samples=8 --max_eval_samples=4 --per_device_train_batch_size=4)
    dpo_flags=(--max_train_samples=8 --max_eval_samples=4 --dynamics_sample_size=4
        --per_device_train_batch_size=4 --num_train_epochs=1 --eval_steps=2)
    determinism_flags=(--sample-size 4 --training-pairs 8)
else
    export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}  # one: TRL refuses to train on several
    device=cuda dataset=Anthropic/hh-rlhf seconds=${SECONDS_IN_ALL:-540} jobs=${JOBS:-6}
    gammas=(1 0 0.5 2) seeds=(0 1 2)
    speed_parts=(dpo-7b score-7b dpo-1b score-135m dpo-135m sft-1b score-1b)
    speed_flags=(--minutes 3.4)
    sft_flags=(--max_train_samples=4096 --max_eval_samples=200 --per_device_train_batch_size=64)
    dpo_flags=(--max_train_samples=2048 --max_eval_samples=200 --dynamics_sample_size=200
        --per_device_train_batch_size=32 --num_train_epochs=2 --eval_steps=16
        --tokens_per_batch=8192)
    determinism_flags=(--sample-size 16 --training-pairs 64)
fi

for_determinism=70  # seconds, that the sweep leaves
threads=$(($(nproc) / jobs))  # of each of the trainings side by side
((threads > 0)) || threads=1

say() { echo "$*" | tee -a "$out/gpu_log.txt"; }

left() { echo $((seconds - SECONDS)); }

# limited SECONDS NAME COMMAND…: its output goes to NAME's log; 124 where the time is over
limited() {
    local limit=$1 log=$work/logs/$2.log
    shift 2
    [[ $dry_run == 0 ]] || limit=$seconds
    ((limit <= $(left))) || limit=$(left)
    ((limit > 0)) || return 124
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 &
    wait $!
}

last_line() { grep -sv '^\s*$' "$work/logs/$1.log" | tail -n 1 || true; }

# failed NAME STATUS: say why
failed() {
    if [[ $2 == 124 ]]; then
        say "$1: its time is over; the same command goes on"
    elif [[ $2 == 137 ]]; then
        say "$1: killed, for its time or for memory; the same command goes on"
    else
        say "$1: exit code $2: $(last_line "$1")"
    fi
}

# A kill ends what was started, too.
trap 'kill $(jobs -rp) 2>/dev/null || true; exit 143' TERM INT

# ------------------------------------------------------------------------------------- tests
tests_there() { [[ -s $out/tests.xml ]]; }

run_tests() {
    local status=0
    rm -f "$work/tests.xml"
    limited 75 tests "$python" -m pytest tests/scoring/test_attention.py \
        tests/scoring/test_log_likelihood.py -k "gpu_equals or equals_dense" \
        -q -p no:cacheprovider --junitxml="$work/tests.xml" || status=$?
    if ((status > 1)) || [[ ! -s $work/tests.xml ]]; then  # 1 without a file: no pytest here
        failed tests "$status"
        return
    fi
    mv "$work/tests.xml" "$out/tests.xml"
    say "tests: $(tail -n 1 "$work/logs/tests.log")"
}

# ------------------------------------------------------------------------------------- speed
speed_there() {
    local part
    for part in "${speed_parts[@]}"; do
        grep -qs "^ \"$part\": {" "$out/speed.json" || return 1
    done
    ! grep -q '"unfinished":' "$out/speed.json"
}

run_speed() {
    local status=0
    limited 220 speed "$python" -m benchmarks.gpu --lm-name-or-path "$model" \
        --dataset "$dataset" "${from_data_dir[@]}" "${speed_flags[@]}" \
        --parts "${speed_parts[@]}" --output "$out/speed.json" || status=$?
    grep -E '^(dpo|sft|score)-' "$work/logs/speed.log" | tee -a "$out/gpu_log.txt" || true
    [[ $status == 0 ]] || failed speed "$status"
}

# ------------------------------------------------------------------------------------- sweep
collected() { tar -tzf "$out/sweep.tar.gz" 2>/dev/null || true; }

run_names() {
    local gamma
    for gamma in "${gammas[@]}"; do
        printf "gamma${gamma}_seed%s\n" "${seeds[@]}"
    done
}

sweep_files() { run_names | sed 's|$|/ranking_dynamics.jsonl|'; }

n_collected() { comm -12 <(collected | sort) <(sweep_files | sort) | wc -l; }

sweep_there() { (($(n_collected) == ${#gammas[@]} * ${#seeds[@]})); }

finished() { grep -qs '"finished": true' "$1/run_config.json"; }

# Put the files of every finished run into the archive, beside those of an earlier machine.
collect() {
    local run
    mkdir -p "$work/sweep"
    [[ ! -s $out/sweep.tar.gz ]] || tar -xzf "$out/sweep.tar.gz" -C "$work/sweep"
    for run in "$work"/gamma*_seed*; do
        finished "$run" || continue
        mkdir -p "$work/sweep/${run##*/}"
        cp "$run/ranking_dynamics.jsonl" "$run/run_config.json" "$work/sweep/${run##*/}"
    done
    [[ -n $(ls "$work/sweep") ]] || return 0
    (cd "$work/sweep" && tar -czf "$out/.sweep.tar.gz" gamma*)
    mv "$out/.sweep.tar.gz" "$out/sweep.tar.gz"
}

# train NAME COMMAND…: leaves time for determinism, and its exit code in NAME's status
train() {
    local log=$work/logs/$1.log file=$work/logs/$1.status limit status=124
    shift
    limit=$(left)
    determinism_there || limit=$((limit - for_determinism))
    if ((limit > 0)); then
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
        trap 'kill $(jobs -rp) 2>/dev/null || true; exit 143' TERM
        timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 &
        status=0
        wait $! || status=$?
    fi
    echo "$status" >"$file"
}

# start NAME COMMAND…: train beside at most JOBS - 1 others
start() {
    while (($(jobs -rp | wc -l) >= jobs)); do
        wait -n || true
        collect
    done
    train "$@" &
}

# A line for each training that is not there, why.
report_missing() {
    local name status
    for name in "${seeds[@]/#/sft_seed}" $(run_names); do
        ! finished "$work/$name" || continue
        ! collected | grep -q "^$name/" || continue
        status=$work/logs/$name.status
        if [[ -s $status ]]; then
            failed "$name" "$(<"$status")"
        else
            say "$name: not started, sft_seed${name##*seed} is not finished"
        fi
    done
}

run_sweep() {
    local gamma seed name common
    rm -f "$work"/logs/*.status
    common=(--dataset_name="$dataset" "${from_data_dir[@]}" --bf16=true --max_length=512
        --learning_rate=1e-5 --save_strategy=no --report_to=none --disable_tqdm=true)
    for seed in "${seeds[@]}"; do
        finished "$work/sft_seed$seed" || start "sft_seed$seed" "$python" sft.py \
            --model_name="$tuned" --dataset_text_field=chosen --instruction_template=Human: \
            --response_template=Assistant: --output_dir="$work/sft_seed$seed" --seed="$seed" \
            --num_train_epochs=1 --logging_steps=8 "${common[@]}" "${sft_flags[@]}"
    done
    wait
    for gamma in "${gammas[@]}"; do
        for seed in "${seeds[@]}"; do
            name=gamma${gamma}_seed$seed
            ! collected | grep -q "$name/" || continue
            finished "$work/sft_seed$seed" || continue
            finished "$work/$name" || start "$name" "$python" dpo.py \
                --model_name_or_path="$work/sft_seed$seed" --output_dir="$work/$name" \
                --alpha="$gamma" --seed="$seed" --beta=0.1 --loss_type=alpha_scaling \
                --optim=rmsprop --evaluation_strategy=steps --warmup_steps=8 --logging_steps=8 \
                "${common[@]}" "${dpo_flags[@]}"
        done
    done
    wait
    collect
    report_missing
    say "sweep: $(n_collected) of $((${#gammas[@]} * ${#seeds[@]})) runs"
}

# ------------------------------------------------------------------------------- determinism
# What is measured last is there; the file is written as it comes.
determinism_there() { grep -qs 'bfloat16 autocast": {' "$out/determinism.json"; }

run_determinism() {
    local status=0
    limited "$for_determinism" determinism "$python" -m benchmarks.determinism \
        --lm-name-or-path "$tuned" --dataset "$dataset" "${from_data_dir[@]}" --devices "$device" \
        --dtypes bfloat16 "${determinism_flags[@]}" --output "$out/determinism.json" || status=$?
    if [[ $status == 0 ]]; then
        grep '^DPO twice' "$work/logs/determinism.log" | tee -a "$out/gpu_log.txt" || true
    else
        failed determinism "$status"
    fi
}

# -------------------------------------------------------------------------------------- main
if [[ $dry_run == 0 ]] && ! "$python" -c "import torch; exit(not torch.cuda.is_available())"; then
    echo "$python: torch finds no GPU here; --dry-run tries every part on the CPU" >&2
    exit 2
fi
[[ $device == cpu ]] && other=cuda || other=cpu
if grep -qs " on $other, " "$out/gpu_log.txt" || grep -qsx "$other" "$work/device.txt"; then
    echo "$out and $work are of a run on $other, this one is on $device: give another OUT_DIR" \
        "(and WORK_DIR, where it is set)" >&2
    exit 2
fi
echo "$device" >"$work/device.txt"
say "$(date -u +%FT%TZ) $model on $device, $seconds s"
tuned=$model  # what is trained and compared
if [[ $dry_run == 1 ]]; then
    tuned=$work/tiny
    [[ -s $tuned/model.safetensors ]] || "$python" - "$model" "$tuned" <<'PYTHON'
import sys

from benchmarks.models import make_random_llama
from ranking.scoring.loading import load_tokenizer

tokenizer = load_tokenizer(sys.argv[1])
tokenizer.save_pretrained(sys.argv[2])
make_random_llama("tiny", tokenizer, "float32", "cpu").save_pretrained(sys.argv[2])
PYTHON
fi
there=() missing=()
for part in tests speed sweep determinism; do
    if "${part}_there"; then
        say "$part: there already"
    else
        "run_$part"
    fi
    if "${part}_there"; then there+=("$part"); else missing+=("$part"); fi
done
say "there: ${there[*]:-nothing}; missing: ${missing[*]:-nothing}"
