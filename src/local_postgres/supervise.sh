# usage: sh -c THIS supervise REMOVE COMMAND…
#
# Runs a Postgres server until it ends or standard input does, whichever is first; then removes
# the empty folder REMOVE (none if ''). Standard input is a pipe that nobody else has the other
# end of, so it ends with the process that started us, kill -9 included. Standard output is the
# data folder's lock: held here, it is free when the server is gone and not before.
remove=$1
shift
exec 3<&0
"$@" </dev/null >&2 3<&- &
server=$!
# Repeated, because a child of ours ignores the signal until it is Postgres.
{
  while read -r line; do :; done
  while kill -INT "$server"; do sleep 0.1; done
} <&3 >/dev/null 2>&1 &
guard=$!
wait "$server"
code=$?
kill "$guard"
[ -z "$remove" ] || rmdir "$remove"
exit "$code"
