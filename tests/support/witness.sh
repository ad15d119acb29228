#!/bin/bash
# A task that tells, independently of Haversack's own books, when it ran and which GPUs it held.
# usage: witness.sh FOLDER SECONDS EXIT_CODE
# It holds one flock per GPU, and one for its place in the job, for its whole life; a second holder
# is recorded as DOUBLE.
folder=$1
who="$HAVERSACK_JOB_ID $HAVERSACK_ATTEMPT $HAVERSACK_TASK_INDEX"
for held_thing in "$HAVERSACK_JOB_ID-$HAVERSACK_TASK_INDEX" ${HAVERSACK_GPU_IDS//,/ }; do
  exec {held}>"$folder/$held_thing.lock"
  if ! flock -n "$held"; then
    echo "DOUBLE $who $held_thing" >>"$folder/witness"
    exit 90
  fi
done
echo "start $who" >>"$folder/witness"
sleep "$2"
echo "stop $who" >>"$folder/witness"
exit "$3"
