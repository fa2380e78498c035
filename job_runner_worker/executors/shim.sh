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
# The order is one compound command, so that a part of it is nothing. It sets
# jrw_identity (this shell's pid and when it started, in ticks since boot: they name it
# for good), jrw_folder (where the run folder is by now), jrw_end_mark, jrw_leftovers,
# jrw_script_umask, jrw_stdin (as seen from the script's working directory), the
# script's variables, and as parameters the script's command. All names here begin with
# jrw_: a script's variables may have any other.
#
# All of it is one function, so that the shell has read it before it begins: a file
# that an upgrade replaces meanwhile does no harm.

jrw_signals='HUP INT QUIT USR1 USR2 PIPE ALRM TERM TSTP TTIN TTOU XFSZ'

shim() {
    umask 077
    # A script may signal its whole process group, `kill 0`: shim and relay live on.
    # What is ignored stays ignored in the relay, from its first moment.
    trap '' $jrw_signals

    # The relay ends when nobody has the pipe open any more. Its standard output is
    # there so that a full disk does not end it, nor a limit to what it may write
    # (XFSZ), which the worker sets after the end mark. What language it would speak,
    # and does not, is a third of its start.
    LC_ALL=C tee -a output <&4 >/dev/null 3>&- 4<&- 5>&- 6<&- 9>&- &
    jrw_relay=$!
    trap : $jrw_signals
    exec 4<&-

    # What the script's side says on its standard output is heard here when the script
    # takes its place: that it has begun, and what is to be done at its end.
    jrw_said=$(
        trap - $jrw_signals
        jrw_folder=
        . /proc/self/fd/6 || exit
        [ "$jrw_folder" ] || exit
        set -C
        echo "$jrw_identity" >began || exit
        set +C
        echo "$jrw_leftovers $jrw_end_mark"
        # The pid of this subshell: a shell has no other name for it.
        cd -P /proc/self || exit 125
        jrw_own_pid=${PWD#/proc/}
        cd "$jrw_folder" || exit 125
        echo "$jrw_own_pid $jrw_relay" 8<>pid >&8
        # The worker may be gone: so be it.
        trap '' PIPE
        echo >&9
        trap - PIPE
        cd ./work || exit 125
        umask "$jrw_script_umask"
        unset OLDPWD
        exec "$@" <"$jrw_stdin" >&5 2>&1 3>&- 5>&- 6<&- 9>&-
    )
    jrw_exit_status=$?
    [ "$jrw_said" ] || exit
    exec 6<&- 9>&-

    # The command line has the mark without what surrounds it: `ps` is no end.
    printf '\036%s\n' "${jrw_said#* }" >&5
    exec 5>&-
    # How long the script and those it waited for have kept a processor busy.
    times >&3
    echo "$jrw_exit_status" 8<>exit_status >&8
    # Aloud, too: the folder may have been removed.
    echo "ended $jrw_exit_status" >&3
    # The worker ends what is left of the tree, then continues this process.
    [ "${jrw_said%% *}" = leave ] || kill -STOP $$
    wait
}

shim
exit
