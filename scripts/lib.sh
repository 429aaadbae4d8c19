# shellcheck shell=bash
# Shared by the scripts beside it: where things are, and how they speak. Source it, do not run it.

set -euo pipefail

# Each is used by some of the scripts.
# shellcheck disable=SC2034
{
    REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    BINARY=/usr/local/bin/bhatti
    LIBDIR=/usr/local/lib/bhatti
    FIRECRACKER=$LIBDIR/firecracker
    # Where the daemon finds it.
    FIRECRACKER_LINK=/usr/local/bin/firecracker
    CONFIG=/etc/bhatti/config.yaml
    UNIT=/etc/systemd/system/bhatti.service
    RUNDIR=/run/bhatti
    PIDFILE=$RUNDIR/supervisor.pid
    LOGDIR=/var/log/bhatti
    LOG=$LOGDIR/daemon.log
}

# Escape codes are for terminals; a log has no use for them.
if [ -t 2 ]; then BOLD=$'\033[1m' PLAIN=$'\033[0m'; else BOLD='' PLAIN=''; fi

say() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }

# die WHAT [HOW TO GO ON]...
die() {
    printf '%serror:%s %s\n' "$BOLD" "$PLAIN" "$1" >&2
    shift
    local line
    for line in "$@"; do note "$line"; done
    exit 1
}

# This host's architecture, as Debian says it.
host_arch() {
    case $(uname -sm) in
    'Linux x86_64') echo amd64 ;;
    'Linux aarch64') echo arm64 ;;
    *) die "bhatti runs on Linux on x86_64 and aarch64, this is $(uname -sm)" ;;
    esac
}

# Whether machines can run on KVM here, as the daemon will find. On arm64 there is none that the CPU
# does not back.
has_kvm() {
    [ -w /dev/kvm ] && { [ "$(host_arch)" = arm64 ] || grep -q -w -E 'vmx|svm' /proc/cpuinfo; }
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

# What the names of our control groups and network objects begin with, without the dash.
name_stem() {
    local prefix
    prefix=$(config_value network_prefix bhatti-)
    [[ $prefix =~ ^[a-z][a-z0-9]{0,11}-$ ]] ||
        die "network_prefix is '$prefix', which the daemon would not take" "Correct it in $CONFIG."
    printf '%s' "${prefix%-}"
}

# The directories with the control groups of our machines, one a hierarchy.
cgroup_dirs() {
    find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$1" 2>/dev/null || true
}

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

# The daemon's own process, if it is one that we started.
daemon_pid() {
    local pid supervisor
    if has_systemd && systemctl is-active --quiet bhatti.service; then
        systemctl show --property=MainPID --value bhatti.service
    elif supervisor_runs; then
        supervisor=$(cat "$PIDFILE")
        # Its other children are timers. A process that ends meanwhile is no error.
        { grep -s -l -x "PPid:[[:space:]]*$supervisor" /proc/[0-9]*/status || true; } |
            while IFS=/ read -r _ _ pid _; do
                if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = bhatti ]; then echo "$pid"; fi
            done
    fi
}

# Whether a daemon holds the data directory, whoever started it.
data_dir_in_use() {
    local lock
    lock=$(data_dir)/lock
    [ -e "$lock" ] && ! flock --nonblock "$lock" true
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
