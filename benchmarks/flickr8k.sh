#!/bin/sh
# The whole loop on real photographs, through the ordinary commands:
#   sh benchmarks/flickr8k.sh FLICKR8K_FOLDER WORK_FOLDER
# Without arguments it says what the folder holds.
# About an hour on two CPU cores: independent stages run side by side, a thread each. Stopped at any
# moment, the same command goes on.
set -eu
if [ $# -ne 2 ] || [ ! -f "$1/captions.jsonl" ]; then
  echo "usage: sh benchmarks/flickr8k.sh FLICKR8K_FOLDER WORK_FOLDER
FLICKR8K_FOLDER has images/ and captions.jsonl, an object a line: image (images/NAME.jpg), captions
(a list), split (train, val or test)" >&2
  exit 2
fi
# Stages in the background do not outlive the script: they are stopped as by Ctrl-C.
stages=
trap 'kill $stages 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
DATA=$1
WORK=$2
BIN=${BIN:-.venv/bin}
STEPS=${STEPS:-1000}
CAPTIONER=${CAPTIONER:-300}
FILTER=${FILTER:-400}
THREADS=${THREADS:-1}
SEED=${SEED:-0}
# The filter learns with one match in three: above this it finds evidence for a match.
ITM=${ITM:-0.33}

[ -d "$WORK/sources" ] || "$BIN/python" benchmarks/flickr8k_noise.py "$DATA" "$WORK/sources" --seed "$SEED"
for set in noisy clean; do
  web=$([ $set = noisy ] && echo web || echo clean)
  "$BIN/openblip" data import "$WORK/sources/$web" "$WORK/$set.lance" --origin web
  "$BIN/openblip" data import "$WORK/sources/human" "$WORK/$set.lance" --origin human
done

# Contrast within a batch of 128: with a queue and batches of 32 these models stayed at chance
# (docs/log.md).
MODEL="--tokenizer train:3000 --data.image-size 64 --model.vision.image-size 64
  --model.vision.patch-size 16 --model.vision.width 128 --model.vision.depth 4 --model.vision.heads 4
  --model.text.width 128 --model.text.depth 2 --model.text.heads 4 --model.text.ffn-width 512
  --model.text.max-positions 64 --model.embed-dim 128 --data.max-tokens 24"
AUGMENTATION="--data.augmentation.min-scale 0.5 --data.augmentation.flip
  --data.augmentation.no-randaugment"
CONTRAST="--objectives.queue-size 0 --objectives.momentum 0.99 --objectives.min-temperature 0.02"
RUN="--train.threads $THREADS --train.seed $SEED --optimiser.clip-norm 1.0"
PRETRAIN="$MODEL $AUGMENTATION $CONTRAST $RUN --train.batch-size 128 --train.steps $STEPS
  --train.checkpoint-every 250 --optimiser.lr 1e-3 --schedule.warmup-steps 60"
FINETUNE="$AUGMENTATION $RUN --train.batch-size 64
  --schedule.kind warmup_cosine --schedule.warmup-steps 20 --data.max-tokens 32"

# Each replaces the subshell that it is called in, so that a signal to the stage reaches it.
# shellcheck disable=SC2086 - the settings are lists of words
pretrain() { exec "$BIN/openblip" pretrain tiny "$WORK/$1.lance" "$WORK/$2" $PRETRAIN ${3:-}; }
# shellcheck disable=SC2086
finetune() {
  exec "$BIN/openblip" finetune "$1" "$WORK/noisy.lance" "$WORK/$1" \
    --init-from "$WORK/noisy/checkpoints/last" $FINETUNE --train.steps "$2" ${3:-}
}

pretrain noisy noisy & noisy=$!
pretrain clean clean & clean=$!
stages="$noisy $clean"
wait $noisy
wait $clean
finetune captioner "$CAPTIONER" "--optimiser.lr 3e-4" & captioner=$!
# Captions of other images are easy negatives; nearly uniform draws serve this filter better than
# draws by similarity (docs/log.md).
finetune filter "$FILTER" "--optimiser.lr 1e-3 $CONTRAST --objectives.negative-floor 1" & filter=$!
stages="$captioner $filter"
wait $captioner
wait $filter
stages=
"$BIN/openblip" capfilt run "$WORK/noisy.lance" --captioner "$WORK/captioner/checkpoints/last" \
  --filter "$WORK/filter/checkpoints/last" --seed "$SEED"
(pretrain noisy bootstrapped "--data.view.sources human web synthetic --data.view.itm $ITM")

"$BIN/openblip" capfilt select "$WORK/noisy.lance" --thresholds 0.1 0.2 "$ITM" 0.5 0.7
"$BIN/openblip" capfilt report "$WORK/noisy.lance" -o "$WORK/capfilt.html" --threshold "$ITM"
for model in noisy bootstrapped clean; do
  "$BIN/openblip" evaluate retrieval "$WORK/$model/checkpoints/last" "$WORK/noisy.lance" --k 128
  "$BIN/openblip" evaluate caption "$WORK/$model/checkpoints/last" "$WORK/noisy.lance" \
    --prompt "" --min-length 6 --max-length 24 --results "$WORK/$model.captions.json"
done
"$BIN/openblip" evaluate caption "$WORK/captioner/checkpoints/last" "$WORK/noisy.lance" \
  --min-length 8 --max-length 24 --results "$WORK/captioner.captions.json"
