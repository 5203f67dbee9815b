#!/bin/sh
# Builds an app with one or more buildpacks: detect, compile, release.
#
#   /builder.sh BUILD_DIR CACHE_DIR
#
# vbuild runs this in its container. In `vbuild shell` it can be run by hand:
#
#   /builder.sh /build/* /cache/buildpack_cache
#
# Environment, of which the first that is set counts; folders are separated by colons:
#   BUILDPACK_CHAIN  buildpacks that build the app one after the other; each one's bin/detect has to succeed
#   BUILDPACK_DIR    the buildpack to use, without asking its bin/detect
#   BUILDPACK_DIRS   buildpacks to ask; the first whose bin/detect succeeds is used
#
# Left in /out: `used`, the folders of those that were used, one a line; `refused`, the one of a chain that did not
# match; `said`, what those that did not match printed; `status`, what bin/compile or bin/release failed with;
# `release.N`, what bin/release of the Nth printed; `export`, for as long as such a file is being read; `done`, once all
# is. The scripts run in their buildpack's folder, as at Heroku, without these variables.
# Exit codes: 0 done, 3 no buildpack matched, 4 compile failed, 6 release failed.

# What a buildpack leaves in its file `export` for those after it is written for bash.
if [ -n "${BUILDPACK_CHAIN:-}" ] && [ -z "${BASH_VERSION:-}" ] && command -v bash >/dev/null 2>&1; then
    exec bash "$0" "$@"
fi
if [ $# -ne 2 ]; then
    echo "usage: /builder.sh BUILD_DIR CACHE_DIR" >&2
    exit 2
fi
# Names that no buildpack's `export` uses.
vr_build=$1
vr_cache=$2
vr_out=/out
# A folder with a file for each of the app's settings.
vr_env_dir=/env
vr_number=0
vr_chain=${BUILDPACK_CHAIN:-}
vr_given=${BUILDPACK_DIR:-}
vr_left=${BUILDPACK_DIRS:-}:
# Some buildpacks have variables of these names.
unset BUILDPACK_CHAIN BUILDPACK_DIR BUILDPACK_DIRS

# What an earlier run of it has left, in a shell.
if [ -e "$vr_out/used" ] || [ -e "$vr_out/said" ]; then
    (cd "$vr_out" && rm -f used refused said status export done detect detect.err release.*)
fi

# vr_fail STATUS EXIT_CODE
vr_fail() {
    echo "$1" >"$vr_out/status"
    exit "$2"
}

# vr_detect FOLDER: asks a buildpack, and says what it found.
vr_detect() {
    if ! (cd "$1" && exec "$1"/bin/detect "$vr_build") >"$vr_out/detect" 2>"$vr_out/detect.err" </dev/null; then
        cat "$vr_out/detect" "$vr_out/detect.err" >>"$vr_out/said"
        return 1
    fi
    vr_detected=
    read -r vr_detected <"$vr_out/detect"
    # One that says nothing has its repository's name.
    vr_name=${1##*/}
    echo "-----> ${vr_detected:-${vr_name%-*}} app detected"
}

# vr_use FOLDER: builds with a buildpack.
vr_use() {
    vr_number=$((vr_number + 1))
    echo "$1" >>"$vr_out/used"
    (cd "$1" && exec "$1"/bin/compile "$vr_build" "$vr_cache" "$vr_env_dir") </dev/null || vr_fail $? 4
    # Not every buildpack has one.
    if [ -e "$1/bin/release" ]; then
        (cd "$1" && exec "$1"/bin/release "$vr_build") >"$vr_out/release.$vr_number" </dev/null || vr_fail $? 6
    fi
}

if [ -n "$vr_chain" ]; then
    vr_left=$vr_chain:
    while [ -n "$vr_left" ]; do
        vr_folder=${vr_left%%:*}
        vr_left=${vr_left#*:}
        if ! vr_detect "$vr_folder"; then
            echo "$vr_folder" >"$vr_out/refused"
            exit 3
        fi
        vr_use "$vr_folder"
        if [ -f "$vr_folder/export" ] && [ -n "$vr_left" ]; then
            # Should it end the script, this says what did.
            : >"$vr_out/export"
            . "$vr_folder/export"
            # It may have wanted errors to end it, but not us.
            set +eu
            rm -f "$vr_out/export"
        fi
    done
elif [ -n "$vr_given" ]; then
    vr_use "$vr_given"
else
    while [ -n "$vr_left" ]; do
        vr_folder=${vr_left%%:*}
        vr_left=${vr_left#*:}
        if [ -n "$vr_folder" ] && vr_detect "$vr_folder"; then
            vr_use "$vr_folder"
            : >"$vr_out/done"
            exit 0
        fi
    done
    exit 3
fi
: >"$vr_out/done"
