#!/bin/sh
# Installs what the bench needs from Debian, where this may be done; else says what is missing.
# A peer that can't be had is named in the table as not measured.
set -u
PATH="$PATH:/usr/sbin:/sbin"
missing=""
command -v dovecot >/dev/null || missing="$missing dovecot-imapd"
command -v openssl >/dev/null || missing="$missing openssl"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
command -v mbsync >/dev/null || missing="$missing isync"
command -v offlineimap >/dev/null || missing="$missing offlineimap3"
command -v notmuch >/dev/null || missing="$missing notmuch"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing by apt-get, which may take some minutes:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # several words on purpose
    { apt-get install -qq --no-install-recommends $missing ||
        { echo "... not found as listed: asking for newer lists, then once more" >&3
          apt-get update -qq && apt-get install -qq --no-install-recommends $missing; }; } \
        3>&1 >/tmp/system-packages.$$.log 2>&1 && { rm -f /tmp/system-packages.$$.log; exit 0; }
    cat /tmp/system-packages.$$.log
    rm -f /tmp/system-packages.$$.log
fi
echo "Not everything can be measured. As root: apt-get install$missing"
