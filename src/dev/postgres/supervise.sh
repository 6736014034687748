# usage: sh -c SCRIPT supervise SOCKET_DIR TEMPORARY_DIR KEEP_ALIVE_PID COMMAND…
#
# Runs a Postgres server and stops it after its owner has ended, even after a kill -9 of the owner.
# - Standard input is a pipe. Only the owner has the other end, so it closes when the owner ends.
# - The server also waits for the process KEEP_ALIVE_PID, unless that is ''.
# - Standard output is the lock of the data folder. This script, the server and its children inherit it, so the lock
#   is free when all of them have ended.
# - The contents of TEMPORARY_DIR, unless that is '', are deleted when the server has ended.
socket_dir=$1
temporary_dir=$2
keep_alive_pid=$3
shift 3
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
{
  while read -r line; do :; done
  # `kill -0` fails for a process of another user. `ps` is for systems without /proc.
  while [ "$keep_alive_pid" ] && { [ -d "/proc/$keep_alive_pid" ] || ps -p "$keep_alive_pid"; }; do sleep 0.2; done
  # Repeated, because the child ignores the signal until it has become Postgres.
  while kill -INT "$server"; do sleep 0.1; done
} <&3 >/dev/null 2>&1 &
guard=$!
wait "$server"
code=$?
kill "$guard"
rm -rf "$socket_dir"
[ -z "$temporary_dir" ] || rm -rf "$temporary_dir"/*
exit "$code"
