# shellcheck shell=bash
# Shared by the scripts beside it: where things are, and how they speak. Source it, do not run it.

set -euo pipefail

# Each is used by some of the scripts.
# shellcheck disable=SC2034
{
    REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    BINARY=/usr/local/bin/bhatti
    LIBDIR=/usr/local/lib/bhatti
    CONFIG=/etc/bhatti/config.yaml
    UNIT=/etc/systemd/system/bhatti.service
    RUNDIR=/run/bhatti
    PIDFILE=$RUNDIR/supervisor.pid
    LOGDIR=/var/log/bhatti
    LOG=$LOGDIR/daemon.log
}

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }

# die WHAT [HOW TO GO ON]...
die() {
    printf '\033[1merror:\033[0m %s\n' "$1" >&2
    shift
    local line
    for line in "$@"; do note "$line"; done
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "this needs root" "Run it again with: sudo make ${0##*/}"
}

# Under sudo, the toolchain is usually in the home of the caller and not on root's path.
find_toolchain() {
    [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] || return 0
    command -v cargo >/dev/null && return 0
    local home
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    if [ -x "$home/.cargo/bin/cargo" ]; then
        export PATH="$home/.cargo/bin:$PATH" RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
    fi
}

# config_value KEY DEFAULT: a top-level scalar of the server's configuration.
config_value() {
    local value=
    if [ -r "$CONFIG" ]; then
        value=$(sed -n "s/^$1:[[:space:]]*//p" "$CONFIG" | head -n 1 |
            sed -e 's/[[:space:]]#.*$//' -e 's/[[:space:]]*$//' -e "s/^[\"']//" -e "s/[\"']\$//")
    fi
    printf '%s' "${value:-$2}"
}

data_dir() { config_value data_dir /var/lib/bhatti; }

# The address the daemon can be reached at from here.
api_url() {
    local listen host port
    listen=$(config_value listen 127.0.0.1:8080)
    host=${listen%:*} port=${listen##*:}
    case $host in '' | 0.0.0.0 | '[::]' | '*') host=127.0.0.1 ;; esac
    printf 'http://%s:%s' "$host" "$port"
}

has_systemd() { [ -d /run/systemd/system ]; }

# The supervisor holds a lock on its pid file, so an old number in it cannot mislead us.
supervisor_runs() { [ -e "$PIDFILE" ] && ! flock --nonblock "$PIDFILE" true; }

# wait_until SECONDS COMMAND...: polls until the command succeeds; its status if it never does.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

stop_daemon() {
    if has_systemd && systemctl is-active --quiet bhatti.service; then
        say "stopping bhatti.service"
        systemctl stop bhatti.service
    fi
    supervisor_runs || return 0
    say "stopping the daemon"
    kill -TERM "$(cat "$PIDFILE")"
    wait_until 130 supervisor_is_gone ||
        die "the supervisor (pid $(cat "$PIDFILE")) does not end" "See $LOG"
}
supervisor_is_gone() { ! supervisor_runs; }
