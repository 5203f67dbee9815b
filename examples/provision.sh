#!/bin/bash
# Runs as root in the new image: installs what the example apps and buildpacks use.
set -eux
apt-get update
apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev make
apt-get clean
rm -rf /var/lib/apt/lists/*
