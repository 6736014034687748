# usage: sh -c THIS supervise SOCKET_DIR TEMPORARY ALSO_UNTIL COMMAND…
#
# Runs a Postgres server until it ends, or until both standard input and the process ALSO_UNTIL
# (none if '') have. Standard input is a pipe that nobody else has the other end of, so it ends
# with the process that started us, kill -9 included. Standard output is the data folder's lock:
# held here, by the server and by its children, it is free when all of them are gone. What is in
# the folder TEMPORARY (none if '') goes with the server.
socket_dir=$1
temporary=$2
also_until=$3
shift 3
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
{
  while read -r line; do :; done
  # It may be somebody's whom we may not signal. `ps` is for where there is no /proc.
  while [ "$also_until" ] && { [ -d "/proc/$also_until" ] || ps -p "$also_until"; }; do sleep 0.2; done
  # Repeated, because a child of ours ignores the signal until it is Postgres.
  while kill -INT "$server"; do sleep 0.1; done
} <&3 >/dev/null 2>&1 &
guard=$!
wait "$server"
code=$?
kill "$guard"
rm -rf "$socket_dir"
[ -z "$temporary" ] || rm -rf "$temporary"/*
exit "$code"
