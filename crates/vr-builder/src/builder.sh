#!/bin/sh
# Builds an app with a buildpack: detect, compile, release.
#
#   /builder.sh BUILD_DIR CACHE_DIR
#
# vbuild runs this in its container. In `vbuild shell` it can be run by hand:
#
#   /builder.sh /build/* /cache/buildpack_cache
#
# Environment:
#   BUILDPACK_DIR   the buildpack to use, without asking its bin/detect; or else
#   BUILDPACK_DIRS  buildpacks to ask, separated by colons; the first whose bin/detect succeeds is used
#
# Left in /out: `buildpack`, the folder of the one that is used; `detect`, what it was detected as; `status`, what
# bin/compile or bin/release failed with; `release.yaml`, what bin/release printed.
# Exit codes: 0 done, 3 no buildpack matched, 4 compile failed, 6 release failed.

if [ $# -ne 2 ]; then
    echo "usage: /builder.sh BUILD_DIR CACHE_DIR" >&2
    exit 2
fi
build=$1
cache=$2
out=/out
# A folder with a file for each of the app's settings, as Heroku passes it to bin/compile. A build has none.
env_dir=/env

rm -f "$out/buildpack" "$out/detect" "$out/status" "$out/release.yaml"

if [ -n "${BUILDPACK_DIR:-}" ]; then
    buildpack=$BUILDPACK_DIR
else
    buildpack=
    set -f
    IFS=:
    for candidate in ${BUILDPACK_DIRS:-}; do
        if "$candidate/bin/detect" "$build" >"$out/detect" 2>&1 </dev/null; then
            buildpack=$candidate
            break
        fi
    done
    unset IFS
    set +f
    if [ -z "$buildpack" ]; then
        exit 3
    fi
    detected=
    read -r detected <"$out/detect"
    echo "-----> ${detected:-${buildpack##*/}} app detected"
fi
echo "$buildpack" >"$out/buildpack"

# fail STATUS EXIT_CODE
fail() {
    echo "$1" >"$out/status"
    exit "$2"
}

"$buildpack/bin/compile" "$build" "$cache" "$env_dir" </dev/null || fail $? 4

# Not every buildpack has one.
if [ -e "$buildpack/bin/release" ]; then
    "$buildpack/bin/release" "$build" >"$out/release.yaml" </dev/null || fail $? 6
fi
