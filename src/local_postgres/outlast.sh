# usage: sh -c THIS outlast PID
#
# Stands between the supervisor and the process that started it: its standard output, the
# supervisor's input, ends only when that process and PID are both gone. Runs as the user who owns
# PID, which the supervisor may not. The lines tell it when the supervisor has ended.
while read -r line; do :; done
while kill -0 "$1" 2>/dev/null && echo; do sleep 0.2; done
