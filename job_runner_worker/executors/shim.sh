# Stands between one script and everything else: outlives the worker, keeps the
# script's tree of processes together (it is a subreaper), and writes down what
# happens. The run folder's files are described in docs/architecture.rst.
#
#     sh shim.sh
#
# It is started in the run folder, also ahead: then all that can be done before there
# is a script is done, and it waits for its order. If the worker goes away before, the
# order ends and everybody here does.
#
# Descriptors: 3 is the bell (a line for whoever listens, now or later), 4 and 5 are
# the reading and the writing end of the output pipe, 6 is where the order comes from,
# 9 tells the worker that gave it that the script has begun.
#
# The order is one compound command, so that a part of it is nothing. It sets `identity`
# (this shell's pid and when it started, in ticks since boot: they name it for good),
# `folder` (where the run folder is by now), `end_mark`, `leftovers`, `script_umask`,
# `stdin`, as seen from the script's working directory, the script's variables, and as
# parameters the script's command.
#
# All of it is one function, so that the shell has read it before it begins: a file
# that an upgrade replaces meanwhile does no harm.

signals='HUP INT QUIT USR1 USR2 PIPE ALRM TERM TSTP TTIN TTOU XFSZ'

shim() {
    umask 077
    # A script may signal its whole process group, `kill 0`: shim and relay live on.
    # What is ignored stays ignored in the relay, from its first moment.
    trap '' $signals

    # The relay ends when nobody has the pipe open any more. Its standard output is
    # there so that a full disk does not end it, nor a limit to what it may write
    # (XFSZ), which the worker sets after the end mark. What language it would speak,
    # and does not, is a third of its start.
    LC_ALL=C tee -a output <&4 >/dev/null 3>&- 4<&- 5>&- 6<&- 9>&- &
    relay=$!
    trap : $signals
    exec 4<&-

    # What the script's side says on its standard output is heard here when the script
    # takes its place: that it has begun, and what is to be done at its end.
    said=$(
        trap - $signals
        folder=
        . /proc/self/fd/6 || exit
        [ "$folder" ] || exit
        set -C
        echo "$identity" >began || exit
        set +C
        echo "$leftovers $end_mark"
        # The pid of this subshell: a shell has no other name for it.
        cd -P /proc/self || exit 125
        own_pid=${PWD#/proc/}
        cd "$folder" || exit 125
        echo "$own_pid $relay" 8<>pid >&8
        # The worker may be gone: so be it.
        trap '' PIPE
        echo >&9
        trap - PIPE
        cd work || exit 125
        umask "$script_umask"
        unset OLDPWD
        exec "$@" <"$stdin" >&5 2>&1 3>&- 5>&- 6<&- 9>&-
    )
    exit_status=$?
    [ "$said" ] || exit
    exec 6<&- 9>&-

    # The command line has the mark without what surrounds it: `ps` is no end.
    printf '\036%s\n' "${said#* }" >&5
    exec 5>&-
    # How long the script and those it waited for have kept a processor busy.
    times >&3
    echo "$exit_status" 8<>exit_status >&8
    # Aloud, too: the folder may have been removed.
    echo "ended $exit_status" >&3
    # The worker ends what is left of the tree, then continues this process.
    [ "${said%% *}" = leave ] || kill -STOP $$
    wait
}

shim
exit
