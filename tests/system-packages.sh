#!/bin/sh
# Installs what the tests need from Debian, where this may be done; else says what is missing.
# Nothing is skipped without it: the tests that need it fail and say the same.
set -u
PATH="$PATH:/usr/sbin:/sbin"
missing=""
command -v dovecot >/dev/null || missing="$missing dovecot-imapd"
command -v chromium-headless-shell >/dev/null || missing="$missing chromium-headless-shell"
command -v openssl >/dev/null || missing="$missing openssl"
command -v curl >/dev/null || missing="$missing curl"
command -v jq >/dev/null || missing="$missing jq"
command -v mutt >/dev/null || missing="$missing mutt"
command -v notmuch >/dev/null || missing="$missing notmuch"
command -v nginx >/dev/null || missing="$missing nginx-light"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
command -v zsh >/dev/null || missing="$missing zsh"
command -v ip >/dev/null || missing="$missing iproute2"
command -v wget >/dev/null || missing="$missing wget"
command -v npm >/dev/null || missing="$missing nodejs npm"
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$missing faketime"
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
echo "Tests that need a real IMAP server, mail reader or browser will fail. As root: apt-get install$missing"
