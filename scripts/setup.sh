#!/usr/bin/env bash
# Sets up everything that ccg_gmx needs on one machine: GROMACS >= 2025 and a virtual environment in .venv.
# Safe to call again at any time: what is there is kept, what is missing or half-made is put right, and two calls at
# once wait for each other. Exit codes: 0 done, 1 a step failed (its log is shown), 2 something only the user can provide.
#
# usage: scripts/setup.sh [--dev] [--help]
#
#   GMXBIN      folder of the gmx to use (or the program itself) when it is not on PATH
#   CCG_PYTHON  Python >= 3.11 to build .venv with (default: python3, then python3.13, 3.12, 3.11)
#   CCG_NO_APT  set to 1: never install system packages, only say what is missing
#
# pip keeps its own settings (PIP_* variables, pip.conf). On Linux its usual index gives torch with CUDA, about 5 GB on
# disk; to get the CPU build (1 GB) name PyTorch's CPU index in PIP_EXTRA_INDEX_URL, or a folder of wheels in PIP_FIND_LINKS.
set -euo pipefail

readonly GMX_MIN=2025
readonly PYTHON_MIN=3.11
# First Debian release that has a gromacs >= GMX_MIN.
readonly SUITE=trixie

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV="$ROOT/.venv"
STAMP="$VENV/.ccg_setup_stamp"
# Beside .venv, not inside: they must outlive a .venv that was only half made.
UNFINISHED="$ROOT/.ccg_setup_unfinished"
LOG="$ROOT/.ccg_setup.log"
LOCK="$ROOT/.ccg_setup.lock"
# Only tests set this: a folder that stands for / when apt's files are read and written.
SYSROOT="${CCG_SYSROOT:-}"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    local code=$1
    shift
    printf 'setup: error: %s\n' "$*" >&2
    exit "$code"
}

# Runs a long command with its output in the log; shows the end of the log when it fails.
logged() {
    local code=0
    printf '\n$ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 </dev/null || code=$?
    ((code == 0)) || tail -n 20 -- "$LOG" >&2
    return "$code"
}

# ---------------------------------------------------------------- GROMACS

# Major version (2025) of a gmx program; empty when it does not run.
gmx_major() {
    { "$1" --version 2>/dev/null </dev/null || true; } | sed -n 's/^GROMACS version:[^0-9]*\([0-9]\{4,\}\).*/\1/p' | head -n 1
}

# The gmx that the package will use: GMXBIN first, then PATH. Prints its path.
find_gmx() {
    if [[ -n "${GMXBIN:-}" ]]; then
        local candidate
        for candidate in "$GMXBIN/gmx" "$GMXBIN"; do
            if [[ -f "$candidate" && -x "$candidate" ]]; then
                printf '%s\n' "$candidate"
                return 0
            fi
        done
    fi
    command -v gmx
}

# Sets GMX and GMX_VERSION; true when that gmx is new enough.
check_gmx() {
    GMX=$(find_gmx) || GMX=""
    GMX_VERSION=""
    [[ -n "$GMX" ]] || return 1
    GMX_VERSION=$(gmx_major "$GMX")
    [[ -n "$GMX_VERSION" ]] && ((GMX_VERSION >= GMX_MIN))
}

gmx_state() {
    if [[ -z "$GMX" ]]; then
        printf 'no gmx on PATH or in GMXBIN'
    elif [[ -z "$GMX_VERSION" ]]; then
        printf '%s does not run' "$GMX"
    else
        printf '%s is GROMACS %s' "$GMX" "$GMX_VERSION"
    fi
}

need_gmx() {
    fail 2 "$(gmx_state); expected GROMACS >= $GMX_MIN${1:+; $1}; install it with" \
        "'conda install -c conda-forge \"gromacs>=$GMX_MIN\"' or load your cluster's module, then run this again" \
        "(GMXBIN=/folder/of/gmx if it is not on PATH)"
}

ensure_gmx() {
    if check_gmx; then
        say "GROMACS $GMX_VERSION: $GMX"
        return 0
    fi
    [[ "${CCG_NO_APT:-}" != 1 ]] || need_gmx "CCG_NO_APT=1 forbids installing it"
    command -v apt-get >/dev/null || need_gmx "no apt-get here to install it with"
    find_privilege || need_gmx "installing it needs root, or sudo without a password"
    install_gmx
    hash -r
    check_gmx || need_gmx "apt installed one, but an older gmx comes first: remove it from PATH or set GMXBIN=/usr/bin"
    say "GROMACS $GMX_VERSION: $GMX"
}

# ---------------------------------------------------------------- apt

# Sets PRIVILEGE to the words that make a command run as root.
find_privilege() {
    PRIVILEGE=()
    [[ "${CCG_UID:-$(id -u)}" != 0 ]] || return 0
    command -v sudo >/dev/null && sudo -n true 2>/dev/null </dev/null || return 1
    PRIVILEGE=(sudo -n)
}

# Descriptor 9 is the lock of this set-up: no service that a package starts may keep it.
as_root() { logged ${PRIVILEGE[@]+"${PRIVILEGE[@]}"} "$@" 9>&-; }

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -q -y -o Dpkg::Use-Pty=0 \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

# One unreachable third-party source must not stop the set-up: the install that follows decides.
apt_update() { apt_get update || say "apt-get update had problems; going on with the package lists that are there"; }

# Major version of the gromacs that a plain 'apt-get install' would take; empty when there is none.
apt_candidate() {
    LC_ALL=C apt-cache policy gromacs 2>/dev/null | sed -n 's/^ *Candidate: \([0-9]\{4,\}\).*/\1/p' | head -n 1
}

install_gmx() {
    local target=()
    say "$(gmx_state): installing GROMACS through apt (about a minute)"
    apt_update
    local candidate
    candidate=$(apt_candidate)
    if [[ -z "$candidate" ]] || ((candidate < GMX_MIN)); then
        is_debian || need_gmx "this system's apt has ${candidate:-no GROMACS}"
        add_suite
        target=(-t "$SUITE")
    fi
    apt_get install --no-install-recommends ${target[@]+"${target[@]}"} gromacs ||
        fail 1 "apt-get could not install gromacs; whole output: $LOG"
}

is_debian() { grep -qx 'ID="\{0,1\}debian"\{0,1\}' "$SYSROOT/etc/os-release" 2>/dev/null; }

# Where this machine gets Debian from: the URIs of its own main archive, in either of apt's two formats.
# Releases are named because a partly upgraded Debian 12 calls itself 13 in os-release.
debian_uris() {
    local suites=" bookworm trixie stable oldstable " file found
    for file in "$SYSROOT"/etc/apt/sources.list.d/*.sources; do
        [[ -f "$file" ]] || continue
        found=$(deb822_uris "$suites" <"$file")
        [[ -z "$found" ]] || { printf '%s\n' "$found" && return 0; }
    done
    for file in "$SYSROOT/etc/apt/sources.list" "$SYSROOT"/etc/apt/sources.list.d/*.list; do
        [[ -f "$file" ]] || continue
        found=$(one_line_uris "$suites" <"$file")
        [[ -z "$found" ]] || { printf '%s\n' "$found" && return 0; }
    done
    return 1
}

# Stanzas of "Field: value" lines; a value goes on in lines that start with a blank. The inputs' CR are dropped.
deb822_uris() {
    awk -v suites="$1" '
        function has(list, word,   i, n, parts) {
            n = split(list, parts, /[ \t]+/)
            for (i = 1; i <= n; i++) if (parts[i] == word) return 1
            return 0
        }
        function flush(   i, n, parts, known) {
            n = split(value["suites"], parts, /[ \t]+/)
            for (i = 1; i <= n; i++) if (parts[i] != "" && index(suites, " " parts[i] " ")) known = 1
            if (!done && known && has(value["types"], "deb") && has(value["components"], "main") &&
                tolower(value["enabled"]) !~ /^(no|false|off|0)$/ && value["uris"] !~ /cdrom:/) {
                print value["uris"]
                done = 1
            }
            split("", value)
            field = ""
        }
        { sub(/\r$/, "") }
        /^#/ { next }
        /^[ \t]*$/ { flush(); next }
        /^[ \t]/ { sub(/^[ \t]+/, ""); value[field] = value[field] " " $0; next }
        {
            field = tolower(substr($0, 1, index($0, ":") - 1))
            text = substr($0, index($0, ":") + 1)
            gsub(/^[ \t]+|[ \t]+$/, "", text)
            value[field] = text
        }
        END { flush() }'
}

# "deb [options] URI suite component..."
one_line_uris() {
    awk -v suites="$1" '
        { sub(/\r$/, ""); sub(/#.*/, "") }
        $1 != "deb" || done { next }
        {
            sub(/\[[^]]*\]/, "")
            main = 0
            for (i = 4; i <= NF; i++) if ($i == "main") main = 1
            if (main && $2 !~ /^cdrom:/ && index(suites, " " $3 " ")) { print $2; done = 1 }
        }'
}

# Adds the newer suite so low in priority that nothing comes from it unless asked for with -t.
add_suite() {
    local policy
    policy=$(LC_ALL=C apt-cache policy 2>/dev/null) || policy=""
    # Not a pipe: grep -q would end apt-cache early, and pipefail would call that a failure.
    if grep -q "[ ,]n=$SUITE,.*c=main" <<<"$policy"; then
        say "Debian's $SUITE suite is among this machine's sources already"
        return 0
    fi
    local uris key keyring=""
    uris=$(debian_uris) || need_gmx "found no Debian archive in this machine's apt sources"
    for key in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
        if [[ -z "$keyring" && -f "$SYSROOT$key" ]]; then keyring="Signed-By: $key"$'\n'; fi
    done
    say "adding Debian's $SUITE suite at low priority (ccg-$SUITE in /etc/apt/sources.list.d and /etc/apt/preferences.d)"
    # The pin goes first: killed in between, the machine must not be left with an unpinned newer suite.
    printf 'Package: *\nPin: release n=%s\nPin-Priority: 50\n' "$SUITE" | write_as_root "/etc/apt/preferences.d/ccg-$SUITE"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n%s' "$uris" "$SUITE" "$keyring" |
        write_as_root "/etc/apt/sources.list.d/ccg-$SUITE.sources"
    apt_update
}

# Standard input to a system file, whole or not at all.
write_as_root() {
    # shellcheck disable=SC2016  # $1 is for the inner shell
    ${PRIVILEGE[@]+"${PRIVILEGE[@]}"} sh -c 'set -e; mkdir -p "$(dirname "$1")"; cat >"$1.new"; chmod 644 "$1.new"; mv -f "$1.new" "$1"' \
        sh "$SYSROOT$1" || fail 1 "cannot write $1"
}

# ---------------------------------------------------------------- Python

python_ok() {
    "$1" -c "import sys; sys.exit(sys.version_info < tuple(map(int, '$PYTHON_MIN'.split('.'))))" 2>/dev/null </dev/null
}

# Sets PYTHON to the first suitable interpreter.
find_python() {
    local candidate
    for candidate in ${CCG_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && python_ok "$candidate"; then
            PYTHON=$(command -v "$candidate")
            return 0
        fi
    done
    fail 2 "no Python >= $PYTHON_MIN (looked for: ${CCG_PYTHON:-python3 python3.13 python3.12 python3.11});" \
        "install one and run this again, with CCG_PYTHON=/path/to/python3 if it is not on PATH"
}

# What .venv must have been made from. A change of the first two lines means a new .venv, of the others a new pip install.
stamp_for() {
    "$1" -c 'import sys; print("python", "%d.%d" % sys.version_info[:2])' </dev/null || return 1
    printf 'tree %s\n' "$ROOT"
    (cd -- "$ROOT" && sha256sum pyproject.toml constraints.txt)
    printf 'extras %s\n' "$2"
}

# True when .venv is whole and current for these extras; an environment with the developers' tools also serves the tests.
venv_current() {
    [[ -f "$STAMP" && ! -e "$UNFINISHED" && -x "$VENV/bin/ccg" && -x "$VENV/bin/python" ]] || return 1
    local extras
    for extras in "$1" dev; do
        if stamp_for "$VENV/bin/python" "$extras" 2>/dev/null | cmp -s - "$STAMP"; then return 0; fi
    done
    return 1
}

# True when pip install can go on in the .venv that is there.
venv_usable() {
    [[ ! -e "$UNFINISHED" ]] && [[ -x "$VENV/bin/python" ]] && python_ok "$VENV/bin/python" || return 1
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 </dev/null || return 1
    # Made elsewhere and copied or moved here: its scripts point at the old place.
    [[ ! -f "$STAMP" ]] || grep -qxF "tree $ROOT" "$STAMP"
}

make_venv() {
    if [[ -e "$VENV" || -L "$VENV" ]]; then say "replacing .venv (unfinished, broken, or made for another place)"; fi
    rm -rf -- "$VENV"
    say "making .venv with $("$PYTHON" --version 2>&1) ($PYTHON)"
    : >"$UNFINISHED"
    logged_quiet "$PYTHON" -m venv "$VENV" && return 0
    # Debian keeps ensurepip in python3-venv; its own pip can fill an empty environment just as well.
    rm -rf -- "$VENV"
    if logged_quiet "$PYTHON" -m venv --without-pip "$VENV" &&
        logged_quiet "$PYTHON" -m pip --python "$VENV/bin/python" install pip; then
        return 0
    fi
    rm -rf -- "$VENV"
    if [[ "${CCG_NO_APT:-}" != 1 ]] && command -v apt-get >/dev/null && find_privilege; then
        say "installing python3-venv through apt"
        apt_update
        if apt_get install --no-install-recommends python3-venv && logged "$PYTHON" -m venv "$VENV"; then return 0; fi
        rm -rf -- "$VENV"
    fi
    fail 2 "$PYTHON cannot make a virtual environment (no ensurepip, no pip);" \
        "install python3-venv (or python3-pip) and run this again; whole output: $LOG"
}

logged_quiet() { logged "$@" 2>/dev/null; }

ensure_venv() {
    local extras=$1
    if venv_current "$extras"; then
        say "Python environment: $VENV (up to date)"
        return 0
    fi
    find_python
    if ! venv_usable; then make_venv; fi
    rm -f -- "$STAMP"
    : >"$UNFINISHED"
    say "installing Python packages into .venv (some minutes; pip's output is in ${LOG##*/})"
    # User-wide pip settings that would send packages elsewhere are switched off; indexes and certificates are kept.
    local code=0
    (cd -- "$ROOT" && PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 logged "$VENV/bin/python" -m pip install \
        --no-input -c constraints.txt -e ".[$extras]") || code=$?
    # pip that ends by itself leaves whole packages behind; pip that is killed may not.
    if ((code < 128)); then rm -f -- "$UNFINISHED"; fi
    ((code == 0)) || fail 1 "pip could not install the package; whole output: $LOG"
    if ! logged "$VENV/bin/python" -c 'import ccg_gmx, MDAnalysis, torch'; then
        : >"$UNFINISHED"
        fail 1 "the installed packages do not load; run this again for a new .venv; whole output: $LOG"
    fi
    stamp_for "$VENV/bin/python" "$extras" >"$STAMP.new"
    mv -f -- "$STAMP.new" "$STAMP"
    say "Python environment: $VENV"
}

# ---------------------------------------------------------------- all of it

take_lock() {
    { exec 9>"$LOCK"; } 2>/dev/null || fail 2 "cannot write in $ROOT; expected a writable copy of the source tree"
    command -v flock >/dev/null || return 0
    flock -n 9 || { say "another set-up runs in this tree; waiting for it" && flock 9; }
}

main() {
    local extras=test
    case "${1:-}" in
    "") ;;
    --dev) extras=dev ;;
    -h | --help)
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        return 0
        ;;
    *) fail 2 "unknown option $1; expected --dev or --help" ;;
    esac
    take_lock
    venv_current "$extras" || : >"$LOG"
    ensure_gmx
    ensure_venv "$extras"
}

# Sourced by the tests, which call the functions one by one.
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then main "$@"; fi
