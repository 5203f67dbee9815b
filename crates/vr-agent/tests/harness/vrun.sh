#!/bin/sh
# Stands in for vrun where a test needs one that hangs, fails or is slow on demand: same command line, locks,
# messages and status file, but no container. Understands cmd and, as shell commands, the keys x_setup (run by
# setup), x_before_status (run before the first status is written) and x_uptest (run by uptest). Every call
# leaves its subcommand in $VR_ROOT/asked.
subcommand=$1 file=$2
shift 2
dir=$(dirname "$file")
while [ $# -gt 0 ]; do
    case $1 in
    --log) log=$2 ;;
    --status-file) status=$2 ;;
    esac
    shift 2
done
value() { sed -n "s/^$1: //p" "$file"; }
exec 9<"$file"
[ "$subcommand" = uptest ] || flock -n 9
held=$?
echo "$subcommand" >>"$VR_ROOT/asked"
if [ $held != 0 ]; then
    echo "ERROR: $file is locked by another process." >&2
    exit 1
fi
case $subcommand in
setup)
    mkdir -p "$dir/rootfs/app"
    cd "$dir" && echo setup >>calls && eval "$(value x_setup)"
    ;;
uptest) eval "$(value x_uptest)" ;;
teardown) rm -rf "$dir" ;;
run)
    ticks=$(sed 's/.*) //' /proc/$$/stat | cut -d' ' -f20)
    begin="\"pid\": $$, \"start_ticks\": $ticks, \"started_at\": $(date +%s%3N)"
    write() { echo "{$begin, $1}" >"$status.new" && mv "$status.new" "$status"; }
    eval "$(value x_before_status)"
    cd "$dir/rootfs/app" || exit 1
    setpriv --pdeathsig KILL sh -c "exec $(value cmd)" >>"$log" 2>&1 9<&- &
    app=$!
    trap 'kill -TERM $app' TERM
    write "\"app_pid\": $app"
    wait $app
    code=$?
    # A wait that our own signal cut short says nothing of the app.
    while kill -0 $app 2>/dev/null; do
        wait $app
        code=$?
    done
    if [ $code -gt 128 ]; then
        write "\"app_pid\": $app, \"ended_at\": $(date +%s%3N), \"signal\": $((code - 128))"
    else
        write "\"app_pid\": $app, \"ended_at\": $(date +%s%3N), \"exit_code\": $code"
    fi
    exit $code
    ;;
esac
