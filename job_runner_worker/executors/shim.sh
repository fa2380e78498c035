# Stands between one script and everything else: outlives the worker, keeps the
# script's tree of processes together (it is a subreaper), and writes down what
# happens. The run folder's files are described in docs/architecture.rst.
#
#     sh shim.sh FOLDER END_MARK LEFTOVERS UMASK STDIN INTERPRETER [ARGUMENT ...] SCRIPT
#
# STDIN is as seen from the script's working directory.
#
# Descriptors: 3 is the bell (a line for whoever listens, now or later), 4 and 5 are
# the reading and the writing end of the output pipe.
#
# All of it is one function, so that the shell has read it before it begins: a file
# that an upgrade replaces meanwhile does no harm.

signals='HUP INT QUIT USR1 USR2 PIPE ALRM TERM TSTP TTIN TTOU XFSZ'

# Field 1 and field 22 of the stat file: pid and start time name a process for good.
identify() {
    read -r own_pid _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ own_start _ \
        </proc/self/stat
}

shim() {
    cd "$1" || exit
    end_mark=$2 leftovers=$3 script_umask=$4 stdin=$5
    shift 5
    umask 077
    # A script may signal its whole process group, `kill 0`: shim and relay live on.
    # What is ignored stays ignored in the relay, from its first moment.
    trap '' $signals
    identify
    set -C
    echo "$own_pid $own_start" >began || exit
    set +C

    # The relay ends when nobody has the pipe open any more. Its standard output is
    # there so that a full disk does not end it, nor a limit to what it may write
    # (XFSZ), which the worker sets after the end mark.
    tee -a output <&4 >/dev/null 3>&- 4<&- 5>&- &
    relay=$!
    trap : $signals
    exec 4<&-

    (
        trap - $signals
        identify
        echo "$own_pid $own_start $relay" 1<>pid
        echo started >&3
        cd work || exit 125
        umask "$script_umask"
        unset OLDPWD
        exec "$@" <"$stdin" >&5 2>&1 3>&- 5>&-
    )
    exit_status=$?

    # The command line has the mark without what surrounds it: `ps` is no end.
    printf '\036%s\n' "$end_mark" >&5
    exec 5>&-
    # How long the script and those it waited for have kept a processor busy.
    times >&3
    echo "$exit_status" 1<>exit_status
    # Aloud, too: the folder may have been removed.
    echo "ended $exit_status" >&3
    # The worker ends what is left of the tree, then continues this process.
    [ "$leftovers" = leave ] || kill -STOP $$
    wait
}

shim "$@"
exit
